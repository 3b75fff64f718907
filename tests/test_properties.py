"""Whatever the shapes, strides, dtypes, options and thread count: the oracle's numbers, and nothing beside them.

Every weight and gradient lies in a larger buffer of NaN; what does not belong to it must be NaN afterwards.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracles import (
    VARIANTS,
    Adam,
    AdamW,
    Oracle,
    Params,
    Sgd,
    build,
    generator,
    parameters,
    same,
    spacing,
)
from torch import Tensor

import sharpkern

CALM = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FLOAT32, FLOAT64 = torch.float32, torch.float64
LAYOUTS = ["contiguous", "transposed", "rolled", "gaps", "expanded"]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its buffer: the order of its strides, gaps, and the elements before it."""

    layout: str
    offset: int

    def make(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensor, its buffer, and the mask of what lies beside it."""
        order = list(range(values.ndim))
        if self.layout == "transposed":
            order.reverse()
        elif self.layout == "rolled":
            order = order[:1] + order[2:] + order[1:2]  # channels_last for four dimensions
        strides, step = [0] * values.ndim, 2 if self.layout == "gaps" else 1
        for dim in reversed(order):
            strides[dim] = step
            step *= max(values.shape[dim], 1) + (self.layout == "gaps")
        if self.layout == "expanded" and values.ndim:
            strides[0] = 0
            values = values[:1].expand(values.shape)
        size = self.offset + sum(s * max(n - 1, 0) for s, n in zip(strides, values.shape, strict=True)) + 19
        buffer, beside = torch.full((size,), math.nan, dtype=values.dtype), torch.ones(size, dtype=torch.bool)
        tensor = buffer.as_strided(values.shape, strides, self.offset)
        if values.numel():
            first = (slice(0, 1),) * (self.layout == "expanded" and values.ndim > 0)
            tensor[first].copy_(values[first])
            beside.as_strided(values.shape, strides, self.offset)[first].fill_(False)
        return tensor, buffer, beside


def places(layouts: list[str]) -> st.SearchStrategy[Place]:
    """Draw a layout and a misalignment."""
    return st.builds(Place, st.sampled_from(layouts), st.integers(0, 9))


SHAPES = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.sampled_from([
        (1,),
        (7,),
        (15,),
        (17,),
        (255,),
        (257,),
        (4097,),
        (3, 65),
        (2, 3, 5, 7),
        (1, 1, 8, 1),
        (67, 123),
    ]),
)
DTYPES = st.sampled_from([FLOAT32, FLOAT32, torch.bfloat16, torch.float16, FLOAT64])
TENSORS = st.lists(st.tuples(SHAPES, DTYPES, places(LAYOUTS[:-1]), places(LAYOUTS)), min_size=1, max_size=5)
NUMBERS = st.sampled_from([0.0, 0.01, 0.5, 0.9])


def bases() -> st.SearchStrategy[tuple[Any, Any, dict[str, Any]]]:
    """Draw a base optimizer of torch, its oracle and its options."""
    rate, flag = st.sampled_from([0.1, 0.001]), st.booleans()
    sgd = st.fixed_dictionaries({
        "lr": rate,
        "momentum": NUMBERS,
        "dampening": NUMBERS,
        "weight_decay": NUMBERS,
        "maximize": flag,
    })
    nesterov = st.fixed_dictionaries({"lr": rate, "momentum": st.just(0.8), "nesterov": st.just(True)})
    betas, eps = st.sampled_from([(0.9, 0.999), (0.0, 0.5)]), st.sampled_from([1e-8, 1e-3])
    adam = st.fixed_dictionaries({"lr": rate, "betas": betas, "eps": eps, "weight_decay": NUMBERS, "maximize": flag})
    return st.one_of(
        st.tuples(st.just(torch.optim.SGD), st.just(Sgd), st.one_of(sgd, nesterov)),
        st.tuples(st.just(torch.optim.Adam), st.just(Adam), adam),
        st.tuples(st.just(torch.optim.AdamW), st.just(AdamW), adam),
    )


def assert_near(params: Params, expected: list[Tensor], before: list[Tensor], moves: list[float]) -> None:
    """Demand one unit of the last place of the weight, and float32's rounding of the sizes that entered."""
    for p, e, b, move in zip(params, expected, before, moves, strict=True):
        allowed = 1.001 * spacing(torch.maximum(e.abs(), b.double().abs()), p.dtype) + move
        wrong = ~((p.detach().double() - e).abs() <= allowed)
        assert not wrong.any(), (p.dtype, tuple(p.shape), p.detach()[wrong][:3], e[wrong][:3])


@CALM
@given(st.sampled_from(sorted(VARIANTS)), TENSORS, bases(), st.sampled_from([0.05, 1.0]), st.integers(0, 2**20))
@example(
    "fisher-average",
    [((300_007,), FLOAT32, Place("contiguous", 3), Place("contiguous", 5)), ((), FLOAT32, *[Place("gaps", 1)] * 2)],
    (torch.optim.AdamW, AdamW, {"lr": 0.01}),
    1.0,
    0,
)
def test_two_steps_equal_the_oracle_wherever_tensors_lie(
    backend: str,
    variant: str,
    tensors: list[Any],
    base: tuple[Any, Any, dict[str, Any]],
    rho: float,
    seed: int,
) -> None:
    draw, (torch_class, oracle_class, options) = generator(seed), base
    random = [torch.randn(shape, generator=draw).to(dtype) for shape, dtype, _, _ in tensors]
    placed = [place.make(values) for values, (_, _, place, _) in zip(random, tensors, strict=True)]
    params = [torch.nn.Parameter(tensor) for tensor, _, _ in placed]
    row = VARIANTS[variant]
    arguments = {**row.arguments(params), "rho": rho, **options}
    optimizer = getattr(sharpkern, row.name)(params, torch_class, backend=backend, **arguments)
    oracle: Oracle = row.oracle(params, oracle_class(**options))
    oracle.rhos = [rho] * len(params)

    def gradients() -> list[Tensor]:
        for p, (shape, dtype, _, place) in zip(params, tensors, strict=True):
            tensor, buffer, beside = place.make(torch.randn(shape, generator=draw).to(dtype))
            p.grad = tensor
            placed.append((tensor, buffer, beside))
        return [p.grad for p in params if p.grad is not None]

    for _ in range(2):
        before = [p.detach().clone() for p in params]
        oracle.reset(params)
        up = oracle.ascend(gradients())
        optimizer.first_step()
        size = [0.0 if not e.numel() else 4e-6 * e.abs().max().item() for e in oracle.epsilon]
        assert_near(params, up, before, size)
        g2 = gradients()
        down = oracle.descend(g2)
        optimizer.second_step()
        decay, lr = options.get("weight_decay", 0.0), options["lr"]
        scale = [
            0.0
            if not w.numel()
            else lr * (1 + (3 + oracle_s.max().item()) * g.abs().max().item() + decay * w.abs().max().item())
            for w, g, oracle_s in zip(before, g2, oracle.s, strict=True)
        ]
        assert_near(params, down, before, [8e-6 * x for x in scale])
    for _, buffer, beside in placed:
        assert bool(buffer[beside].isnan().all()), "something was written beside a tensor"


@CALM
@given(st.sampled_from(sorted(VARIANTS)), TENSORS, st.integers(0, 2**20))
def test_the_way_back_is_exact_wherever_tensors_lie(backend: str, variant: str, tensors: list[Any], seed: int) -> None:
    draw = generator(seed)
    placed = [place.make(torch.randn(shape, generator=draw).to(dtype)) for shape, dtype, place, _ in tensors]
    params, buffers = [torch.nn.Parameter(tensor) for tensor, _, _ in placed], [buffer for _, buffer, _ in placed]
    before = [buffer.clone() for buffer in buffers]
    optimizer = build(sharpkern, variant, "adamw", params, backend)
    for p, (shape, dtype, _, place) in zip(params, tensors, strict=True):
        p.grad = place.make(torch.randn(shape, generator=draw).to(dtype))[0]
    optimizer.perturb()
    optimizer.restore()
    assert same(buffers, before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 150_000, 299_999, -1])
def test_one_bad_gradient_anywhere_is_seen(at: int, bad: float, seed: int, backend: str) -> None:
    dtype = [FLOAT32, torch.bfloat16, torch.float16][seed]
    params = parameters([torch.zeros(n, dtype=dtype) for n in (5, 300_001, 0)])
    before = [p.detach().clone() for p in params]
    optimizer = build(sharpkern, "asam", "sgd", params, backend)
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    optimizer.perturb()
    assert not same(params[:1], before[:1])
    optimizer.restore()
    assert params[1].grad is not None
    params[1].grad[at] = bad
    optimizer.perturb()
    assert same(params, before)
    optimizer.restore()


MANY = [(300_007, FLOAT32), (70_001, torch.bfloat16), (33_333, torch.float16), (0, FLOAT32), *[(41, FLOAT32)] * 30]


@functools.cache
def many_tensors(draw: int) -> list[Tensor]:
    """Return one tensor beyond every threshold for threads, many small ones, and sizes that no chunk divides."""
    return [torch.randn(n, generator=generator(81, draw)).to(dtype) for n, dtype in MANY]


@pytest.mark.parametrize(("variant", "base"), [*zip(VARIANTS, ["sgd-nesterov", "adamw"] * 5, strict=True)])
def test_one_and_two_threads_agree_bit_for_bit(variant: str, base: str, backend: str) -> None:
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            params = parameters(many_tensors(0))
            optimizer = build(sharpkern, variant, base, params, backend)
            points: list[Tensor] = []
            for draw, move in enumerate((optimizer.first_step, optimizer.second_step), start=1):
                for p, g in zip(params, many_tensors(draw), strict=True):
                    p.grad = g.clone()
                move()
                points += [p.detach().clone() for p in params]
            runs.append(points)
    finally:
        torch.set_num_threads(threads)
    assert same(*runs)
