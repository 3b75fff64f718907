"""Evolution strategies: the estimate, the way back, and what is learned, from forward passes alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import exactly
from torch import Tensor, nn

from sharpkern import EvolutionStrategies
from sharpkern.covariance import S_MAX, S_MIN
from sharpkern.evolution import utilities

GRADIENT = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], dtype=torch.float64)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Six weights in two tensors."""
    return [nn.Parameter(x.to(dtype)) for x in (torch.linspace(-1, 1, 4), torch.tensor([0.3, -0.7]))]


def flat(params: list[nn.Parameter]) -> Tensor:
    """All weights, copied."""
    return torch.cat([p.detach().reshape(-1) for p in params]).clone()


def quadratic(params: list[nn.Parameter]) -> Tensor:
    """A loss whose gradient at the start is GRADIENT."""
    w = torch.cat([p.reshape(-1) for p in params])
    start = torch.cat([p.reshape(-1) for p in parameters()]).to(w.dtype)
    return (GRADIENT.to(w.dtype) * (w - start)).sum() + (torch.arange(1, 7, dtype=w.dtype) * (w - start) ** 2).sum()


def estimates(backend: str, count: int, pairs: int, **options: Any) -> Tensor:
    """The estimated gradients of several first steps, from what plain SGD makes of them."""
    rows = []
    for seed in range(count):
        params = parameters()
        before = flat(params)
        optimizer = EvolutionStrategies(params, lr=1.0, pairs=pairs, seed=seed, backend=backend, **options)
        optimizer.step(lambda params=params: quadratic(params))
        rows.append(before - flat(params))
    return torch.stack(rows)


def test_the_estimate_converges_to_the_gradient(backend: str) -> None:
    """Antithetic pairs leave the curvature out: the mean is the gradient, the error of K pairs (|g|² + g_i²)/K."""
    for pairs, count in ((1, 600), (8, 100)):
        found = estimates(backend, count, pairs, rho=0.1)
        variance = (GRADIENT.square().sum() + GRADIENT.square()) / pairs
        assert ((found.mean(0) - GRADIENT).abs() < 5 * (variance / count).sqrt()).all()
        assert ((found.var(0) / variance - 1).abs() < 6 * (10 / count) ** 0.5).all()


def test_the_estimate_is_the_same_on_every_backend(backend: str) -> None:
    torch.testing.assert_close(estimates(backend, 3, 5), estimates("reference", 3, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop], ids=lambda b: b.__name__)
def test_the_loss_falls(base: Any, backend: str) -> None:
    params = parameters(torch.float32)
    optimizer = EvolutionStrategies(params, base, rho=0.1, lr=0.02, backend=backend)
    losses = [optimizer.step(lambda: quadratic(params)).item() for _ in range(60)]
    assert losses[-1] < losses[0] - 0.5
    assert all(p.grad is None for p in params)


def test_passes_are_forward_alone_and_antithetic(backend: str) -> None:
    params, seen = parameters(), []
    before = flat(params)

    def closure() -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(flat(params) - before)
        return quadratic(params)

    optimizer = EvolutionStrategies(params, rho=0.3, pairs=3, lr=0.0, backend=backend)
    mean = optimizer.step(closure)
    assert len(seen) == 6
    for up, down in zip(seen[0::2], seen[1::2], strict=True):
        torch.testing.assert_close(up, -down, rtol=1e-9, atol=1e-15)
    assert len({tuple(x.tolist()) for x in seen}) == 6
    start = torch.stack(seen)
    losses = (start @ GRADIENT) + (start.square() @ torch.arange(1, 7, dtype=torch.float64))
    torch.testing.assert_close(mean, losses.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_way_back_is_exact(dtype: torch.dtype, backend: str) -> None:
    params = [nn.Parameter(torch.randn(1000).to(dtype))]
    before = params[0].detach().clone()
    optimizer = EvolutionStrategies(params, rho=30.0, lr=0.0, backend=backend)
    for _ in range(5):
        optimizer.step(lambda: params[0].float().sum())
        assert exactly(params[0], before)

    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ZeroDivisionError
        return params[0].float().sum()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert exactly(params[0], before)


def test_in_place_keeps_no_copy_and_drifts_by_rounding(backend: str) -> None:
    """Each evaluation rounds once: after n of them an error of about sqrt(n) half units in the last place."""
    p = nn.Parameter(1 + torch.rand(10_000))
    before = p.detach().clone()
    optimizer = EvolutionStrategies([p], rho=1.0, pairs=8, lr=0.0, in_place=True, backend=backend)
    steps = 10
    for _ in range(steps):
        optimizer.step(lambda: p.sum())
    assert optimizer._plan is not None
    assert not any(t.saved for t in optimizer._plan.tensors)
    assert not optimizer.state[p]
    ulp = torch.finfo(torch.float32).eps
    drift = (p.detach() - before).double().square().mean().sqrt() / ulp
    assert 0 < drift < (3 * 8 * steps) ** 0.5  # three additions a pair

    def closure() -> Tensor:
        raise ZeroDivisionError

    middle = p.detach().clone()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert (p.detach() - middle).abs().max() <= 2 * ulp


def test_in_place_estimates_alike(backend: str) -> None:
    torch.testing.assert_close(estimates(backend, 3, 5, in_place=True), estimates(backend, 3, 5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_skips_the_step(bad: float, backend: str) -> None:
    params = parameters()
    optimizer = EvolutionStrategies(params, lr=0.1, pairs=2, learned=True, backend=backend)
    optimizer.step(lambda: quadratic(params))
    before, s = flat(params), [optimizer.state[p]["covariance"].clone() for p in params]
    losses = iter([1.0, 2.0, bad, 1.0])
    optimizer.step(lambda: next(losses))
    assert torch.equal(flat(params), before)
    assert all(torch.equal(optimizer.state[p]["covariance"], x) for p, x in zip(params, s, strict=True))


def test_utilities_follow_the_ranks() -> None:
    u = utilities(torch.tensor([3.0, 1.0, 2.0, 9.0]))
    assert u.argsort(descending=True).tolist()[:2] == [1, 2]
    assert u.sum().abs() < 1e-6
    raw = torch.tensor([1.0986123, 0.4054651, 0.0, 0.0])  # ln 3 - ln i
    torch.testing.assert_close(u[[1, 2, 0, 3]], raw / raw.sum() - 0.25)


@pytest.mark.parametrize("rate", [0.3, 1e6])
def test_learned_s_narrows_where_the_loss_is_steep(rate: float, backend: str) -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = EvolutionStrategies([p], rho=1.0, lr=0.0, pairs=32, learned=True, lr_covariance=rate, backend=backend)
    for _ in range(20):
        optimizer.step(lambda: 100 * p[0] ** 2 + 0.01 * p[1] ** 2)
    s = optimizer.state[p]["covariance"]
    assert rate > 1 or s[0] < 0.5 * s[1]  # a rate too large takes s to its bounds
    assert (s >= S_MIN * (1 - 1e-6)).all()
    assert (s <= S_MAX * (1 + 1e-6)).all()


def test_learned_s_moves_as_stated(backend: str) -> None:
    params = parameters()
    optimizer = EvolutionStrategies(
        params, rho=0.5, lr=0.0, pairs=3, learned=True, lr_covariance=0.7, seed=2, backend=backend
    )
    before, seen, losses = flat(params), [], []

    def closure() -> Tensor:
        seen.append((flat(params) - before) / (0.5 / 6**0.5))
        losses.append(quadratic(params))
        return losses[-1]

    optimizer.step(closure)
    u = utilities(torch.stack(losses))
    slope = ((u[0::2] + u[1::2])[:, None] * (torch.stack(seen)[0::2].square() - 1)).sum(0)
    s = torch.cat([optimizer.state[p]["covariance"] for p in params])
    torch.testing.assert_close(s, (0.35 * slope).exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_resumed_run_is_the_same(way: str, backend: str) -> None:
    params = parameters()
    options = {"lr": 0.05, "pairs": 3, "learned": True, "momentum": 0.9, "backend": backend}
    optimizer = EvolutionStrategies(params, **options)
    for _ in range(3):
        optimizer.step(lambda: quadratic(params))
    if way == "state_dict":
        others = copy.deepcopy(params)
        again = EvolutionStrategies(others, **options)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        again = copy.deepcopy(optimizer)
        others = [p for group in again.param_groups for p in group["params"]]
    for run, weights in ((optimizer, params), (again, others)):
        for _ in range(3):
            run.step(lambda weights=weights: quadratic(weights))
    assert torch.equal(flat(params), flat(others))


def test_running_statistics_move_once_a_step(backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(8, 3)
    optimizer = EvolutionStrategies(model.parameters(), lr=0.1, pairs=4, model=model, backend=backend)
    optimizer.step(lambda: model(x).square().mean())
    assert model[1].num_batches_tracked.item() == 1


def test_what_cannot_be(backend: str) -> None:
    params = parameters()
    for options, message in (
        ({"pairs": 0}, "pairs=0: wanted an int from 1 on"),
        ({"pairs": 2.5}, "pairs=2.5"),
        ({"in_place": "yes"}, "in_place='yes': wanted True or False"),
        ({"learned": 2}, "learned=2: wanted one of True, False"),
        ({"rho": 0.0}, "rho=0.0: wanted a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            EvolutionStrategies(params, lr=0.1, backend=backend, **options)
    optimizer = EvolutionStrategies(params, lr=0.1, backend=backend)
    with pytest.raises(RuntimeError, match=r"call step\(closure\)"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="without backward"):
        optimizer.step()
