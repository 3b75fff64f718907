"""Fifty steps on fresh random data against the float64 oracles.

Tolerance of a free run: eight times what the oracle itself loses when it is run in float32, the largest
over all weights, so that a formula that is as good as its plain transcription passes and nothing else does.
Low precision runs in lockstep: each step starts where the optimizer stands, and must end within one unit of
the last place of the oracle's answer, because a flipped rounding would otherwise grow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import oracles
import pytest
import torch
from oracles import (
    BASES,
    VARIANTS,
    Adaptive,
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
    run,
    same,
    spacing,
)
from torch import Tensor

import sharpkern
from sharpkern import ops

STEPS = 50
SEED = 20


@functools.cache
def oracle_run(variant: str, base: str, dtype: torch.dtype) -> tuple[list[Tensor], list[float]]:
    """Run the oracle in this dtype; the weights at the end and the loss of each step."""
    _, oracle_class, options = BASES[base]
    oracle = VARIANTS[variant].oracle(network_weights(SEED), oracle_class(**options), dtype)
    losses = [oracle.step(network_loss(SEED, step)) for step in range(STEPS)]
    return oracle.w, losses


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_steps_follow_the_papers_in_float32(variant: str, base: str, backend: str) -> None:
    exact, losses = oracle_run(variant, base, torch.float64)
    tolerance = 8 * largest_gap(oracle_run(variant, base, torch.float32)[0], exact)
    assert tolerance < 3e-4, "the problem amplifies rounding too much to test anything"
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, variant, base, params, backend)
    seen = [optimizer.step(closure_of(optimizer, params, network_loss(SEED, step))).item() for step in range(STEPS)]
    assert largest_gap(params, exact) <= tolerance
    assert seen == pytest.approx(losses, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("base", ["sgd-dampening", "sgd-nesterov", "adamw"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_steps_follow_the_papers_in_float64(variant: str, base: str, backend: str) -> None:
    if reason := ops.load(backend).why_not(oracles.DEVICE, {torch.float64}):
        pytest.skip(reason)
    exact, _ = oracle_run(variant, base, torch.float64)
    params = parameters([w.double() for w in network_weights(SEED)])
    optimizer = build(sharpkern, variant, base, params, backend)
    assert largest_gap(run(optimizer, params, SEED, range(STEPS)), exact) < 1e-11


DTYPES = {
    "bfloat16": [torch.bfloat16] * 5,
    "float16": [torch.float16] * 5,
    "mixed": [torch.float32, torch.bfloat16, torch.float16, torch.bfloat16, torch.float32],
    "float64-and-float32": [torch.float64, torch.float32, torch.float64, torch.float32, torch.float32],
}


def assert_close_in_ulp(params: Params, expected: Sequence[Tensor], before: Sequence[Tensor], move: float) -> None:
    """Demand one unit of the last place, and float32 rounding of a move of this size."""
    for p, e, b in zip(params, expected, before, strict=True):
        allowed = spacing(torch.maximum(e.abs(), b.cpu().double().abs()), p.dtype) * 1.001 + 2e-6 * move
        assert bool(((p.detach().cpu().double() - e).abs() <= allowed).all()), (p, e)


ROUNDED = [
    (variant, ["sgd-nesterov", "adam-decay", "adamw"][(row + column) % 3], dtypes)
    for row, variant in enumerate(VARIANTS)
    for column, dtypes in enumerate(DTYPES)
]


@pytest.mark.filterwarnings("ignore:.*swallow the perturbation")
@pytest.mark.parametrize(("variant", "base", "dtypes"), ROUNDED)
def test_fifty_steps_in_lockstep_round_once(variant: str, base: str, dtypes: str, backend: str) -> None:
    params = parameters([w.to(d) for w, d in zip(network_weights(SEED), DTYPES[dtypes], strict=True)])
    optimizer = build(sharpkern, variant, base, params, backend)
    oracle = VARIANTS[variant].oracle(params, BASES[base][1](**BASES[base][2]))
    for step in range(STEPS):
        before = [p.detach().clone() for p in params]
        oracle.reset(params)
        perturbed = oracle.ascend(give_gradients(params, SEED, step, 1))
        optimizer.first_step()
        assert_close_in_ulp(params, perturbed, before, 0.3)
        updated = oracle.descend(give_gradients(params, SEED, step, 2))
        optimizer.second_step()
        assert_close_in_ulp(params, updated, before, 0.3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_calls_equal_one_step_bit_for_bit(variant: str, backend: str) -> None:
    runs = []
    for style in ("step", "two"):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, variant, "adamw", params, backend)
        for step in range(5):
            closure = closure_of(optimizer, params, network_loss(SEED, step))
            if style == "step":
                optimizer.step(closure)
                continue
            closure()
            optimizer.first_step(zero_grad=True)
            assert all(p.grad is None or not p.grad.any() for p in params)
            closure()
            optimizer.second_step(zero_grad=True)
            assert all(p.grad is None or not p.grad.any() for p in params)
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_step_returns_the_loss_at_w_and_calls_the_closure_twice(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "sgd", params, backend)
    loss, seen = network_loss(SEED, 0), []
    expected = loss(params).item()

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        seen.append([p.detach().clone() for p in params])
        return closure_of(optimizer, params, loss)()

    with torch.no_grad():
        value = optimizer.step(closure)
    assert value.item() == expected
    assert len(seen) == 2
    assert not torch.equal(seen[0][0], seen[1][0])


def test_groups_have_their_own_options_and_one_norm(backend: str) -> None:
    start = network_weights(SEED)
    params = parameters(start)
    groups = [
        {"params": params[:2], "lr": 0.1, "rho": 0.5, "eta": 0.0},
        {"params": params[2:3], "momentum": 0.5, "weight_decay": 0.1, "eta": 0.3},
        {"params": params[3:], "rho": 0.0, "nesterov": True},
    ]
    optimizer = sharpkern.ASAM(groups, torch.optim.SGD, rho=0.2, eta=0.1, lr=0.05, momentum=0.9, backend=backend)
    bases = [Sgd(0.1, 0.9)] * 2 + [Sgd(0.05, 0.5, weight_decay=0.1)] + [Sgd(0.05, 0.9, nesterov=True)] * 2
    etas = [0.0, 0.0, 0.3, 0.1, 0.1]
    oracle = Oracle(start, bases, [Adaptive(eta) for eta in etas], [0.5, 0.5, 0.2, 0.0, 0.0])
    for step in range(STEPS):
        optimizer.step(closure_of(optimizer, params, network_loss(SEED, step)))
        oracle.step(network_loss(SEED, step))
    assert largest_gap(params, oracle.w) < 2e-5


def test_a_group_that_is_not_scaled_has_s_one(backend: str) -> None:
    start = network_weights(SEED)
    params = parameters(start)
    groups: list[dict[str, Any]] = [{"params": params[::2]}, {"params": params[1::2], "scaled": False}]
    optimizer = sharpkern.ASAM(groups, torch.optim.SGD, rho=0.4, eta=0.01, lr=0.1, backend=backend)
    order = [*start[::2], *start[1::2]]
    oracle = Oracle(order, Sgd(0.1), [Adaptive(0.01)] * 3 + [Isotropic()] * 2, 0.4)
    for step in range(STEPS):
        loss = network_loss(SEED, step)
        optimizer.step(closure_of(optimizer, params, loss))
        oracle.step(lambda w, loss=loss: loss([w[0], w[3], w[1], w[4], w[2]]))  # type: ignore[misc]
    assert largest_gap([*params[::2], *params[1::2]], oracle.w) < 2e-5


def test_a_group_added_later_joins_the_norm(backend: str) -> None:
    weights = network_weights(SEED)
    runs = []
    for late in (False, True):
        params = parameters(weights)
        first: dict[str, Any] = {"params": params[:3]}
        rest: dict[str, Any] = {"params": params[3:], "rho": 0.7, "lr": 0.02}
        optimizer = sharpkern.SAM([first] if late else [first, rest], rho=0.3, lr=0.1, momentum=0.9, backend=backend)
        if late:
            optimizer.add_param_group(rest)
        runs.append(run(optimizer, params, SEED, range(3)))
    assert same(*runs)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "warm-up": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("style", ["step", "two"])
@pytest.mark.parametrize("base", ["sgd-nesterov", "adamw"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_work_without_warnings(scheduler: str, base: str, style: str, backend: str) -> None:
    """The rates are those that the same scheduler gives torch's optimizer, and they are obeyed."""
    torch_class, oracle_class, options = BASES[base]
    params, twins = parameters(network_weights(SEED)), parameters(network_weights(SEED))
    optimizer, plain = build(sharpkern, "sam", base, params, backend), torch_class(twins, **options)
    schedules = [SCHEDULERS[scheduler](o) for o in (optimizer, plain)]
    oracle = Oracle(params, oracle_class(**options), rho=0.3)
    for step in range(10):
        group = plain.param_groups[0]
        now = {key: group[key] for key in ("lr", "momentum", "betas") if key in group}
        assert {key: optimizer.param_groups[0][key] for key in now} == now
        oracle.bases = [oracle_class(**(options | now))] * len(params)
        closure = closure_of(optimizer, params, network_loss(SEED, step))
        if style == "step":
            optimizer.step(closure)
        else:
            closure()
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step()
        oracle.step(network_loss(SEED, step))
        plain.step()
        for schedule in schedules:
            schedule.step()
    assert largest_gap(params, oracle.w) < 2e-5


def test_rho_may_be_scheduled_by_group(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "asam", "sgd-momentum", params, backend)
    oracle = VARIANTS["asam"].oracle(params, Sgd(0.05, 0.9))
    for step in range(20):
        optimizer.param_groups[0]["rho"] = rho = 0.02 * step
        oracle.rhos = [rho] * len(params)
        optimizer.step(closure_of(optimizer, params, network_loss(SEED, step)))
        oracle.step(network_loss(SEED, step))
    assert largest_gap(params, oracle.w) < 2e-5


def test_a_learning_rate_may_be_a_tensor(backend: str) -> None:
    runs = []
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        params = parameters(network_weights(SEED))
        optimizer = sharpkern.SAM(params, torch.optim.SGD, lr=lr, momentum=0.9, backend=backend)
        runs.append(run(optimizer, params, SEED, range(5)))
    assert largest_gap(*runs) < 1e-6
