"""The perturbation lies where the papers put it, and the way back is exact.

Where eps = rho s g / ||g||_s: eps' S^-1 eps = rho² and g' eps = rho ||g||_s, [F] 8 to 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracles import (
    VARIANTS,
    Oracle,
    Params,
    Sgd,
    build,
    closure_of,
    give_gradients,
    network_loss,
    network_weights,
    parameters,
    same,
    some_fisher,
    value_and_gradients,
)
from torch import Tensor

import sharpkern
from sharpkern.perturbation import share_

SEED = 30
SHAPES = ((), (1,), (17,), (5, 0), (40, 33), (3, 2, 3, 3))


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return weights of many shapes, one of them empty."""
    draw = torch.Generator().manual_seed(SEED)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in SHAPES]


def total(*factors: Sequence[Tensor]) -> float:
    """Return the sum over all coordinates of the product of these lists of tensors, in float64."""
    return math.fsum(
        math.prod([x.detach().double() for x in row], start=torch.ones((), dtype=torch.float64)).sum().item()
        for row in zip(*factors, strict=True)
    )


def difference(params: Params, before: Sequence[Tensor]) -> list[Tensor]:
    """Return how far the parameters are from what they were, in float64."""
    return [p.detach().double() - b.double() for p, b in zip(params, before, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.5, 4.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_perturbation_lies_on_the_ellipsoid(variant: str, rho: float, dtype: torch.dtype, backend: str) -> None:
    params, before = parameters(weights(dtype)), weights(dtype)
    optimizer = build(sharpkern, variant, "sgd", params, backend, rho=rho)
    oracle = VARIANTS[variant].oracle(before, Sgd())
    g = give_gradients(params, SEED, 1)
    oracle.rhos = [rho] * len(params)
    oracle.ascend(g)
    optimizer.first_step()
    epsilon, s = difference(params, before), optimizer.covariance()
    tolerance = {torch.float32: 3e-6, torch.float64: 1e-12}[dtype]
    norm = math.sqrt(total(s, g, g))
    assert math.sqrt(total(epsilon, epsilon, [1 / x for x in s])) == pytest.approx(rho, rel=tolerance)
    assert total(g, epsilon) == pytest.approx(rho * norm, rel=tolerance)
    assert isinstance(s, tuple)
    for ours, theirs in zip(s, oracle.s, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=0)
    for ours, theirs, w in zip(epsilon, oracle.epsilon, before, strict=True):
        allowed = tolerance * (theirs.abs() + w.abs().double() + rho / 10)
        assert bool(((ours - theirs).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_way_back_is_exact_and_into_the_same_storage(variant: str, dtype: torch.dtype, backend: str) -> None:
    flat = torch.cat([w.reshape(-1) for w in weights(dtype)])
    before, buffer, pieces = flat.clone(), flat, flat.split([math.prod(s) for s in SHAPES])
    params = [torch.nn.Parameter(x.view(s)) for x, s in zip(pieces, SHAPES, strict=True)]
    addresses = [p.data_ptr() for p in params]
    optimizer = build(sharpkern, variant, "sgd-momentum", params, backend)
    for step in range(3):
        give_gradients(params, SEED, step)
        optimizer.perturb()
        assert not same([buffer], [before]), "a view of the weights must see the perturbation"
        optimizer.restore()
        assert same([buffer], [before])
        with optimizer.perturbed():
            assert not same([buffer], [before])
        assert same([buffer], [before])
        with pytest.raises(ZeroDivisionError), optimizer.perturbed():
            raise ZeroDivisionError
        assert same([buffer], [before])
    assert [p.data_ptr() for p in params] == addresses
    optimizer.first_step()
    optimizer.second_step()
    assert not same([buffer], [before]), "a view of the weights must see the update"
    assert [p.data_ptr() for p in params] == addresses
    assert all(p.is_leaf and p.requires_grad for p in params)


@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("variant", ["sam", "asam", "fisher-average-natural"])
def test_looking_around_leaves_no_trace_in_the_state(variant: str, base: str, backend: str) -> None:
    """perturb() and restore() between steps change neither moments nor the average Fisher."""
    runs = []
    for look in (False, True):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, variant, base, params, backend)
        for step in range(4):
            closure = closure_of(optimizer, params, network_loss(SEED, step))
            closure()
            if look:
                with optimizer.perturbed():
                    closure()
                closure()
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step()
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_the_norm_is_one_over_all_groups_and_rho_scales_its_own(backend: str) -> None:
    before, rhos = weights(torch.float64), [0.0, 0.5, 1.0, 2.0, 0.25, 3.0]
    params = parameters(before)
    groups = [{"params": [p], "rho": rho} for p, rho in zip(params, rhos, strict=True)]
    optimizer = sharpkern.SAM(groups, torch.optim.SGD, lr=0.1, backend=backend)
    g = give_gradients(params, SEED, 2)
    norm = math.sqrt(total(g, g))
    optimizer.perturb()
    for e, x, rho in zip(difference(params, before), g, rhos, strict=True):
        torch.testing.assert_close(e, rho * x / norm, rtol=1e-10, atol=1e-14)


def test_the_norm_is_exact_where_float32_sums_are_not(backend: str) -> None:
    """One large coordinate before many small ones: a running float32 sum loses the small ones."""
    params = parameters([torch.zeros(1), torch.zeros(300_000)])
    optimizer = sharpkern.SAM(params, rho=1.0, lr=0.1, backend=backend)
    params[0].grad, params[1].grad = torch.full((1,), 4096.0), torch.full((300_000,), 0.9)
    optimizer.perturb()
    assert params[0].item() == pytest.approx(
        4096 / math.sqrt(4096**2 + 300_000 * params[1].grad[0].item() ** 2), rel=3e-7
    )


def test_tied_weights_count_once(backend: str) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
            self.decoder.weight = self.encoder.weight

    torch.manual_seed(SEED)
    model = Tied()
    optimizer = sharpkern.SAM(model.parameters(), rho=0.5, lr=0.1, backend=backend)
    before = model.encoder.weight.detach().clone()
    model.decoder(model.encoder(torch.randn(7, 4))).square().mean().backward()
    optimizer.perturb()
    epsilon = model.decoder.weight.detach() - before
    assert epsilon.norm().item() == pytest.approx(0.5, rel=1e-5)
    optimizer.restore()
    assert same([model.decoder.weight], [before])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_listed_twice_in_a_group_counts_once(backend: str) -> None:
    params = parameters([torch.zeros(4)])
    optimizer = sharpkern.SAM(params * 2, rho=1.0, lr=0.1, backend=backend)
    params[0].grad = torch.ones(4)
    optimizer.perturb()
    assert params[0].tolist() == pytest.approx([0.5] * 4)
    optimizer.restore()
    assert params[0].tolist() == [0.0] * 4


def test_asam_with_eta_zero_never_moves_a_zero_weight(backend: str) -> None:
    params = parameters([torch.tensor([0.0, 1.0, -2.0])])
    params[0].grad = torch.tensor([3.0, 1.0, 1.0])
    optimizer = sharpkern.ASAM(params, rho=1.0, eta=0.0, lr=0.1, backend=backend)
    optimizer.perturb()
    norm = math.sqrt(0 + 1 + 4)
    torch.testing.assert_close(params[0].detach(), torch.tensor([0.0, 1 + 1 / norm, -2 + 4 / norm]))


def test_param_groups_leaves_biases_and_norms_unscaled(backend: str) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.BatchNorm2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
        torch.nn.LayerNorm(3),
    )
    groups = list(sharpkern.param_groups(model))
    listed = [p for group in groups for p in group["params"]]
    assert sorted(map(id, listed)) == sorted(map(id, model.parameters()))
    optimizer = sharpkern.ASAM(groups, torch.optim.SGD, rho=0.5, eta=0.01, lr=0.1, backend=backend)
    give_gradients(listed, SEED, 3)
    optimizer.first_step()
    s = dict(zip(map(id, listed), optimizer.covariance(), strict=True))
    optimizer.second_step()
    scaled = {name: not bool((s[id(p)] == 1).all()) for name, p in model.named_parameters()}
    assert scaled == {name: p.ndim > 1 for name, p in model.named_parameters()}


def test_covariance_is_known_after_the_step(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "fisher-inverse", "sgd", params, backend)
    loss = network_loss(SEED, 0)
    _, g = value_and_gradients(loss, params)
    optimizer.step(closure_of(optimizer, params, loss))
    for ours, x in zip(optimizer.covariance(), g, strict=True):
        torch.testing.assert_close(ours, 1 / (1 + 5 * x * x))


def test_covariance_is_that_of_w_while_perturbed_and_the_gradients_are_gone(backend: str) -> None:
    """More than 64 MiB of gradients, which nobody keeps after they are zeroed."""
    params = parameters([torch.full((17_000_000,), 0.25)])
    optimizer = sharpkern.ASAM(params, rho=1e4, eta=0.0, lr=0.1, backend=backend)
    params[0].grad = torch.ones_like(params[0])
    optimizer.first_step(zero_grad=True)
    (s,) = optimizer.covariance()
    assert s[0].item() == s[-1].item() == pytest.approx(0.0625)


def test_a_given_fisher_is_asked_once_a_first_pass_without_arguments(backend: str) -> None:
    params, calls = parameters(network_weights(SEED)), list[int]()

    def fisher() -> tuple[Tensor, ...]:
        calls.append(len(calls))
        return tuple(some_fisher(p.detach()) for p in params)

    optimizer = sharpkern.FisherSAM(params, fisher=fisher, lr=0.1, backend=backend)
    for step in range(3):
        optimizer.step(closure_of(optimizer, params, network_loss(SEED, step)))
    assert len(calls) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_diagnostics_say_what_happened(variant: str, backend: str) -> None:
    params, loss = parameters(network_weights(SEED)), network_loss(SEED, 4)
    oracle = VARIANTS[variant].oracle(params, Sgd())
    value, g = value_and_gradients(loss, oracle.w)
    above, g2 = value_and_gradients(loss, oracle.ascend(g))
    optimizer = build(sharpkern, variant, "sgd", params, backend)
    optimizer.step(closure_of(optimizer, params, loss))
    expected = {
        "grad_norm": math.sqrt(total(g, g)),
        "perturbation_norm": math.sqrt(total(oracle.epsilon, oracle.epsilon)),
        "loss_gap": above - value,
        "gradient_cosine": total(g, g2) / math.sqrt(total(g, g) * total(g2, g2)),
    }
    found: dict[str, Any] = optimizer.diagnostics()
    assert all(isinstance(x, Tensor) and x.shape == () for x in found.values())
    assert {k: x.item() for k, x in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_diagnostics_without_a_closure_do_not_know_the_loss(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "adamw", params, backend)
    g = [x.clone() for x in give_gradients(params, SEED, 5)]
    optimizer.first_step()
    g2 = give_gradients(params, SEED, 6)
    optimizer.second_step()
    found = optimizer.diagnostics()
    assert found["loss_gap"].isnan()
    assert found["grad_norm"].item() == pytest.approx(math.sqrt(total(g, g)), rel=1e-5)
    assert found["perturbation_norm"].item() == pytest.approx(0.3, rel=1e-5)
    assert found["gradient_cosine"].item() == pytest.approx(
        total(g, g2) / math.sqrt(total(g, g) * total(g2, g2)), abs=1e-5
    )


def test_perturbing_raises_the_loss_by_rho_times_the_gradient(backend: str) -> None:
    """First order: L(w + eps) - L(w) = rho ||g||_s, [F] 1 and 2."""
    params, loss = parameters(network_weights(SEED, torch.float64)), network_loss(SEED, 7)
    for variant in VARIANTS:
        optimizer = build(sharpkern, variant, "sgd", params, backend, rho=1e-5)
        value, g = value_and_gradients(loss, params)
        oracle: Oracle = VARIANTS[variant].oracle(params, Sgd())
        oracle.ascend(g)
        closure_of(optimizer, params, loss)()
        with optimizer.perturbed():
            gap = loss(params).item() - value
        assert gap == pytest.approx(1e-5 * math.sqrt(total(oracle.s, g, g)), rel=1e-3)


def test_devices_share_one_norm() -> None:
    """What each device has summed is added up on all of them; several devices themselves want a GPU test."""
    totals = [torch.tensor(x, dtype=torch.float64) for x in (1.0, 1e-17, 2.5)]
    share_(totals)
    assert [total.item() for total in totals] == [1.0 + 1e-17 + 2.5] * 3
    totals[1].fill_(float("nan"))
    share_(totals)
    assert all(total.isnan() for total in totals)
