"""Flatness, measured: against the papers' formulas and an exact Hessian, every bit of the weights back in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn.functional import cross_entropy

import sharpkern
from sharpkern.analysis import (
    Estimate,
    Hessian,
    filter_normalised,
    fisher_trace,
    hessian_trace,
    loss_surface,
    perturbation_curve,
    sharpness,
    top_eigenvalue,
)


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    torch.set_num_threads(1)


class Problem:
    """A small classifier with its batch."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        self.inputs, self.targets = torch.randn(24, 4, dtype=dtype), torch.randint(3, (24,))
        self.parameters = list(self.model.parameters())

    def loss(self) -> Tensor:
        """The loss at the weights as they stand."""
        return cross_entropy(self.model(self.inputs), self.targets)

    def loss_of(self, flat: Tensor) -> Tensor:
        """The loss at other weights, all in one vector."""
        parts = flat.split([p.numel() for p in self.parameters])
        names = [name for name, _ in self.model.named_parameters()]
        values = {n: x.view_as(p) for n, x, p in zip(names, parts, self.parameters, strict=True)}
        return cross_entropy(functional_call(self.model, values, (self.inputs,)), self.targets)

    @property
    def w(self) -> Tensor:
        """The weights in one vector."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def hessian(self) -> Tensor:
        """The Hessian at the weights, exact."""
        return jacrev(grad(self.loss_of))(self.w)


@pytest.fixture
def problem() -> Problem:
    return Problem()


COVARIANCES: dict[str, tuple[Callable[..., Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "SAM": (sharpkern.SAM, lambda w, g: torch.ones_like(w)),
    "ASAM": (lambda p, rho: sharpkern.ASAM(p, rho=rho, eta=0.01), lambda w, g: (w.abs() + 0.01) ** 2),
    "FisherSAM": (lambda p, rho: sharpkern.FisherSAM(p, rho=rho, eta=3.0), lambda w, g: 1 / (1 + 3 * g**2)),
}


@pytest.mark.parametrize("name", COVARIANCES)
def test_worst_case_of_a_covariance(problem: Problem, name: str) -> None:
    make, s_of = COVARIANCES[name]
    g = grad(problem.loss_of)(problem.w)
    s = s_of(problem.w, g)
    epsilon = 0.3 * s * g / (s * g**2).sum().sqrt()
    found = sharpness(make(problem.parameters, rho=0.3), problem.loss)
    assert found.loss == pytest.approx(problem.loss().item())
    assert found.perturbed == pytest.approx(problem.loss_of(problem.w + epsilon).item())
    assert found.length == pytest.approx(epsilon.norm().item())
    assert found.gap == pytest.approx(found.perturbed - found.loss)
    assert found.gap > 0


def test_noise_has_its_length_on_average(problem: Problem) -> None:
    lengths = [
        sharpness(sharpkern.RandomSAM(problem.parameters, rho=0.3, seed=k), problem.loss).length for k in range(64)
    ]
    estimate = Estimate.of(x**2 for x in lengths)
    assert len(set(lengths)) == 64
    assert abs(estimate.mean - 0.3**2) < 5 * estimate.error


def test_a_curve_is_sharpness_at_each_radius(problem: Problem) -> None:
    radii = [0.0, 0.1, 0.5]
    optimizer = sharpkern.ASAM(problem.parameters, rho=0.2)
    found = perturbation_curve(optimizer, problem.loss, iter(radii), lambda: problem.loss().item())
    assert found == [sharpness(sharpkern.ASAM(problem.parameters, rho=rho), problem.loss).perturbed for rho in radii]
    assert (optimizer.param_groups[0]["rho"],) == (0.2,)


def test_a_curve_of_tracer_goes_by_its_radius(problem: Problem) -> None:
    optimizer = sharpkern.TRACER(problem.parameters, rho=7.0, radius=0.1)
    w = problem.w
    lengths = perturbation_curve(optimizer, problem.loss, [0.05, 0.2], lambda: (problem.w - w).norm().item())
    assert lengths == pytest.approx([0.05, 0.2])
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["radius"]) == (7.0, 0.1)


def test_noise_is_the_same_for_every_radius(problem: Problem) -> None:
    w = problem.w
    moved = perturbation_curve(sharpkern.RandomSAM(problem.parameters), problem.loss, [0.1, 0.2], lambda: problem.w - w)
    torch.testing.assert_close(2 * moved[0], moved[1])
    assert moved[0].abs().min() > 0


# What is left as it was


def failing(problem: Problem, after: int) -> Callable[[], float]:
    """A measurement that raises in its `after`-th call, with the weights moved."""
    calls = 0

    def measure() -> float:
        nonlocal calls
        calls += 1
        if calls == after:
            raise ZeroDivisionError
        return problem.loss().item()

    return measure


def every_analysis(problem: Problem, measure: Callable[[], float]) -> dict[str, Callable[[], object]]:
    optimizer = sharpkern.FisherSAM(problem.parameters)
    directions = filter_normalised(problem.parameters, 0), filter_normalised(problem.parameters, 1)

    def loss() -> Tensor:
        measure()
        return problem.loss()

    return {
        "sharpness": lambda: sharpness(optimizer, loss),
        "curve": lambda: perturbation_curve(optimizer, problem.loss, [0.1, 1.0, 10.0], measure),
        "surface": lambda: loss_surface(problem.parameters, directions, ([-1, 1], [0, 2]), measure),
        "trace": lambda: hessian_trace(Hessian(loss, problem.parameters), 2),
        "eigenvalue": lambda: top_eigenvalue(Hessian(loss, problem.parameters)),
        "fisher": lambda: fisher_trace([loss, loss], problem.parameters),
    }


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("name", every_analysis(Problem(), lambda: 0.0))
def test_weights_and_gradients_are_left_as_they_were(name: str, raises: bool) -> None:
    problem = Problem(torch.float32)
    problem.loss().backward()
    problem.parameters[1].grad = None
    weights = [(p.data_ptr(), p.detach().clone()) for p in problem.parameters]
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in problem.parameters]
    once = name in {"trace", "eigenvalue"}  # the loss is called once, before anything moves
    analysis = every_analysis(problem, failing(problem, (1 if once else 2) if raises else 0))[name]
    if raises:
        with pytest.raises(ZeroDivisionError):
            analysis()
    else:
        analysis()
    for p, (address, w), (gradient, values) in zip(problem.parameters, weights, gradients, strict=True):
        assert p.data_ptr() == address
        assert torch.equal(p.detach().view(torch.int32), w.view(torch.int32))
        assert p.grad is gradient
        assert gradient is None or torch.equal(gradient, values)


def test_state_of_the_optimizer_does_not_move_on() -> None:
    problem = Problem()
    optimizer = sharpkern.MFVI(problem.parameters, lr=0.1, momentum=0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = repr(optimizer.state_dict())
    sharpness(optimizer, problem.loss)
    perturbation_curve(optimizer, problem.loss, [0.1, 0.2], lambda: None)
    assert repr(optimizer.state_dict()) == before


# Hessian


def test_products_with_the_hessian(problem: Problem) -> None:
    exact = problem.hessian()
    operator = Hessian(problem.loss, problem.parameters)
    assert operator.size == len(problem.w)
    for _ in range(2):  # the graph stays
        v = torch.randn_like(problem.w)
        torch.testing.assert_close(operator @ v, exact @ v)


def test_trace_and_largest_eigenvalue(problem: Problem) -> None:
    exact = problem.hessian()
    operator = Hessian(problem.loss, problem.parameters)
    few, many = hessian_trace(operator, 32), hessian_trace(operator, 512)
    assert abs(many.mean - exact.trace().item()) < 5 * many.error
    assert many.error / few.error == pytest.approx(1 / 4, rel=0.4)
    off = exact - exact.diag().diag()  # var vᵀHv = 2 Σ over i ≠ j of H_ij² (Hutchinson 1989)
    assert many.error == pytest.approx((2 * off.square().sum().item() / 512) ** 0.5, rel=0.2)
    assert top_eigenvalue(operator, 1e-9) == pytest.approx(torch.linalg.eigvalsh(exact)[-1].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("diagonal", "top"), [([-1.0, -5.0, -2.0], -1.0), ([0.0, 0.0], 0.0), ([3.0], 3.0), ([-3.0], -3.0)]
)
def test_a_diagonal_hessian(diagonal: list[float], top: float) -> None:
    h = torch.tensor(diagonal)
    w = nn.Parameter(torch.randn(len(h)))
    operator = Hessian(lambda: (h * w**2).sum() / 2 + w.sum(), [w])
    found = hessian_trace(operator, 3)  # exact with one probe, since (±1)² = 1
    assert (found.mean, found.error) == (h.sum().item(), 0.0)
    assert top_eigenvalue(operator) == pytest.approx(top, abs=1e-4)


def test_a_constant_gradient_and_an_unused_parameter() -> None:
    w, unused, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3)), torch.ones(4)
    operator = Hessian(lambda: w.sum(), [w, unused, frozen])
    assert operator.size == 5
    assert torch.equal(operator @ torch.ones(5), torch.zeros(5))


def test_wrong_options_of_the_hessian(problem: Problem) -> None:
    with pytest.raises(ValueError, match="no parameter is trainable"):
        Hessian(problem.loss, [torch.ones(2)])
    with pytest.raises(ValueError, match="probes=0"):
        hessian_trace(Hessian(problem.loss, problem.parameters), 0)


def test_lanczos_wants_scipy(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs scipy.*sharpkern\[analysis\]"):
        top_eigenvalue(Hessian(problem.loss, problem.parameters))


# Trace ratio


def batch_losses(problem: Problem, scale: Tensor | float = 1.0) -> tuple[list[Callable[[], Tensor]], Tensor]:
    """Losses of four batches as functions of one vector u, with w = scale · u."""
    u = nn.Parameter(problem.w / scale)

    def loss(rows: slice) -> Tensor:
        part = Problem.__new__(Problem)
        part.model, part.parameters = problem.model, problem.parameters
        part.inputs, part.targets = problem.inputs[rows], problem.targets[rows]
        return part.loss_of(u * scale)

    return [lambda k=k: loss(slice(6 * k, 6 * k + 6)) for k in range(4)], u


def test_trace_ratio_is_that_of_algorithm_1(problem: Problem) -> None:
    losses, u = batch_losses(problem)
    squares = [torch.autograd.grad(loss(), u)[0] ** 2 for loss in losses]
    first, weight, traces = torch.zeros_like(squares[0]), 0.0, []
    for k, f in enumerate([*squares, *squares]):
        if k >= 4:
            traces.append((f / (first / weight + 0.1)).sum().item())
        first, weight = 0.8 * first + 0.2 * f, 0.8 * weight + 0.2
    found = fisher_trace(losses, [u], beta=0.2, delta=0.1)
    assert found.mean == pytest.approx(sum(traces) / 4)
    assert found.error == pytest.approx(torch.tensor(traces).std().item() / 2, rel=1e-5)


def test_trace_ratio_of_a_gradient_that_is_not_a_number_is_none() -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, math.nan]))
    assert math.isnan(fisher_trace([lambda: w.square().sum()], [w]).mean)


def test_trace_ratio_does_not_see_a_rescaling_of_the_weights(problem: Problem) -> None:
    scale = torch.rand_like(problem.w) * 10 + 0.1
    plain, scaled = batch_losses(problem), batch_losses(problem, scale)
    assert fisher_trace(scaled[0], [scaled[1]], delta=0.0).mean == pytest.approx(
        fisher_trace(plain[0], [plain[1]], delta=0.0).mean
    )
    assert fisher_trace(scaled[0], [scaled[1]], delta=0.1).mean != pytest.approx(
        fisher_trace(plain[0], [plain[1]], delta=0.1).mean, rel=0.01
    )


def test_a_weight_without_gradient_adds_nothing_to_the_trace_ratio() -> None:
    w = nn.Parameter(torch.tensor([2.0, 0.0, 3.0]))
    assert fisher_trace([lambda: w.square().sum()], [w], delta=0.0).mean == pytest.approx(2.0)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": 1.5}, {"delta": -1.0}])
def test_wrong_options_of_the_trace_ratio(problem: Problem, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wanted 0 < beta"):
        fisher_trace([problem.loss], problem.parameters, **options)
    with pytest.raises(ValueError, match="0 batches and 4 trainable"):
        fisher_trace([], problem.parameters)


# Surface


def test_directions_are_normalised_by_filter() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    params = list(model.parameters())
    found, other = filter_normalised(params, 0), filter_normalised(params, 1)
    for p, d in zip(params, found, strict=True):
        assert d.shape == p.shape
        if p.ndim > 1:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
        else:
            assert not d.any()
    assert not torch.equal(found[0], other[0])
    assert torch.equal(found[0], filter_normalised(params, 0)[0])


def test_surface_is_the_loss_on_the_plane(problem: Problem) -> None:
    directions = filter_normalised(problem.parameters, 0), filter_normalised(problem.parameters, 1)
    first, second = (torch.cat([x.flatten() for x in d]) for d in directions)
    a, b = [-1.0, 0.0, 0.5], [0.0, 2.0]
    exact = torch.tensor([[problem.loss_of(problem.w + x * first + y * second).item() for y in b] for x in a])
    found = loss_surface(problem.parameters, directions, (a, b), lambda: problem.loss().item())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), exact)
    assert found[1, 0] == problem.loss().item()


def test_estimates() -> None:
    found = Estimate.of([1.0, 3.0])
    assert (found.mean, found.error) == (2.0, 1.0)
    assert math.isnan(Estimate.of([1.0]).error)
