"""One test for each bug that other SAM packages ship, and for what their users ask for most."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from oracles import (
    BASES,
    VARIANTS,
    Isotropic,
    Oracle,
    Params,
    Sgd,
    build,
    closure_of,
    give_gradients,
    largest_gap,
    network_loss,
    network_weights,
    parameters,
    same,
)
from torch import Tensor

import sharpkern

SEED = 50
BOTH = pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])


def sam(params: Params, backend: str, **options: Any) -> Any:
    """Make SAM over SGD with momentum."""
    arguments = {"rho": 0.1, "lr": 0.1, "momentum": 0.9, **options}
    return sharpkern.SAM(params, torch.optim.SGD, backend=backend, **arguments)


# Checkpoints lose the base optimizer's momentum and moments (davda54/sam, pytorch_optimizer, Composer).


@BOTH
def test_a_checkpoint_holds_the_momentum_and_moments(base: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", base, params, backend)
    optimizer.step(closure_of(optimizer, params, network_loss(SEED, 0)))
    saved = optimizer.state_dict()["state"]
    names = {"sgd-momentum": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq"]}[base]
    assert sorted(saved) == list(range(len(params)))
    for index, p in enumerate(params):
        assert all(saved[index][name].shape == p.shape and saved[index][name].any() for name in names)


# A parameter with no gradient in the second pass stays perturbed (davda54/sam, pytorch_optimizer, ASAM).


@pytest.mark.parametrize("base", ["sgd-dampening", "adamw"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_in_the_second_pass_restores_and_does_not_update(variant: str, base: str, backend: str) -> None:
    """The momentum, moments and step count of such a parameter wait for its next gradient."""
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, variant, base, params, backend)
    oracle = VARIANTS[variant].oracle(params, BASES[base][1](**BASES[base][2]))
    for step in range(5):
        before = [p.detach().clone() for p in params]
        oracle.ascend(give_gradients(params, SEED, step, 1))
        optimizer.first_step(zero_grad=True)
        g2: list[Tensor | None] = [*give_gradients(params, SEED, step, 2)]
        if step % 2 == 0:
            g2[0] = params[0].grad = None
        oracle.descend(g2)
        optimizer.second_step()
        assert same(params[:1], before[:1]) == (step % 2 == 0)
        assert largest_gap(params, oracle.w) < 1e-5


# Add-then-subtract restore changes 0.4 % of float32 weights a step, and leaves NaN after an infinite gradient
# (Composer, GSAM).


@pytest.mark.parametrize("variant", VARIANTS)
def test_restore_changes_no_weight_at_all(variant: str, backend: str) -> None:
    params = parameters([torch.randn(100_003, generator=torch.Generator().manual_seed(SEED))])
    before = params[0].detach().clone()
    give_gradients(params, SEED, 3)
    optimizer = build(sharpkern, variant, "sgd", params, backend, rho=3.0)
    optimizer.perturb()
    assert not same(params, [before])
    optimizer.restore()
    assert same(params, [before])


@BOTH
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bad_first_gradient_skips_the_step(variant: str, bad: float, base: str, backend: str) -> None:
    """Weights, moments, step counts and the average Fisher stay, and the next step is as if nothing had been."""
    runs = []
    for trouble in (False, True):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, variant, base, params, backend)
        for step in range(3):
            if trouble:
                before = [p.detach().clone() for p in params]
                give_gradients(params, SEED, step, 9)[step].view(-1)[-1] = bad
                optimizer.first_step()
                assert same(params, before)
                give_gradients(params, SEED, step, 8)
                optimizer.second_step()
                assert same(params, before)
            optimizer.step(closure_of(optimizer, params, network_loss(SEED, step)))
        runs.append([p.detach() for p in params])
    assert same(*runs)


@BOTH
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_second_gradient_is_skipped_when_asked(bad: float, base: str, backend: str) -> None:
    runs = []
    for trouble in (False, True):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, "asam", base, params, backend, skip_nonfinite=True)
        for step in range(3):
            if trouble:
                before = [p.detach().clone() for p in params]
                give_gradients(params, SEED, step, 9)
                optimizer.first_step()
                give_gradients(params, SEED, step, 8)[-step].view(-1)[0] = bad
                optimizer.second_step()
                assert same(params, before)
            optimizer.step(closure_of(optimizer, params, network_loss(SEED, step)))
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_a_bad_second_gradient_otherwise_goes_where_torch_takes_it(backend: str) -> None:
    params = parameters([torch.ones(4), torch.ones(2)])
    optimizer = sam(params, backend)
    give_gradients(params, SEED, 1)
    optimizer.first_step()
    give_gradients(params, SEED, 2)[0][1] = math.inf
    optimizer.second_step()
    assert params[0].isfinite().tolist() == [True, False, True, True]
    assert bool(params[1].isfinite().all())


# Restore by `p.data = old_p` moves every parameter's storage: flat buffers detach, graphs break
# (davda54/sam, pytorch_optimizer).


def test_weights_stay_in_their_storage_and_flat_buffers_attached(backend: str) -> None:
    flat = torch.randn(30, generator=torch.Generator().manual_seed(SEED))
    params = [torch.nn.Parameter(flat[:12].view(3, 4)), torch.nn.Parameter(flat[12:])]
    addresses = [p.data_ptr() for p in params]
    optimizer = sam(params, backend)
    for step in range(3):
        give_gradients(params, SEED, step, 1)
        optimizer.first_step()
        give_gradients(params, SEED, step, 2)
        optimizer.second_step()
        assert [p.data_ptr() for p in params] == addresses
        assert same([flat], [torch.cat([p.detach().reshape(-1) for p in params])])


@pytest.mark.parametrize("moment", ["first", "second"])
def test_a_graph_that_is_reused_gives_torchs_clear_error(moment: str, backend: str) -> None:
    params = parameters([torch.randn(5, generator=torch.Generator().manual_seed(SEED))])
    optimizer = sam(params, backend)
    loss = params[0].square().sum()
    loss.backward(retain_graph=True)
    optimizer.first_step()
    if moment == "second":
        loss = params[0].square().sum()
        loss.backward(retain_graph=True)
        optimizer.second_step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Zero gradient in fp16 makes weights NaN: 1e-12 is 0 in fp16 (davda54/sam).


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_zero_gradient_perturbs_nothing_and_steps_the_base(variant: str, dtype: torch.dtype, backend: str) -> None:
    params = parameters([w.to(dtype) for w in network_weights(SEED)])
    before = [p.detach().clone() for p in params]
    optimizer = build(sharpkern, variant, "sgd-dampening", params, backend)
    give_gradients(params, SEED, scale=0.0)
    optimizer.first_step()
    assert same(params, before)
    oracle = VARIANTS[variant].oracle(before, Sgd(0.1, 0.8, 0.3, 0.01))
    oracle.ascend([torch.zeros_like(p) for p in params])
    oracle.descend(give_gradients(params, SEED, 1))
    optimizer.second_step()
    for p, w in zip(params, oracle.w, strict=True):
        torch.testing.assert_close(p.detach(), w.to(dtype))


# Norm in the gradient's dtype: fp16 overflows, and eps silently becomes 0 (all).


@pytest.mark.parametrize("size", [6e4, 300.0, 1e-4, 6e-8])
def test_the_norm_of_half_gradients_neither_overflows_nor_vanishes(size: float, backend: str) -> None:
    params = parameters([torch.zeros(64, dtype=torch.float16), torch.zeros(36, dtype=torch.float16)])
    optimizer = sam(params, backend, rho=1.0)
    for p in params:
        p.grad = torch.full_like(p, size)
    optimizer.perturb()
    for p in params:
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.1))


@pytest.mark.parametrize("size", [1e15, 1e-15])
def test_the_norm_of_float32_gradients_keeps_extreme_sizes(size: float, backend: str) -> None:
    params = parameters([torch.zeros(100)])
    optimizer = sam(params, backend, rho=1.0)
    params[0].grad = torch.full((100,), size)
    optimizer.perturb()
    torch.testing.assert_close(params[0].detach(), torch.full((100,), 0.1))


# A stale eps is subtracted from a parameter that was not perturbed this step (pytorch_optimizer GSAM).


@BOTH
@pytest.mark.parametrize("variant", ["sam", "asam", "fisher-inverse"])
def test_a_parameter_without_a_first_gradient_is_not_restored_to_the_past(
    variant: str, base: str, backend: str
) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, variant, base, params, backend)
    oracle = VARIANTS[variant].oracle(params, BASES[base][1](**BASES[base][2]))
    for step in range(4):
        first: list[Tensor | None] = [*give_gradients(params, SEED, step, 1)]
        if step % 2:
            first[0] = params[0].grad = None
        before = params[0].detach().clone()
        optimizer.first_step()
        oracle.ascend(first)
        assert same(params[:1], [before]) == bool(step % 2)
        oracle.descend(give_gradients(params, SEED, step, 2))
        optimizer.second_step()
        assert largest_gap(params, oracle.w) < 1e-5


def test_no_gradient_anywhere_changes_nothing(backend: str) -> None:
    params, before = parameters(network_weights(SEED)), network_weights(SEED)
    optimizer = sam(params, backend, weight_decay=0.1)
    optimizer.first_step()
    optimizer.second_step()
    assert same(params, before)


# Gradient accumulation leaves weights perturbed on non-boundary steps (F-SAM script).


@pytest.mark.parametrize("style", ["step", "two"])
def test_accumulated_gradients_equal_the_whole_batch(style: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = sam(params, backend)
    oracle = Oracle(params, Sgd(0.1, 0.9), Isotropic(), 0.1)
    for step in range(5):
        losses = [network_loss(SEED, 4 * step + part) for part in range(4)]

        def accumulate(losses: Any = losses) -> Tensor:
            before = [p.detach().clone() for p in params]
            optimizer.zero_grad()
            values = [loss(params) / len(losses) for loss in losses]
            for value in values:
                value.backward()
                assert same(params, before)
            return torch.stack([value.detach() for value in values]).sum()

        if style == "step":
            optimizer.step(accumulate)
        else:
            accumulate()
            optimizer.first_step(zero_grad=True)
            accumulate()
            optimizer.second_step(zero_grad=True)
        oracle.step(lambda w, losses=losses: sum(loss(w) for loss in losses) / len(losses))  # type: ignore[misc]
    assert largest_gap(params, oracle.w) < 1e-5


# BatchNorm running statistics are touched twice a step (davda54/sam 17, 80).


@pytest.mark.parametrize("style", ["step", "two"])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_running_statistics_are_touched_once_a_step(rho: float, style: str, backend: str) -> None:
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    twin = copy.deepcopy(model)
    optimizer = sharpkern.SAM(model.parameters(), rho=rho, lr=0.1, model=model, backend=backend)
    for _ in range(3):
        x = torch.randn(8, 3)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(x).square().mean()
            loss.backward()
            return loss

        twin.load_state_dict({**twin.state_dict(), **dict(model.named_parameters())})
        twin(x)
        if style == "step":
            optimizer.step(closure)
        else:
            closure()
            optimizer.first_step()
            closure()
            optimizer.second_step()
        assert same([b.float() for b in model.buffers()], [b.float() for b in twin.buffers()])
