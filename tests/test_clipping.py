"""Clipping in the kernels: against torch's functions, called by hand in the same places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_amp import METHODS, Overflowing, Task, closure, make, train
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import sharpkern

NORMED = [name for name in METHODS if not name.startswith("TRACER")]


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """The backends of the CPU."""
    return str(request.param)


def by_hand(method: str, max_norm: float | None, clip_value: float | None, steps: int, backend: str) -> list[Tensor]:
    """Two halves, and torch's own clipping before each: by value both, by norm the second."""
    task = Task()
    optimizer = make(method, task.model, backend=backend)
    params = list(task.model.parameters())
    for _ in range(steps):
        for number, half in enumerate((optimizer.first_step, optimizer.second_step)):
            task.loss().backward()
            if clip_value is not None:
                clip_grad_value_(params, clip_value)
            if max_norm is not None and number == 1:
                clip_grad_norm_(params, max_norm)
            half(zero_grad=True)
    return task.weights()


def in_kernels(method: str, steps: int, **options: Any) -> list[Tensor]:
    """The same, with the options."""
    task = Task()
    train(task, make(method, task.model, **options), options.get("scaler"), steps, "halves")
    return task.weights()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", NORMED)
def test_by_norm(method: str, scaled: bool, backend: str) -> None:
    if "exact" in method:
        pytest.skip("has no halves")
    scaler = GradScaler("cpu", init_scale=2.0**9, growth_interval=3) if scaled else None
    wanted, unclipped = by_hand(method, 0.05, None, 8, backend), by_hand(method, None, None, 8, backend)
    got = in_kernels(method, 8, max_norm=0.05, scaler=scaler, backend=backend)
    for x, y, z in zip(got, wanted, unclipped, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)
        if "average" not in method and not {"adam", "wrapped", "amsgrad"} & set(method.split()):
            assert (x - z).abs().max() > 100 * (x - y).abs().max()  # it made a difference


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", [name for name in METHODS if "exact" not in name])
def test_by_value(method: str, scaled: bool, backend: str) -> None:
    scaler = GradScaler("cpu", init_scale=2.0**9) if scaled else None
    wanted, unclipped = by_hand(method, None, 0.01, 8, backend), by_hand(method, None, None, 8, backend)
    got = in_kernels(method, 8, clip_value=0.01, scaler=scaler, backend=backend)
    assert all(map(torch.equal, got, wanted))  # the same operations
    assert not any(map(torch.equal, got, unclipped))


@pytest.mark.parametrize("method", ["SAM", "FisherSAM natural", "SAM wrapped", "MixSAM"])
def test_by_value_and_then_by_norm(method: str, backend: str) -> None:
    wanted = by_hand(method, 0.03, 0.01, 8, backend)
    got = in_kernels(method, 8, max_norm=0.03, clip_value=0.01, backend=backend)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


def test_a_norm_below_the_bound_changes_nothing(backend: str) -> None:
    assert all(
        map(torch.equal, in_kernels("SAM", 5, max_norm=1e6, backend=backend), by_hand("SAM", None, None, 5, backend))
    )


def test_the_norm_is_one_over_all_groups(backend: str) -> None:
    task, wanted = Task(), by_hand("SAM", 0.05, None, 5, backend)
    first, *others = task.model.parameters()
    groups = [{"params": [first]}, {"params": others}]
    optimizer = sharpkern.SAM(groups, momentum=0.9, lr=0.05, max_norm=0.05, backend=backend)
    train(task, optimizer, None, 5, "halves")
    for x, y in zip(task.weights(), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"clip_value": 1.0}], ids=str)
@pytest.mark.parametrize("which", [3, 4])
def test_a_gradient_that_is_not_finite_skips_the_step(options: dict[str, float], which: int, backend: str) -> None:
    task = Overflowing((which,))
    optimizer = make("SAM", task.model, backend=backend, **options)
    train(task, optimizer, None, 1, "closure")
    before = task.weights()
    train(task, optimizer, None, 1, "closure")
    assert all(map(torch.equal, before, task.weights()))
    train(task, optimizer, None, 1, "closure")
    assert not any(map(torch.equal, before, task.weights()))


def test_torchs_own_function_in_the_closure_clips_both_passes() -> None:
    # ε does not notice: its norm is rho whatever that of g is
    one, two = Task(), Task()
    plain, clipped = make("SAM", one.model), make("SAM", two.model, max_norm=0.05)

    def run() -> Tensor:
        plain.zero_grad()
        loss = one.loss()
        loss.backward()
        clip_grad_norm_(one.model.parameters(), 0.05)
        return loss

    for _ in range(5):
        plain.step(run)
        clipped.step(closure(two, clipped, None))
    for x, y in zip(one.weights(), two.weights(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["max_norm", "clip_value"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        make("SAM", Task().model, **{name: value})


def test_methods_that_refuse() -> None:
    with pytest.raises(ValueError, match="TRACER has no max_norm"):
        make("TRACER", Task().model, max_norm=1.0)
    with pytest.raises(ValueError, match="EvolutionStrategies has no clip_value"):
        sharpkern.EvolutionStrategies(Task().model.parameters(), clip_value=1.0, lr=0.1)
