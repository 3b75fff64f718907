"""Weights of 16 bits: float32 masters, stochastic rounding of w + ε, and the warning where neither is asked for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import exactly
from torch import Tensor

import sharpkern
from sharpkern.backend.reference.philox import philox, rounding_bits, stochastic

HALVES = (torch.bfloat16, torch.float16)
SIZES = (1, 5, 8, 300, 4099)

halves = pytest.mark.parametrize("dtype", HALVES, ids=str)


def parameters(dtype: torch.dtype, sizes: Sequence[int] = SIZES) -> list[torch.nn.Parameter]:
    """Random weights."""
    return [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in sizes]


def gradients(params: Sequence[torch.nn.Parameter]) -> None:
    """Random gradients."""
    for p in params:
        p.grad = torch.randn_like(p)


def whole_step(optimizer: sharpkern.SharpnessAware, params: Sequence[torch.nn.Parameter]) -> list[Tensor]:
    """One step with random gradients; the weights as they stood perturbed."""
    gradients(params)
    optimizer.first_step()
    perturbed = [p.detach().clone() for p in params]
    gradients(params)
    optimizer.second_step()
    return perturbed


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies."""
    return [x.detach().clone() for x in tensors]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two lists hold the same bits."""
    return all(exactly(x, y) for x, y in zip(one, other, strict=True))


def neighbours(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The greatest number of a dtype not above x and the smallest not below, for finite float64 x."""
    near = x.to(dtype)
    up, down = (torch.nextafter(near, torch.full_like(near, sign * torch.inf)) for sign in (1, -1))
    below = torch.where(near.double() > x, down, near)
    above = torch.where(near.double() < x, up, near)
    return below.double(), above.double()


# Masters ----------------------------------------------------------------------------------------------------------


BASES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
    (torch.optim.AdamW, {"lr": 0.001}),
]


@halves
@pytest.mark.parametrize("make", [sharpkern.SAM, sharpkern.ASAM, sharpkern.FisherSAM])
@pytest.mark.parametrize(("base", "options"), BASES, ids=["SGD", "AdamW"])
def test_masters_are_the_float32_run(
    make: Any, base: type[torch.optim.Optimizer], options: dict[str, Any], dtype: torch.dtype, backend: str
) -> None:
    """Given the same gradients, masters go where float32 weights go, bit for bit; the weights are their roundings."""
    params = parameters(dtype)
    wide = [torch.nn.Parameter(p.detach().float()) for p in params]
    narrow_run = make(params, base, backend=backend, master_weights=True, **options)
    wide_run = make(wide, base, backend=backend, **options)
    for _ in range(4):
        for half in ("first_step", "second_step"):
            gradients(params)
            for p, q in zip(params, wide, strict=True):
                assert p.grad is not None
                q.grad = p.grad.float()
            getattr(narrow_run, half)()
            getattr(wide_run, half)()
            assert same(params, [q.detach().to(dtype) for q in wide]), half
        assert same([narrow_run.state[p]["master"] for p in params], wide)


@halves
def test_masters_keep_what_rounding_would_lose(dtype: torch.dtype, backend: str) -> None:
    p = torch.nn.Parameter(torch.ones(40, dtype=dtype))
    optimizer = sharpkern.SAM([p], lr=1e-4, rho=1e-3, backend=backend, master_weights=True)
    for _ in range(100):
        for half in (optimizer.first_step, optimizer.second_step):
            p.grad = torch.ones_like(p)
            half()
    torch.testing.assert_close(optimizer.state[p]["master"], torch.full((40,), 0.99), rtol=1e-5, atol=0)
    assert (p < 1).all()


@halves
def test_masters_take_no_copy_and_come_back_exactly(dtype: torch.dtype, backend: str) -> None:
    params = parameters(dtype)
    optimizer = sharpkern.SAM(params, lr=0.1, rho=5.0, backend=backend, master_weights=True)
    whole_step(optimizer, params)
    before, masters = clones(params), clones([optimizer.state[p]["master"] for p in params])
    gradients(params)
    with optimizer.perturbed():
        assert not same(params, before)
        assert same([optimizer.state[p]["master"] for p in params], masters)
    assert same(params, before)
    with pytest.raises(ZeroDivisionError), optimizer.perturbed():
        raise ZeroDivisionError
    assert same(params, before)
    plan = optimizer._plan
    assert plan is not None
    for t in plan.tensors:  # what is written back is the state itself
        assert all(w0 is optimizer.state[p]["master"] for p, w0 in zip(t.params, t.saved, strict=True))


@halves
def test_masters_follow_weights_that_somebody_else_wrote(dtype: torch.dtype, backend: str) -> None:
    params = parameters(dtype, (6, 300))
    optimizer = sharpkern.SAM(params, lr=1e-3, backend=backend, master_weights=True)
    whole_step(optimizer, params)
    masters = clones([optimizer.state[p]["master"] for p in params])
    with torch.no_grad():
        params[0][2] = 3.0
    gradients(params)
    optimizer.perturb()
    optimizer.restore()
    masters[0][2] = 3.0  # and every other element keeps what its rounding loses
    assert same([optimizer.state[p]["master"] for p in params], masters)
    assert params[0][2].item() == pytest.approx(3.0, abs=0)


@halves
def test_a_missing_gradient_leaves_weight_and_master(dtype: torch.dtype, backend: str) -> None:
    params = parameters(dtype, (9, 300))
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend, master_weights=True)
    whole_step(optimizer, params)
    before, masters = clones(params), clones([optimizer.state[p]["master"] for p in params])
    params[0].grad, params[1].grad = None, torch.randn_like(params[1])
    optimizer.first_step()
    assert same(params[:1], before[:1])
    params[1].grad = None  # now neither has one
    optimizer.second_step()
    assert same(params, before)
    assert same([optimizer.state[p]["master"] for p in params], masters)


@halves
def test_a_gradient_that_is_not_finite_leaves_the_masters(dtype: torch.dtype, backend: str) -> None:
    params = parameters(dtype)
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend, master_weights=True, skip_nonfinite=True)
    whole_step(optimizer, params)
    before, masters = clones(params), clones([optimizer.state[p]["master"] for p in params])
    for bad in (0, 1):
        for number, half in enumerate((optimizer.first_step, optimizer.second_step)):
            gradients(params)
            assert params[3].grad is not None
            if number == bad:
                params[3].grad[17] = torch.inf
            half()
        assert same(params, before)
        assert same([optimizer.state[p]["master"] for p in params], masters)


def test_masters_are_for_narrow_weights_alone(backend: str) -> None:
    params = [*parameters(torch.float32, (5,)), *parameters(torch.bfloat16, (5,))]
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend, master_weights=True)
    whole_step(optimizer, params)
    assert ["master" in optimizer.state[p] for p in params] == [False, True]


def test_masters_want_a_fused_update() -> None:
    with pytest.raises(ValueError, match=r"master_weights=True wants a fused update .* RMSprop"):
        sharpkern.SAM(parameters(torch.bfloat16), torch.optim.RMSprop, lr=0.1, master_weights=True)


# Stochastic rounding ----------------------------------------------------------------------------------------------


def test_philox_gives_the_known_answers() -> None:
    """Of the generator's authors, for counter and key of zeros, and of ones."""
    zeros = philox(0, torch.zeros(1, dtype=torch.int64), 0, 0)
    assert [f"{int(x):08x}" for x in zeros] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = philox(2**64 - 1, torch.full((1,), -1), 2**32 - 1, 2**32 - 1)
    assert [f"{int(x):08x}" for x in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_rounding_bits_do_not_depend_on_the_split() -> None:
    whole = rounding_bits(7, 3, 0, torch.empty(100))
    assert torch.equal(whole[40:], rounding_bits(7, 3, 40, torch.empty(60)))
    assert torch.equal(whole[5:], rounding_bits(7, 3, 5, torch.empty(95)))
    assert torch.equal(whole[2:92].reshape(9, 10)[:, :3].reshape(-1), rounding_bits(7, 3, 2, torch.empty(27), (3, 10)))
    assert not torch.equal(whole, rounding_bits(7, 4, 0, torch.empty(100)))
    assert not torch.equal(whole, rounding_bits(8, 3, 0, torch.empty(100)))
    many = rounding_bits(1, 1, 0, torch.empty(1 << 16)).double()
    assert abs(many.mean() - 32767.5) < 5 * 18918 / 256  # 65536 draws from 0 to 65535


@halves
def test_stochastic_rounding_takes_a_neighbour_with_the_probability_of_its_place(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(400) * 10.0**e for e in (-7, -5, -3, 0, 3)]).float()
    below, above = neighbours(x.double(), dtype)
    draws = torch.stack([stochastic(x, dtype, 5, draw, 0) for draw in range(600)]).double()
    assert ((draws == below) | (draws == above)).all()
    share = torch.where(above > below, (x.double() - below) / (above - below), 0.0)
    got = ((draws == above) & (above > below)).double().mean(0)
    error = (share * (1 - share) / 600).sqrt() + 1e-4  # 16 random bits know a place to 1.5e-5
    z = (got - share)[above > below] / error[above > below]
    assert abs(z.mean()) < 0.15
    assert z.abs().max() < 5.5


@halves
def test_what_has_no_neighbours_stays(dtype: torch.dtype) -> None:
    values = [0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf, float(torch.finfo(dtype).max), 2.0**-24]
    x = torch.tensor([*values, torch.nan])
    for draw in range(50):
        rounded = stochastic(x, dtype, 1, draw, 0)
        assert exactly(rounded[:-1], x[:-1])
        assert rounded[-1].isnan()


@halves
def test_backends_round_alike_and_between_neighbours(dtype: torch.dtype, backend: str) -> None:
    runs = []
    for name in ("reference", backend):
        torch.manual_seed(3)
        params = parameters(dtype, (8, 8, *SIZES))
        optimizer = sharpkern.SAM(params, lr=0.1, backend=name, stochastic_rounding=True)
        before = clones(params)
        gradients(params)
        norm = torch.cat([p.grad.double() for p in params if p.grad is not None]).norm()
        optimizer.first_step()
        for p, w, g in zip(params, before, [p.grad for p in params], strict=True):
            assert g is not None
            exact = w.double() + 0.05 * g.double() / norm
            below, above = neighbours(exact, dtype)
            slack = 1e-6 * exact.abs()  # ε is computed in float32
            assert ((p.double() >= below - slack) & (p.double() <= above + slack)).all()
        optimizer.restore()
        assert same(params, before)
        runs.append([x for _ in range(3) for x in whole_step(optimizer, params)])
    assert same(*runs)


def test_each_tensor_and_each_step_has_its_own_bits(backend: str) -> None:
    params = [torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = sharpkern.SAM(params, rho=1e-2, lr=0.0, backend=backend, stochastic_rounding=True)

    def perturbed() -> Tensor:
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.first_step()
        now = torch.stack([p.detach().clone() for p in params])
        optimizer.second_step()
        return now

    first, second = perturbed(), perturbed()
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(2):  # analysis is no step: the bits stay those of the next one
        optimizer.perturb()
        now = torch.stack([p.detach().clone() for p in params])
        optimizer.restore()
    assert torch.equal(now, perturbed())


@halves
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_resumed_run_draws_the_same_bits(way: str, dtype: torch.dtype, backend: str) -> None:
    options = {"lr": 0.1, "momentum": 0.9, "backend": backend, "stochastic_rounding": True}
    params = parameters(dtype)
    optimizer = sharpkern.SAM(params, **options)
    for _ in range(3):
        whole_step(optimizer, params)
    if way == "state_dict":
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        again = sharpkern.SAM(others, **options)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        again = copy.deepcopy(optimizer)
        others = [p for group in again.param_groups for p in group["params"]]
    results = []
    for run, weights in ((optimizer, params), (again, others)):
        torch.manual_seed(11)
        results.append([x for _ in range(3) for x in whole_step(run, weights)])
    assert same(*results)
    assert same(params, others)
    assert optimizer.state_dict()["param_groups"][0]["draws"] == again.state_dict()["param_groups"][0]["draws"] > 0


def test_without_need_nothing_is_drawn(backend: str) -> None:
    params = parameters(torch.float32)
    runs = []
    for switch in (False, True):
        torch.manual_seed(4)
        weights = [torch.nn.Parameter(p.detach().clone()) for p in params]
        optimizer = sharpkern.SAM(weights, lr=0.1, backend=backend, stochastic_rounding=switch)
        runs.append(whole_step(optimizer, weights))
    assert same(*runs)


# The warning ------------------------------------------------------------------------------------------------------


@halves
def test_the_warning_tells_the_share_once(dtype: torch.dtype, backend: str) -> None:
    params = [torch.nn.Parameter((torch.randn(n) * 0.05).to(dtype)) for n in (20000, 700)]
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend)
    gradients(params)
    assert params[0].grad is not None
    params[0].grad[:9000] = 0  # where nothing was to move nothing was lost
    before = torch.cat(clones(params))
    with pytest.warns(UserWarning, match=f"{str(dtype)[6:]} weights swallow the perturbation") as seen:
        optimizer.first_step()
    wanted = torch.cat([p.grad != 0 for p in params if p.grad is not None])
    share = ((torch.cat(clones(params)) == before) & wanted).sum() / wanted.sum()
    assert f"{100 * share:.1f} %" in str(seen[0].message)
    assert "master_weights=True or stochastic_rounding=True" in str(seen[0].message)
    assert len(seen) == 1
    optimizer.second_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole_step(optimizer, params)


@pytest.mark.parametrize(
    "options",
    [{"master_weights": True}, {"stochastic_rounding": True}, {"rho": 0.0}, {"rho": 300.0}],
    ids=["masters", "stochastic", "rho = 0", "large rho"],
)
def test_no_warning_without_reason(options: dict[str, Any], backend: str) -> None:
    params = parameters(torch.bfloat16, (2000,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole_step(sharpkern.SAM(params, lr=0.1, backend=backend, **options), params)


def test_the_warning_waits_for_a_perturbation(backend: str) -> None:
    params = parameters(torch.bfloat16, (2000,))
    optimizer = sharpkern.SAM(params, lr=0.1, rho=1e-3, backend=backend)
    params[0].grad = torch.zeros_like(params[0])
    optimizer.first_step()
    optimizer.second_step()
    gradients(params)
    with pytest.warns(UserWarning, match="swallow"):
        optimizer.first_step()


@pytest.mark.parametrize("name", ["master_weights", "stochastic_rounding", "skip_nonfinite"])
def test_a_switch_is_on_or_off(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=3: wanted True or False"):
        sharpkern.SAM(parameters(torch.bfloat16), lr=0.1, **{name: 3})


def test_repeated_draws_round_with_their_own_bits(backend: str) -> None:
    """Evolution strategies with stochastic rounding: every pair its bits, the same on every backend."""
    runs = []
    for name in ("reference", backend):
        torch.manual_seed(2)
        p = torch.nn.Parameter(torch.randn(500).to(torch.bfloat16))
        optimizer = sharpkern.EvolutionStrategies([p], rho=0.5, lr=0.0, pairs=3, backend=name, stochastic_rounding=True)
        seen: list[Tensor] = []

        def closure(p: Tensor = p, seen: list[Tensor] = seen) -> Tensor:
            seen.append(p.detach().clone())
            return p.float().sum()

        optimizer.step(closure)
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        assert (one != other).float().mean() < 0.01  # where noise of another last bit meets a boundary
