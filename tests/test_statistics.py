"""Running statistics are touched once a step, whatever holds them, and as without SAM where rho = 0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles import same
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import sharpkern


class Centred(nn.Module):
    """A norm of somebody's own: odd names, one buffer written in place, one replaced, one made at the first pass."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("calls", None)
        self.register_buffer("mask", torch.ones(50, 50, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and take note."""
        if self.training:
            with torch.no_grad():
                self.calls = torch.zeros(()) if self.calls is None else self.calls + 1
                self.centre.lerp_(x.mean(0), 0.1)
                self.spread = 0.9 * self.spread + 0.1 * x.var(0)
        return self.gain * (x - x.mean(0)) / (x.var(0) + 1e-3).sqrt()


def hidden(norm: nn.Module) -> nn.Module:
    """A network with this norm."""
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 1))


class Instance(nn.Module):
    """Instance norm over the features as places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the features."""
        return self.norm(x[:, None])[:, 0]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: hidden(nn.BatchNorm1d(4)),
    "cumulative": lambda: hidden(nn.BatchNorm1d(4, momentum=None)),
    "instance": lambda: hidden(Instance()),
    "custom": lambda: hidden(Centred(4)),
    "spectral": lambda: nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)),
}
# Their outputs in training do not depend on what the buffers hold.
NORMS = [name for name in MODELS if name != "spectral"]
STYLES = ("step", "halves", "one perturbation", "one a part", "m_sharpness", "passes")


def batches(steps: int, parts: int) -> Iterator[list[Tensor]]:
    """Fresh data, the same in every run."""
    draw = torch.Generator().manual_seed(11)
    for _ in range(steps):
        yield [torch.randn(8, 3, generator=draw) for _ in range(parts)]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that is no mean of squares of normalised things."""
    loss: Tensor = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
    return loss


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor]) -> None:
    """One step of torch."""
    optimizer.zero_grad()
    for x in parts:
        (loss_of(model, x) / len(parts)).backward()
    optimizer.step()


def sharp(model: nn.Module, optimizer: Any, parts: list[Tensor], style: str) -> None:
    """One step in this style."""

    def backward(parts: list[Tensor] = parts, zero: bool = True) -> None:
        if zero:
            optimizer.zero_grad()
        for x in parts:
            (loss_of(model, x) / len(parts)).backward()

    if style == "step":
        optimizer.step(backward)
    elif style in {"halves", "one perturbation"}:
        if optimizer.perturbation.passes == 2:
            backward()
        optimizer.first_step()
        backward()
        optimizer.second_step()
    elif style == "one a part":
        for i, x in enumerate(parts):
            backward([x])
            optimizer.first_step()
            backward([x])
            optimizer.second_step(accumulate=i < len(parts) - 1)
    elif style == "m_sharpness":
        sharpkern.m_sharpness(optimizer, [lambda x=x: [backward([x]), 0.0][1] for x in parts])
    else:
        optimizer.zero_grad()
        for x in parts:
            sharpkern.passes(optimizer, lambda x=x: (loss_of(model, x) / len(parts)).backward())
        optimizer.step()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NORMS)
def test_with_rho_0_weights_and_statistics_are_those_without_sam(name: str, style: str) -> None:
    """20 steps. Statistics follow the weights, which agree with torch's within some rounding."""
    model = MODELS[name]()
    twin = copy.deepcopy(model)
    optimizer = sharpkern.SAM(model.parameters(), rho=0.0, lr=0.1, momentum=0.9, model=model)
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for parts in batches(20, 1 if style in {"step", "halves"} else 3):
        sharp(model, optimizer, parts, style)
        plain(twin, other, parts)
    for (key, x), y in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


METHODS: dict[str, Any] = {
    "SAM": {},
    "ASAM": {},
    "RandomSAM": {},
    "MFVI": {},
    "TRACER": {"rho": 0.01},
    "EvolutionStrategies": {"rho": 0.3, "pairs": 2},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_leaves_what_its_first_pass_made_of_them(name: str, method: str) -> None:
    """That of a method of one pass is the one pass; that of evolution strategies the first of many."""
    model = MODELS[name]()
    optimizer = getattr(sharpkern, method)(model.parameters(), lr=0.1, model=model, **METHODS[method])
    for (x,) in batches(4, 1):
        seen: list[list[Tensor]] = []
        before = [b.clone() for b in model.buffers()]

        def closure(x: Tensor = x, seen: list[list[Tensor]] = seen) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, x)
            if torch.is_grad_enabled():
                loss.backward()
            seen.append([b.clone() for b in model.buffers()])
            return loss

        optimizer.step(closure)
        assert len(seen) == {"RandomSAM": 1, "MFVI": 1, "EvolutionStrategies": 4}.get(method, 2)
        assert all(not same(s, seen[0]) for s in seen[1:])
        assert same(list(model.buffers()), seen[0])
        assert not same(list(model.buffers()), before)


@pytest.mark.parametrize("name", MODELS)
def test_frozen_statistics_of_anything(name: str) -> None:
    model = MODELS[name]()
    x = torch.randn(8, 3)
    loss_of(model, x)
    buffers = list(model.buffers())
    before = [b.clone() for b in buffers]
    with sharpkern.frozen_statistics(model):
        loss_of(model, x + 1)
        assert not same(list(model.buffers()), before)
    assert same(list(model.buffers()), before)
    assert all(x is y for x, y in zip(model.buffers(), buffers, strict=True))


def test_those_of_sync_batch_norm_count() -> None:
    """Written by hand, since its forward pass in training wants a GPU."""
    norm = nn.SyncBatchNorm(4)
    optimizer = sharpkern.SAM(norm.parameters(), lr=0.1, model=norm)
    optimizer.first_step()
    for buffer in norm.buffers():
        buffer.add_(1)
    optimizer.second_step()
    assert [float(b.sum()) for b in norm.buffers()] == [0.0, 4.0, 0.0]


def test_an_analysis_between_the_passes_touches_none() -> None:
    """Also not where no first pass has shown which buffers are statistics."""
    model = MODELS["custom"]()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1, model=model)
    x = torch.randn(8, 3)
    loss_of(model, x).backward()
    for _ in range(2):
        before = [b.clone() for b in model.buffers()]
        with optimizer.perturbed():
            loss_of(model, x)
        assert same(list(model.buffers()), before)
    optimizer.first_step(zero_grad=True)
    loss_of(model, x).backward()
    optimizer.second_step()
    assert same(list(model.buffers()), before)


def test_constant_buffers_are_not_copied() -> None:
    model = MODELS["custom"]()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1, model=model)
    for (x,) in batches(3, 1):
        loss_of(model, x).backward()
        optimizer.first_step(zero_grad=True)
        assert optimizer._statistics._snapshot is not None
        assert {name for _, name, _ in optimizer._statistics._snapshot._places} == {"centre", "spread", "calls"}
        loss_of(model, x).backward()
        optimizer.second_step(zero_grad=True)


def test_an_exception_in_the_second_pass_leaves_them_as_the_first_made_them() -> None:
    model = MODELS["custom"]()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1, model=model)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, torch.randn(8, 3))
        loss.backward()
        seen.append([b.clone() for b in model.buffers()])
        if len(seen) == 2:
            raise KeyError("of the user")
        return loss

    with pytest.raises(KeyError, match="of the user"):
        optimizer.step(closure)
    assert same(list(model.buffers()), seen[0])


@pytest.mark.parametrize("name", ["batch", "custom"])
def test_within_torch_compile(name: str) -> None:
    model = MODELS[name]()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1, rho=0.3, model=compiled)
    other = sharpkern.SAM(twin.parameters(), lr=0.1, rho=0.3, model=twin)
    for parts in batches(3, 1):
        sharp(compiled, optimizer, parts, "step")
        sharp(twin, other, parts, "step")
    for x, y in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y)


def test_a_model_of_another_state_dict_and_a_copy_of_the_optimizer() -> None:
    model = MODELS["custom"]()
    loss_of(model, torch.randn(8, 3))
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1, rho=0.3, model=model)
    model.load_state_dict({
        key: value + 1 if value.is_floating_point() else value for key, value in model.state_dict().items()
    })
    twin, other = copy.deepcopy((model, optimizer))
    for parts in batches(3, 1):
        sharp(model, optimizer, parts, "step")
        sharp(twin, other, parts, "halves")
    assert same(list(model.state_dict().values()), list(twin.state_dict().values()))


def test_dropout_draws_a_mask_a_pass_and_the_recipe_shares_it() -> None:
    model = nn.Dropout(0.5)
    weight = nn.Parameter(torch.ones(100))
    optimizer = sharpkern.SAM([weight], lr=0.1)
    masks: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        dropped = model(weight)
        masks.append(dropped.detach() != 0)
        loss: Tensor = dropped.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(masks[0], masks[1])
    start = torch.get_rng_state()

    def shared() -> Tensor:
        torch.set_rng_state(start)
        return closure()

    optimizer.step(shared)
    assert torch.equal(masks[2], masks[3])
