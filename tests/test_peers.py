"""Against torch's own optimizers and against pytorch_optimizer's SAM, neither of them ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import (
    BASES,
    Params,
    closure_of,
    generator,
    give_gradients,
    largest_gap,
    network_loss,
    network_weights,
    parameters,
    same,
    spacing,
)
from torch import Tensor

import sharpkern

SEED = 40


def apart_in_ulp(ours: Tensor, theirs: Tensor, size: Tensor) -> float:
    """Return the largest distance in units of the last place at this size."""
    gap = (ours.detach().double() - theirs.detach().double()).abs() / spacing(size, ours.dtype)
    return gap.max().item() if gap.numel() else 0.0


def many_weights() -> list[Tensor]:
    """Return enough weights for every rounding to show."""
    return [torch.randn(301, 7, generator=generator(SEED))]


@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "adaptive"])
@pytest.mark.parametrize("base", ["sgd-nesterov", "adam-decay", "adamw"])
def test_fifty_steps_equal_pytorch_optimizer(base: str, adaptive: bool, backend: str) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer, a test dependency, is not installed")
    torch_class, _, options = BASES[base]
    params, theirs = parameters(network_weights(SEED)), parameters(network_weights(SEED))
    optimizer = sharpkern.SAM(params, torch_class, rho=0.2, adaptive=adaptive, backend=backend, **options)
    rival = peer.SAM(theirs, torch_class, rho=0.2, adaptive=adaptive, **options)
    for step in range(50):
        loss = network_loss(SEED, step)
        optimizer.step(closure_of(optimizer, params, loss))
        closure_of(rival, theirs, loss)()
        rival.step(closure_of(rival, theirs, loss))
    assert largest_gap(params, network_weights(SEED)) > 0.1
    assert largest_gap(params, theirs) < 2e-5


PLAIN: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (torch_class, options) for name, (torch_class, _, options) in BASES.items()},
    "sgd-foreach": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "sgd-fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "adamw-single": (torch.optim.AdamW, {"lr": 0.1, "foreach": False}),
    "defaults": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize(
    ("optimizer_class", "dtype"),
    [
        (sharpkern.SAM, torch.float32),
        (sharpkern.SAM, torch.float64),
        (sharpkern.ASAM, torch.float32),
        (sharpkern.FisherSAM, torch.float32),
    ],
)
@pytest.mark.parametrize("name", PLAIN)
def test_rho_zero_is_the_base_optimizer(name: str, optimizer_class: Any, dtype: torch.dtype, backend: str) -> None:
    """The first pass leaves w bit for bit; from the same state a step ends within a few ulp of torch's.

    torch's own implementations (for-loop, foreach, fused) agree to the bit for SGD. For Adam they do not, and differ
    between processors (the square root comes from MKL): where a weight of the update's size meets it, each of two
    implementations with ten roundings is up to 4 ulp off.
    """
    torch_class, options = PLAIN[name]
    start = [w.to(dtype) for w in (*network_weights(SEED), torch.zeros(0), *many_weights())]
    params, twins = parameters(start), parameters(start)
    bound = 2 if torch_class is torch.optim.SGD else 8
    optimizer = optimizer_class(params, torch_class, rho=0.0, backend=backend, **options)
    plain = torch_class(twins, **options)
    for step in range(6):
        if step:
            optimizer.load_state_dict(plain.state_dict())
        before = [p.detach().clone() for p in params]
        give_gradients(params, SEED, step, 1)
        optimizer.first_step()
        assert same(params, before)
        for twin, g in zip(twins, give_gradients(params, SEED, step, 2), strict=True):
            twin.grad = g.clone()
        optimizer.second_step()
        plain.step()
        for p, twin, w in zip(params, twins, before, strict=True):
            assert apart_in_ulp(p, twin, torch.maximum(w.abs(), twin.detach().abs())) <= bound
            p.data.copy_(twin.detach())


@pytest.mark.parametrize("start", [0.0, 0.9])
def test_momentum_may_be_switched_between_steps(start: float, backend: str) -> None:
    params, twins = parameters(network_weights(SEED)), parameters(network_weights(SEED))
    options: dict[str, Any] = {"lr": 0.1, "momentum": start, "dampening": 0.5}
    optimizer = sharpkern.SAM(params, torch.optim.SGD, rho=0.0, backend=backend, **options)
    plain = torch.optim.SGD(twins, **options)
    for step in range(6):
        for group in (optimizer.param_groups[0], plain.param_groups[0]):
            group["momentum"] = start if step < 2 else 0.9 - start if step < 4 else 0.5
        give_gradients(params, SEED, step, 1)
        optimizer.first_step()
        for twin, g in zip(twins, give_gradients(params, SEED, step, 2), strict=True):
            twin.grad = g.clone()
        optimizer.second_step()
        plain.step()
        assert largest_gap(params, twins) < 1e-6


@pytest.mark.parametrize("base", BASES)
def test_options_and_their_defaults_are_those_of_torch(base: str, backend: str) -> None:
    torch_class, _, options = BASES[base]
    params = parameters(network_weights(SEED))
    plain = torch_class(params, **options)
    optimizer = sharpkern.SAM(params, torch_class, backend=backend, **options)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["rho"] == pytest.approx(0.05, rel=0)
    for key in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "betas", "eps"):
        assert optimizer.param_groups[0].get(key) == plain.param_groups[0].get(key)
        assert optimizer.defaults.get(key) == plain.defaults.get(key)


class Clumsy(torch.optim.SGD):
    """A subclass of SGD with a step of its own."""

    def step(self, closure: Any = None) -> Any:
        """Step, then shrink every weight."""
        value = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(0.75)
        return value


WRAPPED: dict[str, tuple[Any, dict[str, Any]]] = {
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
    "adadelta": (torch.optim.Adadelta, {}),  # has a rho of its own, which is not the radius
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "rprop": (torch.optim.Rprop, {"lr": 0.01}),
    "subclass": (Clumsy, {"lr": 0.1, "momentum": 0.9}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "amsgrad-decoupled": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    "amsgrad-foreach": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True, "foreach": True}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_bases_give_torchs_results_bit_for_bit(name: str, dtype: torch.dtype, backend: str) -> None:
    torch_class, options = WRAPPED[name]
    start = [w.to(dtype) for w in network_weights(SEED)]
    params, twins = parameters(start), parameters(start)
    optimizer = sharpkern.ASAM(params, torch_class, rho=0.3, eta=0.1, backend=backend, **options)
    plain = torch_class(twins, **options)
    for step in range(6):
        before = [p.detach().clone() for p in params]
        give_gradients(params, SEED, step, 1)
        optimizer.first_step()
        assert not same(params, before)
        for twin, g in zip(twins, give_gradients(params, SEED, step, 2), strict=True):
            twin.grad = g.clone()
        optimizer.second_step()
        plain.step()
        assert same(params, twins)


def test_a_wrapped_base_follows_the_schedule_and_the_groups(backend: str) -> None:
    params, twins = parameters(network_weights(SEED)), parameters(network_weights(SEED))

    def groups(p: Params) -> list[dict[str, Any]]:
        return [{"params": p[:2], "lr": 0.05}, {"params": p[2:]}]

    optimizer = sharpkern.SAM(groups(params), torch.optim.RMSprop, lr=0.01, backend=backend)
    plain = torch.optim.RMSprop(groups(twins), lr=0.01)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.3) for o in (optimizer, plain)]
    for step in range(6):
        give_gradients(params, SEED, step, 1)
        optimizer.first_step()
        for twin, g in zip(twins, give_gradients(params, SEED, step, 2), strict=True):
            twin.grad = g.clone()
        optimizer.second_step()
        plain.step()
        for schedule in schedules:
            schedule.step()
        assert same(params, twins)


def test_hooks_of_torch_are_called_once_a_step(backend: str) -> None:
    params, calls = parameters(network_weights(SEED)), []
    optimizer = sharpkern.SAM(params, torch.optim.SGD, lr=0.1, backend=backend)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure_of(optimizer, params, network_loss(SEED, 0)))
    assert calls == ["before", "after"]
