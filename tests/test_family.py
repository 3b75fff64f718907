"""The methods beyond SAM: noise, mixtures, learned covariances, TRACER, m-sharpness, against the papers' formulas."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import exactly
from torch import Tensor, nn

import sharpkern
from sharpkern import MFVI, SAM, TRACER, MixSAM, RandomSAM, VariationalSAM, m_sharpness, ops
from sharpkern.backend.reference.philox import normals
from sharpkern.covariance import S_MAX, S_MIN, Adaptive, Fisher, Identity
from sharpkern.tensors import Tensors

ONE_PASS = (RandomSAM, MFVI)
ALL = (RandomSAM, MixSAM, VariationalSAM, MFVI, TRACER)


class Problem:
    """A small smooth network with data, in float64 unless told otherwise."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        draw = torch.Generator().manual_seed(5)
        self.model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2))
        for p in self.model.parameters():
            p.data.copy_(torch.randn(p.shape, generator=draw) * 0.5)
        self.model.to(dtype)
        self.x, self.y = (torch.randn(12, n, generator=draw).to(dtype) for n in (4, 2))
        self.params = list(self.model.parameters())
        self.calls = 0

    def loss(self, part: slice = slice(None)) -> Tensor:
        """Of some of the examples."""
        return (self.model(self.x[part]) - self.y[part]).square().mean()

    def closure(
        self, optimizer: torch.optim.Optimizer, part: slice = slice(None), graph: bool = False
    ) -> Callable[[], Tensor]:
        """As `step` takes it; counts its calls."""

        def closure() -> Tensor:
            self.calls += 1
            optimizer.zero_grad()
            loss = self.loss(part)
            loss.backward(create_graph=graph)
            return loss

        return closure

    def gradient(self, graph: bool = False) -> Tensor:
        """Of the loss at w, flat."""
        return flat(torch.autograd.grad(self.loss(), self.params, create_graph=graph))

    def put(self, values: Tensor) -> None:
        """Sets all weights."""
        with torch.no_grad():
            for p, x in zip(self.params, values.split([p.numel() for p in self.params]), strict=True):
                p.copy_(x.view_as(p))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements, one after the other."""
    return torch.cat([x.reshape(-1) for x in tensors])


def weights(problem: Problem) -> Tensor:
    """A copy of all weights, flat."""
    return flat(problem.params).detach().clone()


def run(make: Any, steps: int, backend: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Problem]:
    """Some steps of a method."""
    problem = Problem(dtype)
    optimizer = make(problem.params, backend=backend, **{"lr": 0.1, **options})
    for _ in range(steps):
        optimizer.step(problem.closure(optimizer))
    return optimizer, problem


def equal(one: Problem, other: Problem) -> bool:
    """Whether two networks have the same bits."""
    return all(exactly(p, q) for p, q in zip(one.params, other.params, strict=True))


def perturbation(make: Any, backend: str, **options: Any) -> tuple[Tensor, Problem]:
    """ε of the first step."""
    problem = Problem()
    optimizer = make(problem.params, backend=backend, lr=0.1, **options)
    problem.closure(optimizer)()
    before = weights(problem)
    with optimizer.perturbed():
        epsilon = weights(problem) - before
    assert torch.equal(weights(problem), before)
    return epsilon, problem


# Noise ------------------------------------------------------------------------------------------------------------


def test_normals_are_normal() -> None:
    z = normals(3, 1, 0, torch.empty(1 << 20))
    n = z.numel()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    distribution = torch.distributions.Normal(0.0, 1.0)
    gap = (distribution.cdf(z.sort().values) - (torch.arange(n) + 0.5) / n).abs().max()
    assert gap < 1.95 / n**0.5  # Kolmogorov and Smirnov, at a level of 1e-3
    for lag in (1, 2, 3, 4, 8):
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 / n**0.5


def test_normals_do_not_depend_on_the_split() -> None:
    whole = normals(3, 1, 0, torch.empty(1000))
    assert torch.equal(whole[40:], normals(3, 1, 40, torch.empty(960)))
    assert torch.equal(whole[37:], normals(3, 1, 37, torch.empty(963)))
    rows = whole[3:993].reshape(11, 90)[:, :7]
    assert torch.equal(rows.reshape(-1), normals(3, 1, 3, torch.empty(77), (7, 90)))
    for other in ((4, 1), (3, 2)):
        assert not torch.equal(whole, normals(*other, 0, torch.empty(1000)))


def test_noise_has_the_length_rho_and_differs_everywhere(backend: str) -> None:
    params = [nn.Parameter(torch.zeros(50_000)) for _ in range(2)]
    optimizer = RandomSAM(params, rho=0.3, lr=0.0, seed=9, backend=backend)
    draws = []
    for _ in range(3):
        optimizer.first_step()
        draws += [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.second_step()
        assert all((p == 0).all() for p in params)
    every = torch.stack(draws).double()
    assert abs(every.square().sum() / 3 / 0.3**2 - 1) < 5 * (2 / 300_000) ** 0.5
    correlation = torch.corrcoef(every) - torch.eye(6)
    assert correlation.abs().max() < 5 / 50_000**0.5


def test_backends_draw_the_same_noise(backend: str) -> None:
    shapes = [(1,), (5,), (8,), (3, 7), (4099,), (2, 3, 5)]
    results = []
    for name in ("reference", backend):
        torch.manual_seed(1)
        params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        before = flat(params).detach().clone()
        optimizer = RandomSAM(params, rho=50.0, lr=0.1, seed=2**63 + 5, backend=name)
        optimizer.first_step()
        results.append(flat(params).detach() - before)
        optimizer.restore()
    scale = results[0].abs().max()
    assert (results[0] - results[1]).abs().max() < 2e-6 * scale


def test_noise_does_not_depend_on_threads(backend: str) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = [nn.Parameter(torch.zeros(n)) for n in (17, 50_000, 3, 30_001)]
        optimizer = RandomSAM(params, rho=50.0, lr=0.1, seed=3, backend=backend)
        optimizer.first_step()
        results.append(flat(params).detach().clone())
        optimizer.restore()
    assert exactly(results[0], results[1])
    assert exactly(results[0], results[2])


@pytest.mark.parametrize("make", [RandomSAM, MixSAM, MFVI])
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_resumed_run_draws_the_same_noise(way: str, make: Any, backend: str) -> None:
    optimizer, problem = run(make, 3, backend, seed=4)
    other = copy.deepcopy(problem)
    if way == "state_dict":
        again = make(other.params, backend=backend, lr=0.1, seed=4)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        again, other = copy.deepcopy((optimizer, problem))
    for run_, data in ((optimizer, problem), (again, other)):
        for _ in range(3):
            run_.step(data.closure(run_))
    assert equal(problem, other)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "x"])
def test_a_seed_that_is_none(seed: Any) -> None:
    with pytest.raises(ValueError, match="wanted an int from 0 to"):
        RandomSAM([nn.Parameter(torch.ones(2))], lr=0.1, seed=seed)


# One pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ONE_PASS)
def test_one_pass_gives_the_loss_where_it_was(make: Any, backend: str) -> None:
    problem = Problem()
    optimizer = make(problem.params, backend=backend, lr=0.1, rho=0.5)
    with optimizer.perturbed():
        wanted = problem.loss().item()
    assert optimizer.step(problem.closure(optimizer)).item() == pytest.approx(wanted, rel=1e-12)
    assert problem.calls == 1


@pytest.mark.parametrize("make", ONE_PASS)
def test_an_error_in_the_closure_leaves_the_weights(make: Any, backend: str) -> None:
    optimizer, problem = run(make, 1, backend)
    before = weights(problem)

    def closure() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert torch.equal(weights(problem), before)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop], ids=lambda b: b.__name__)
def test_every_method_lowers_the_loss(base: Any, make: Any, backend: str) -> None:
    problem = Problem(torch.float32)
    optimizer = make(problem.params, base, backend=backend, lr=0.02)
    before = problem.loss().item()
    for _ in range(30):
        optimizer.step(problem.closure(optimizer))
    assert problem.loss().item() < 0.9 * before


# Mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mix", "make", "options"), [(0.0, SAM, {}), (1.0, RandomSAM, {"seed": 6})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mixtures_end_at_sam_and_random_sam(
    mix: float, make: Any, options: dict[str, Any], dtype: torch.dtype, backend: str
) -> None:
    mixed = run(MixSAM, 4, backend, dtype, mix=mix, rho=0.3, seed=6, momentum=0.9)[1]
    plain = run(make, 4, backend, dtype, rho=0.3, momentum=0.9, **options)[1]
    assert equal(mixed, plain)


@pytest.mark.parametrize("covariance", [None, Adaptive(0.1), Fisher(2.0), Fisher(0.5, "additive", 0.9)], ids=str)
def test_a_mixture_is_the_sum_of_its_parts(covariance: Any, backend: str) -> None:
    parts = [perturbation(MixSAM, backend, rho=0.2, mix=m, covariance=covariance)[0] for m in (0.0, 0.3, 1.0)]
    torch.testing.assert_close(parts[1], 0.7 * parts[0] + 0.3 * parts[2])
    problem = Problem()
    g = problem.gradient()
    s = {
        "None": torch.ones_like(g),
        str(Adaptive(0.1)): (weights(problem).abs() + 0.1) ** 2,
        str(Fisher(2.0)): 1 / (1 + 2 * g**2),
        str(Fisher(0.5, "additive", 0.9)): 1 / (0.9 * g**2 + 0.5),
    }[str(covariance)]
    torch.testing.assert_close(parts[0], 0.2 * s * g / (s * g * g).sum().sqrt())
    starts, noise = 0, []
    for p in problem.params:
        noise.append(normals(0, 0, starts, torch.empty(p.shape)).reshape(-1))
        starts += -(-p.numel() // 8) * 8
    torch.testing.assert_close(parts[2], 0.2 / len(g) ** 0.5 * s.sqrt() * torch.cat(noise), rtol=1e-5, atol=1e-7)


# Learned covariance -----------------------------------------------------------------------------------------------

KL = {"kl_weight": 0.3, "prior_std": 0.2}


@pytest.mark.parametrize(("learned", "fixed"), [(VariationalSAM, SAM), (MFVI, RandomSAM)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_step_is_the_simpler_method(learned: Any, fixed: Any, dtype: torch.dtype, backend: str) -> None:
    one, other = (run(make, 1, backend, dtype, rho=0.3)[1] for make in (learned, fixed))
    assert equal(one, other)


@pytest.mark.parametrize(("learned", "fixed"), [(VariationalSAM, SAM), (MFVI, RandomSAM)])
@pytest.mark.parametrize("parametrization", ["log", "direct"])
def test_without_learning_it_stays_the_simpler_method(
    learned: Any, fixed: Any, parametrization: str, backend: str
) -> None:
    options = {"lr_covariance": 0.0, "parametrization": parametrization}
    one = run(learned, 5, backend, rho=0.3, **options)[1]
    assert equal(one, run(fixed, 5, backend, rho=0.3)[1])


def kl(log_s: Tensor, w: Tensor, rho: float) -> Tensor:
    """[V] 39 times kl_weight, for Σ = diag(s rho²/p): the divergence from N(0, prior_std²), but for its constant."""
    variance = log_s.exp() * rho**2 / len(log_s)
    prior = KL["prior_std"] ** 2
    return KL["kl_weight"] / 2 * (variance.sum() / prior - log_s.sum() + w.square().sum() / prior)


@pytest.mark.parametrize("parametrization", ["log", "direct"])
def test_variational_sam_descends_its_own_loss(parametrization: str, backend: str) -> None:
    """∂/∂log s of [V] 42, the linearised loss with its penalty, by autograd; over three steps, so that s is not 1."""
    rho, rate = 0.4, 0.3
    problem = Problem()
    options = {"rho": rho, "lr_covariance": rate, "parametrization": parametrization, "lr": 0.1, **KL}
    optimizer = VariationalSAM(problem.params, backend=backend, **options)
    s = torch.ones_like(weights(problem))
    for _ in range(3):
        log_s, w, g = s.log().requires_grad_(), weights(problem), problem.gradient()
        bound = rho * (log_s.exp() * g * g).sum().sqrt() + kl(log_s, w, rho)
        (slope,) = torch.autograd.grad(bound, log_s)
        epsilon = rho * s * g / (s * g * g).sum().sqrt()
        problem.put(w + epsilon)
        g2 = problem.gradient() + KL["kl_weight"] / KL["prior_std"] ** 2 * w
        problem.put(w)
        optimizer.step(problem.closure(optimizer))
        s = s * (-rate * slope).exp() if parametrization == "log" else s - rate * slope / s
        torch.testing.assert_close(flat(optimizer.covariance()), s, rtol=1e-9, atol=0)
        torch.testing.assert_close(weights(problem), w - 0.1 * g2, rtol=1e-9, atol=1e-12)


def test_mfvi_descends_the_reparametrised_loss(backend: str) -> None:
    """∂/∂log s of L(w + rho/sqrt(p) sqrt(s) η) with its penalty, by autograd, η as the optimizer drew it."""
    rho, rate = 0.4, 0.3
    problem = Problem()
    optimizer = MFVI(problem.params, backend=backend, rho=rho, lr_covariance=rate, lr=0.1, seed=3, **KL)
    s = torch.ones_like(weights(problem))
    for _ in range(3):
        w = weights(problem)
        with optimizer.perturbed():
            epsilon = weights(problem) - w
        eta = epsilon / s.sqrt()
        log_s = s.log().requires_grad_()
        mean = w.clone().requires_grad_()
        moved = dict(
            zip(
                [name for name, _ in problem.model.named_parameters()],
                [
                    x.view_as(p)
                    for p, x in zip(
                        problem.params,
                        (mean + (log_s / 2).exp() * eta).split([p.numel() for p in problem.params]),
                        strict=True,
                    )
                ],
                strict=True,
            )
        )
        loss = (torch.func.functional_call(problem.model, moved, (problem.x,)) - problem.y).square().mean()
        slope, g = torch.autograd.grad(loss + kl(log_s, mean, rho), (log_s, mean))
        optimizer.step(problem.closure(optimizer))
        s = s * (-rate * slope).exp()
        torch.testing.assert_close(flat(optimizer.covariance()), s, rtol=1e-6, atol=0)
        torch.testing.assert_close(weights(problem), w - 0.1 * g, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda b: b.__name__)
@pytest.mark.parametrize("make", [VariationalSAM, MFVI])
def test_the_prior_on_the_mean_is_weight_decay_that_is_not_decoupled(base: Any, make: Any, backend: str) -> None:
    """Without perturbation the gradient is that of L + kl_weight/2 w²/prior_std², on top of the base's own decay."""
    options = {"lr": 0.01, "weight_decay": 0.1}
    problem, other = Problem(), Problem()
    optimizer = make(problem.params, base, backend=backend, rho=0.0, **KL, **options)
    plain = base(other.params, **options)
    for _ in range(4):
        optimizer.step(problem.closure(optimizer))
        other.closure(plain)()
        for p in other.params:
            assert p.grad is not None
            p.grad += KL["kl_weight"] / KL["prior_std"] ** 2 * p.detach()
        plain.step()
        torch.testing.assert_close(weights(problem), weights(other), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("make", [VariationalSAM, MFVI])
@pytest.mark.parametrize("parametrization", ["log", "direct"])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e12, float("inf"), float("nan")])
def test_s_stays_positive_and_finite(size: float, parametrization: str, make: Any, backend: str) -> None:
    p = nn.Parameter(torch.randn(1000))
    options = {"lr_covariance": 10.0, "parametrization": parametrization, "lr": 0.0, "rho": 3.0}
    optimizer = make([p], backend=backend, **options)
    for _ in range(5):
        for half in (optimizer.first_step, optimizer.second_step):
            p.grad = torch.randn(1000) * size
            half()
        s = optimizer.state[p]["covariance"]
        assert (s >= S_MIN * (1 - 1e-6)).all()
        assert (s <= S_MAX * (1 + 1e-6)).all()


# TRACER -----------------------------------------------------------------------------------------------------------


def tracer_oracle(problem: Problem, f: Tensor, rho: float, delta: float) -> tuple[Tensor, Tensor]:
    """g, and the gradient of L + rho Σ g²/(f + delta) with f held constant, by autograd."""
    g = problem.gradient(graph=True)
    objective = problem.loss() + rho * (g.square() / (f + delta)).sum()
    return g.detach(), flat(torch.autograd.grad(objective, problem.params)).detach()


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("precondition", [False, True])
def test_sgd_tracer_is_its_definition(precondition: bool, backend: str) -> None:
    problem, rho, delta, beta = Problem(), 0.02, 0.3, 0.2
    options = {"rho": rho, "delta": delta, "beta": beta, "precondition": precondition, "lr": 0.05, "momentum": 0.9}
    optimizer = TRACER(problem.params, backend=backend, curvature="exact", **options)
    f, buffer = torch.zeros_like(weights(problem)), torch.zeros_like(weights(problem))
    for _ in range(4):
        w = weights(problem)
        g, g_t = tracer_oracle(problem, f, rho, delta)
        g_t = g_t / (f + delta) if precondition else g_t
        buffer = 0.9 * buffer + g_t
        f = (1 - beta) * f + beta * g**2
        optimizer.step(problem.closure(optimizer, graph=True))
        torch.testing.assert_close(weights(problem), w - 0.05 * buffer, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(flat(optimizer.covariance()), 1 / (f + delta), rtol=1e-9, atol=0)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_adam_tracer_is_its_definition(decoupled: bool, backend: str) -> None:
    """f̄ is the second moment, corrected for its bias; the first moment takes g_T, the second the raw g."""
    problem, rho, delta, lr, decay = Problem(), 0.02, 0.3, 0.01, 0.1
    base = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = TRACER(
        problem.params, base, backend=backend, curvature="exact", rho=rho, delta=delta, lr=lr, weight_decay=0.1
    )
    m, v = torch.zeros_like(weights(problem)), torch.zeros_like(weights(problem))
    for t in range(1, 5):
        w = weights(problem)
        f = v / (1 - 0.999 ** (t - 1)) if t > 1 else v
        g, g_t = tracer_oracle(problem, f, rho, delta)
        if decoupled:
            w = w * (1 - lr * decay)
        m = 0.9 * m + 0.1 * (g_t if decoupled else g_t + decay * w)
        v = 0.999 * v + 0.001 * g**2
        w = w - lr * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        optimizer.step(problem.closure(optimizer, graph=True))
        torch.testing.assert_close(weights(problem), w, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop], ids=lambda b: b.__name__)
@pytest.mark.parametrize("precondition", [False, True])
def test_the_difference_agrees_to_the_order_of_the_radius(precondition: bool, base: Any, backend: str) -> None:
    options = {"rho": 0.02, "delta": 0.5, "lr": 0.01, "precondition": precondition}
    results = []
    for radius in (None, 0.02, 0.01):
        problem = Problem()
        chosen = {"curvature": "exact"} if radius is None else {"curvature": "difference", "radius": radius}
        optimizer = TRACER(problem.params, base, backend=backend, **options, **chosen)
        optimizer.step(problem.closure(optimizer, graph=radius is None))
        results.append(weights(problem))
    errors = [(w - results[0]).norm() for w in results[1:]]
    assert 1.8 < errors[0] / errors[1] < 2.2  # one-sided: halving the radius halves the error


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_tracer_does_not_see_the_scale_of_coordinates(backend: str) -> None:
    """[G] 55: with w = A u for a diagonal A and delta → 0, T is the same, and preconditioned steps go the same way."""
    scale, paths = torch.logspace(-1, 1, 7, dtype=torch.float64), []
    matrix = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a in (torch.ones_like(scale), scale):
        u = nn.Parameter(torch.linspace(1, 2, 7, dtype=torch.float64) / a)
        optimizer = TRACER(
            [u], lr=0.0, rho=0.05, delta=1e-300, beta=0.5, curvature="exact", precondition=True, backend=backend
        )

        def closure(a: Tensor = a, u: Tensor = u, optimizer: TRACER = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (matrix @ (a * u)).cosh().sum()
            loss.backward(create_graph=True)
            return loss

        closure()
        assert u.grad is not None
        optimizer.state[u]["fisher"] = u.grad.detach().square() * 1.3
        optimizer.param_groups[0]["lr"] = 0.01
        for _ in range(3):
            optimizer.step(closure)
        paths.append(a * u.detach())
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-9, atol=0)


def test_tracer_without_penalty_is_the_base_optimizer(backend: str) -> None:
    one, other = Problem(), Problem()
    optimizer, plain = TRACER(one.params, rho=0.0, lr=0.1, backend=backend), torch.optim.SGD(other.params, lr=0.1)
    for _ in range(3):
        optimizer.step(one.closure(optimizer))
        plain.step(other.closure(plain))
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-12, atol=0)


def test_exact_curvature_wants_a_graph(backend: str) -> None:
    problem = Problem()
    optimizer = TRACER(problem.params, curvature="exact", lr=0.1, backend=backend)
    before = weights(problem)
    with pytest.raises(RuntimeError, match=r"backward\(create_graph=True\)"):
        optimizer.step(problem.closure(optimizer))
    with pytest.raises(RuntimeError, match="one pass and no perturbation"):
        optimizer.first_step()
    assert torch.equal(weights(problem), before)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_exact_curvature_leaves_no_graph_behind(backend: str) -> None:
    problem = Problem()
    optimizer = TRACER(problem.params, curvature="exact", lr=0.1, backend=backend)
    optimizer.step(problem.closure(optimizer, graph=True))
    assert not any(p.grad is not None and p.grad.requires_grad for p in problem.params)


@pytest.mark.parametrize("half", [0, 1])
def test_tracer_and_missing_gradients(half: int, backend: str) -> None:
    params = [nn.Parameter(torch.randn(30)) for _ in range(3)]
    before = [p.detach().clone() for p in params]
    optimizer = TRACER(params, rho=0.1, lr=0.1, backend=backend)
    for number, step in enumerate((optimizer.first_step, optimizer.second_step)):
        for p in params:
            p.grad = torch.ones_like(p)
        if number == half:
            params[1].grad = None
        step()
    if half:
        assert exactly(params[1], before[1])  # nothing to update with
    else:
        torch.testing.assert_close(params[1].detach(), before[1] - 0.1)  # its own gradient, and no curvature
    assert not exactly(params[0], before[0])


@pytest.mark.parametrize("make", [RandomSAM, MixSAM, VariationalSAM, MFVI, TRACER])
def test_diagnostics_say_what_can_be_known(make: Any, backend: str) -> None:
    problem = Problem()
    optimizer = make(problem.params, backend=backend, lr=0.1, **({} if make is TRACER else {"rho": 0.3}))
    before, norm = weights(problem), problem.gradient().norm()
    seen = []

    def closure() -> Tensor:
        seen.append(weights(problem) - before)
        return problem.closure(optimizer)()

    optimizer.step(closure)
    figures = optimizer.diagnostics()
    two = make.backward_passes() == 2
    for name in ("grad_norm", "gradient_cosine", "loss_gap"):
        assert figures[name].isfinite() == two, name
    if two:
        torch.testing.assert_close(figures["grad_norm"], norm)
    if make in {RandomSAM, MixSAM}:
        torch.testing.assert_close(figures["perturbation_norm"], seen[-1].norm(), rtol=1e-5, atol=0)
    else:
        assert figures["perturbation_norm"].isnan()


# m-sharpness, Table 2 of [V], bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SAM, sharpkern.ASAM, sharpkern.FisherSAM, RandomSAM, MixSAM, VariationalSAM, TRACER])
def test_one_part_is_the_step(make: Any, backend: str) -> None:
    problem = Problem()
    optimizer = make(problem.params, backend=backend, lr=0.1, rho=0.3)
    for _ in range(3):
        m_sharpness(optimizer, [problem.closure(optimizer)])
    assert equal(problem, run(make, 3, backend, rho=0.3)[1])


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_have_their_own_perturbation(parts: int, backend: str) -> None:
    problem = Problem()
    optimizer = SAM(problem.params, backend=backend, lr=0.1, rho=0.3, momentum=0.9)
    w, total, losses = weights(problem), 0.0, []
    slices = [slice(i * 12 // parts, (i + 1) * 12 // parts) for i in range(parts)]
    for part in slices:
        loss = problem.loss(part)
        g = flat(torch.autograd.grad(loss, problem.params))
        losses.append(loss.item())
        problem.put(w + 0.3 * g / g.norm())
        total = total + flat(torch.autograd.grad(problem.loss(part), problem.params)) / parts
        problem.put(w)
    got = m_sharpness(optimizer, [problem.closure(optimizer, part) for part in slices])
    assert got.item() == pytest.approx(sum(losses) / parts)
    torch.testing.assert_close(weights(problem), w - 0.1 * total, rtol=1e-10, atol=1e-13)


def test_parts_of_random_sam_draw_their_own_noise(backend: str) -> None:
    problem, seen = Problem(), []
    optimizer = RandomSAM(problem.params, backend=backend, lr=0.1, rho=0.3)

    def closure() -> Tensor:
        seen.append(weights(problem))
        return problem.closure(optimizer)()

    m_sharpness(optimizer, [closure, closure, closure])
    assert len({tuple(w.tolist()) for w in seen}) == 3


def test_parts_that_make_no_step(backend: str) -> None:
    problem = Problem()
    before = weights(problem)
    with pytest.raises(ValueError, match="closures is empty"):
        m_sharpness(SAM(problem.params, lr=0.1, backend=backend), [])
    for make in (MFVI, TRACER):
        optimizer = make(problem.params, lr=0.1, backend=backend)
        with pytest.raises(ValueError, match=f"{make.__name__} wants each of them with its own perturbation"):
            m_sharpness(optimizer, [problem.closure(optimizer)] * 2)
    assert torch.equal(weights(problem), before)


def test_the_worst_case_adds_the_norm_of_the_gradient(backend: str) -> None:
    """[V] Table 2: L(w + ε) = L + rho ‖g‖ + O(rho²)."""
    problem, errors = Problem(), []
    loss, norm = problem.loss().item(), problem.gradient().norm().item()
    for rho in (0.04, 0.02):
        optimizer = SAM(problem.params, lr=0.1, rho=rho, backend=backend)
        problem.closure(optimizer)()
        with optimizer.perturbed():
            errors.append(problem.loss().item() - loss - rho * norm)
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_the_gaussian_adds_the_trace_of_the_hessian(backend: str) -> None:
    """[V] Table 2: E L(w + ε) = L + ½ tr(Σ H) + O(rho⁴), Σ = rho²/p; antithetic draws leave the odd terms out."""
    problem, rho, draws = Problem(), 0.3, 400
    g = problem.gradient(graph=True)
    trace = sum(
        flat(torch.autograd.grad(g[i], problem.params, retain_graph=True, allow_unused=False))[i].item()
        for i in range(len(g))
    )
    w, loss = weights(problem), problem.loss().item()
    optimizer = RandomSAM(problem.params, lr=0.0, rho=rho, backend=backend)
    gaps = []
    for _ in range(draws):
        optimizer.first_step()
        moved = weights(problem)
        up = problem.loss().item()
        for p in problem.params:
            p.grad = torch.zeros_like(p)
        optimizer.second_step()
        problem.put(2 * w - moved)
        gaps.append((up + problem.loss().item()) / 2 - loss)
        problem.put(w)
    gap = torch.tensor(gaps)
    wanted = 0.5 * rho**2 / len(w) * trace
    assert abs(gap.mean() - wanted) < 4 * gap.std() / draws**0.5 + 0.05 * abs(wanted)


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (MixSAM, {"mix": 1.5}, "mix=1.5: wanted the share of the Gaussian from 0 to 1"),
    (MixSAM, {"mix": -0.1}, "mix=-0.1"),
    (MixSAM, {"covariance": "fisher"}, "covariance='fisher': wanted None or one of sharpkern.covariance"),
    (VariationalSAM, {"lr_covariance": -1.0}, "lr_covariance=-1.0"),
    (VariationalSAM, {"kl_weight": float("nan")}, "kl_weight=nan"),
    (MFVI, {"prior_std": 0.0}, "prior_std=0.0: wanted a finite number > 0"),
    (MFVI, {"parametrization": "root"}, "parametrization='root': wanted one of 'log', 'direct'"),
    (TRACER, {"delta": 0.0}, "delta=0.0: wanted a finite number > 0"),
    (TRACER, {"radius": 0.0}, "radius=0.0: wanted a finite number > 0"),
    (TRACER, {"beta": 2.0}, "beta=2.0"),
    (TRACER, {"curvature": "guessed"}, "curvature='guessed': wanted one of 'exact', 'difference'"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD, ids=[message.split(":")[0] for _, _, message in BAD])
def test_options_out_of_range(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make([nn.Parameter(torch.ones(2))], lr=0.1, **options)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW], ids=lambda b: b.__name__)
@pytest.mark.parametrize("make", ALL)
def test_a_checkpoint_loads_as_plain_data(make: Any, base: Any, backend: str, tmp_path: Any) -> None:
    """torch.load with weights_only=True, its default, takes no objects of ours."""
    options: dict[str, Any] = {"covariance": Adaptive(0.1)} if make is MixSAM else {}
    options["base_optimizer"] = base
    optimizer, problem = run(make, 2, backend, **options)
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint.pt")
    other = copy.deepcopy(problem)
    again = make(other.params, backend=backend, lr=0.1, **options)
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
    for run_, data in ((optimizer, problem), (again, other)):
        run_.step(data.closure(run_))
    assert equal(problem, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "start", "rows"),
    [
        (1, 3, (0, 0)),
        (5000, 7, (0, 0)),
        (3000, 8, (3, 10)),
        (300, 1, (1, 5)),
        (9000, 6, (4099, 5000)),
        (700, 8, (8, 24)),
    ],
)
def test_a_shard_draws_what_the_whole_draws(
    n: int, start: int, rows: tuple[int, int], dtype: torch.dtype, backend: str
) -> None:
    """Bit for bit, rounding included, from an index that is no multiple of 8 and in runs."""
    i = torch.arange(n)
    index = start + (i // rows[0] * rows[1] + i % rows[0] if rows[0] else i)
    weights = torch.randn(int(index[-1]) + 1).to(dtype)
    found = []
    for x, first, run in ((weights, 0, (0, 0)), (weights[index], start, rows)):
        t = Tensors([torch.nn.Parameter(x.clone())], 0)
        t.read_gradients()
        t.allocate_saved()
        t.draw, t.seed, t.start, t.rows, t.stochastic = torch.tensor(5), 3, [first], [run], dtype.itemsize == 2
        ops.load(backend).ascend_(t, Identity(), 0.7, None, True, 0.0, 0.5)
        found.append(t.weights[0])
    assert torch.equal(found[0][index], found[1])


@pytest.mark.parametrize("make", ALL)
def test_every_method_keeps_masters(make: Any, backend: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer, problem = run(make, 3, backend, torch.bfloat16, master_weights=True)
    for p in problem.params:
        assert exactly(optimizer.state[p]["master"].to(torch.bfloat16), p.detach())
