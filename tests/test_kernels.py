"""The extension's kernels, each instruction set by itself: conversions, rounding, streaming stores, the partition."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from cases import (
    COVARIANCES,
    DTYPES,
    NATURAL,
    UPDATES,
    Lists,
    bits,
    check_ascend,
    check_descend,
    check_sq_norm,
    exactly,
    scalar,
)
from conftest import ON_CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import spacing
from torch import Tensor

from sharpkern.base import SGD, Number, Update
from sharpkern.correction import Correction
from sharpkern.covariance import Covariance, Fisher, Identity
from sharpkern.tensors import Tensors

pytestmark = pytest.mark.skipif(not ON_CPU["native"].usable, reason=str(ON_CPU["native"].why_not))

CHUNK = 1024  # elements that are traversed together
SIZES = (0, 1, 3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097)
HALVES = (torch.bfloat16, torch.float16)

dtypes = pytest.mark.parametrize("dtypes", DTYPES)


class Kernels:
    """The ops of the extension with one instruction set, number of threads, and way to store."""

    def __init__(self, instruction_set: str, threads: int = 1, streaming: bool = False) -> None:
        self.instruction_set, self.threads, self.streaming = instruction_set, threads, streaming

    def why_not(self, device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
        """It runs where the extension does; without it all tests here are skipped."""
        return None if device.type == "cpu" else f"not on {device.type}"

    def _table(self, t: Tensors) -> Any:
        from sharpkern.backend.native import _kernels

        names = [str(dtype).removeprefix("torch.") for dtype in (t.dtype, t.gradient_dtype)]
        numel = [w.numel() for w in t.weights]
        table = _kernels.Table(numel, *names, t.master, self.instruction_set, self.streaming)
        rows = {"weight": t.weights, "gradient": t.gradients, "saved": t.saved, "source": t.source}
        for row, tensors in {**rows, "fisher": t.fisher, "m": t.m, "v": t.v}.items():
            if tensors:
                table.set(row, [0 if x is None else x.data_ptr() for x in tensors])
        table.set_steps(t.steps.data_ptr())
        if t.take is not None:
            table.set_take(t.take.data_ptr())
        if t.draw is not None:
            table.set_noise(t.draw.data_ptr(), t.seed, t.start, t.stochastic)
        return table

    def sq_norm(self, t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
        """total ← Σ s g², or with `add` total + Σ s g²."""
        self._table(t).sq_norm(self.threads, covariance.kernel, covariance.scalars, total.data_ptr(), add)

    def ascend_(
        self,
        t: Tensors,
        covariance: Covariance,
        rho: Number,
        total: Tensor | None,
        track: bool,
        worst: float = 1.0,
        noise: float = 0.0,
        again: int | None = None,
    ) -> None:
        """w0 ← w, w ← w + rho (worst s g / sqrt(total) + noise sqrt(s) η)."""
        formula = covariance.kernel, covariance.scalars
        address, number = 0 if total is None else total.data_ptr(), -1 if again is None else again
        self._table(t).ascend(self.threads, *formula, float(rho), address, track, worst, noise, number)

    def descend_(
        self, t: Tensors, update: Update, correction: Correction | None, total: Tensor, second: Tensor | None
    ) -> None:
        """w ← update(w0, g)."""
        formula = (correction.kernel, correction.scalars) if correction else ("", ())
        sums = total.data_ptr(), 0 if second is None else second.data_ptr()
        self._table(t).descend(self.threads, update.kernel, update.options, *formula, *sums)

    def restore_(self, t: Tensors, total: Tensor) -> None:
        """w ← w0."""
        self._table(t).restore(self.threads, total.data_ptr())


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> str:
    """Each instruction set that runs here."""
    name: str = request.param
    needs(name)
    return name


@pytest.fixture(params=[False, True], ids=["cached", "streaming"])
def kernels(request: pytest.FixtureRequest, instruction_set: str) -> Kernels:
    """Each instruction set, with ordinary and with streaming stores."""
    return Kernels(instruction_set, streaming=request.param)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The wanted values are computed on one thread; kernels are told theirs."""
    torch.set_num_threads(1)


def needs(*names: str) -> None:
    """Skip unless these instruction sets run here."""
    from sharpkern.backend.native import _kernels

    here = _kernels.instruction_sets()
    if not set(names) <= set(here):
        pytest.skip(f"this processor runs {', '.join(here)}, not all of {', '.join(names)}")


# Formulas ---------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_first_pass(covariance: str, dtypes: str, instruction_set: str) -> None:
    check_sq_norm(Kernels(instruction_set), covariance, dtypes, SIZES)
    cached = check_ascend(Kernels(instruction_set), covariance, dtypes, SIZES)
    streamed = check_ascend(Kernels(instruction_set, streaming=True), covariance, dtypes, SIZES)
    same(cached, streamed)


@dtypes
@pytest.mark.parametrize("natural", NATURAL)
@pytest.mark.parametrize("update", UPDATES)
def test_second_pass(update: str, natural: str, dtypes: str, instruction_set: str) -> None:
    cached = check_descend(Kernels(instruction_set), update, natural, dtypes, SIZES)
    streamed = check_descend(Kernels(instruction_set, streaming=True), update, natural, dtypes, SIZES)
    same(cached, streamed)


@dtypes
def test_the_way_back(dtypes: str, kernels: Kernels) -> None:
    case = Lists(dtypes, 20, SIZES, perturbed=True)
    kernels.restore_(case.t, scalar(1.0))
    assert exactly(case.arenas["weight"].flat(), case.before["saved"])
    assert case.changed() == {"weight"}


def same(one: Lists, other: Lists) -> None:
    """Two lists hold the same bits."""
    for row, arena in one.arenas.items():
        assert exactly(arena.flat(), other.arenas[row].flat()), row


@dtypes
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_norm_has_the_same_bits_everywhere(covariance: str, dtypes: str) -> None:
    needs("avx2", "avx512")
    case, sums = Lists(dtypes, 21, (*SIZES, 65537)), []
    for name, threads in (("avx2", 1), ("avx512", 1), ("avx2", 2), ("avx512", 2), ("avx512", 3), ("avx512", 3)):
        sums.append(scalar(0.0))
        Kernels(name, threads).sq_norm(case.t, COVARIANCES[covariance][0], sums[-1])
    assert len({int(bits(total)) for total in sums}) == 1


# Conversions ------------------------------------------------------------------------------------------------------


def run_through(kernels: Kernels, *, gradient: Tensor, weight: torch.dtype, fisher: Tensor | None = None) -> Tensor:
    """-0 + 1 · s g, rounded to the dtype of the weights: the gradient itself where s is 1."""
    p = torch.nn.Parameter(torch.full(gradient.shape, -0.0, dtype=weight))
    p.grad_dtype = gradient.dtype
    p.grad = gradient
    t = Tensors([p], 0)
    t.read_gradients()
    t.allocate_saved()
    t.set_source()
    t.fisher = [fisher]
    kernels.ascend_(t, Identity() if fisher is None else Fisher(0.0, "additive", 0.0), 1.0, scalar(1.0), True)
    return p.detach()


def equal_or_both_nan(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, except that one NaN is as good as another."""
    nan = y.isnan()
    return torch.equal(x.isnan(), nan) and exactly(x[~nan], y[~nan])


def all_halves(dtype: torch.dtype) -> Tensor:
    """Every bit pattern of a dtype of 16 bits."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_read_exactly(dtype: torch.dtype, kernels: Kernels) -> None:
    halves = all_halves(dtype)
    assert equal_or_both_nan(run_through(kernels, gradient=halves, weight=torch.float32), halves.float())
    assert equal_or_both_nan(run_through(kernels, gradient=halves, weight=dtype), halves)
    for odd in (1, 3, 7, 9):  # conversion in steps of 8 leaves a tail
        few = halves[31 : 31 + odd].clone()
        assert equal_or_both_nan(run_through(kernels, gradient=few, weight=torch.float32), few.float())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_rounded_to_the_nearest_even(dtype: torch.dtype, kernels: Kernels) -> None:
    halves = all_halves(dtype).float()
    ties = bits(halves) + (0x8000 if dtype == torch.bfloat16 else 0x1000)  # half way to the next; subnormals below
    small = torch.arange(-4100, 4100) * 2.0**-26  # in quarters of float16's smallest
    near = [(ties + offset).view(torch.float32) for offset in (-1, 0, 1)]
    anything = torch.randint(-(1 << 31), 1 << 31, (1 << 17,)).to(torch.int32).view(torch.float32)
    limits = torch.tensor([65504.0, 65519.996, 65520.0, 65536.0, 3.3961775e38, 3.4028235e38, 1e-45, 2.0**-25, 0.0])
    values = torch.cat([halves, *near, small, anything, limits, -limits])
    assert equal_or_both_nan(run_through(kernels, gradient=values, weight=dtype), values.to(dtype))
    p = torch.nn.Parameter(torch.full(values.shape, -0.0, dtype=dtype))
    p.grad_dtype = torch.float32
    p.grad = -values
    t = Tensors([p], 0)
    t.read_gradients()
    kernels.descend_(t, SGD(1.0), None, scalar(1.0), None)
    assert equal_or_both_nan(p.detach(), values.to(dtype))


def test_the_reciprocal_is_within_one_ulp(kernels: Kernels) -> None:
    """At every exponent whose reciprocal is a normal number; s = 1/(f + 0) and g = 1."""
    exponent = torch.arange(1, 252, dtype=torch.int32)[:, None]
    mantissa = torch.randint(1 << 23, (251, 4096), dtype=torch.int32)
    mantissa[:, :2] = torch.tensor([0, (1 << 23) - 1])
    f = (exponent << 23 | mantissa).view(torch.float32).reshape(-1)
    s = run_through(kernels, gradient=torch.ones_like(f), weight=torch.float32, fisher=f)
    wanted = 1 / f.double()
    bound = 2 if kernels.instruction_set == "baseline" else 1  # without FMA a step rounds twice
    assert ((s.double() - wanted).abs() / spacing(wanted, torch.float32)).max() <= bound


# The partition ----------------------------------------------------------------------------------------------------

EDGES = (0, 1, 2, 127, 128, 129, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 128, 16383, 16384, 16385, 50001)


def check_partition(sizes: Sequence[int], threads: int) -> None:
    """In place, w ← w - g from w = 0 ends at -g where an element is visited once and nowhere else."""
    numbers = torch.arange(1.0, sum(sizes) + 1).split(list(sizes))
    params = [torch.nn.Parameter(torch.zeros(n)) for n in sizes]
    for p, g in zip(params, numbers, strict=True):
        p.grad = g.clone()
    t = Tensors(params, 0)
    t.read_gradients()
    t.allocate_saved()
    kernels, total = Kernels("baseline", threads), scalar(0.0)
    kernels.sq_norm(t, Identity(), total)
    wanted = sum(float(g.double().square().sum()) for g in numbers)
    assert float(total) == pytest.approx(wanted, rel=1e-6)
    kernels.descend_(t, SGD(1.0), None, scalar(1.0), None)
    assert all(torch.equal(p.detach(), -g) for p, g in zip(params, numbers, strict=True))
    kernels.ascend_(t, Identity(), 2.0, scalar(1.0), False)
    assert all(torch.equal(w0, -g) for w0, g in zip(t.saved, numbers, strict=True))
    assert all(torch.equal(p.detach(), g) for p, g in zip(params, numbers, strict=True))
    t.set_source()
    kernels.restore_(t, total)
    assert all(torch.equal(p.detach(), -g) for p, g in zip(params, numbers, strict=True))


@settings(deadline=None)
@given(sizes=st.lists(st.sampled_from(EDGES), min_size=1, max_size=40), threads=st.integers(1, 5))
def test_every_element_is_visited_once(sizes: list[int], threads: int) -> None:
    check_partition(sizes, threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "sizes",
    [(0,), (0,) * 300, (1,) * 300, (100_000,), (0, 100_000, 0), (100_000, *(1,) * 200), (CHUNK,) * 17, (127,) * 160],
    ids=lambda sizes: f"{len(sizes)} tensors of {sum(sizes)}",
)
def test_every_element_is_visited_once_at_the_edges(sizes: tuple[int, ...], threads: int) -> None:
    check_partition(sizes, threads)


# What the table refuses -------------------------------------------------------------------------------------------


def table(weight: str = "float32", gradient: str = "float32", instruction_set: str = "baseline") -> Any:
    """A table of one tensor."""
    from sharpkern.backend.native import _kernels

    return _kernels.Table([3], weight, gradient, False, instruction_set, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": "int8"}, "no kernel for dtype int8"),
        ({"weight": "float64"}, "float64 weights want float64 gradients"),
        ({"instruction_set": "sse9"}, "'sse9' does not run on this processor"),
    ],
)
def test_a_table_that_cannot_be(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**arguments)


def test_a_formula_or_row_that_is_not_there() -> None:
    total = scalar(0.0)
    for call in (
        lambda: table().sq_norm(1, "no such", (), total.data_ptr(), False),
        lambda: table().ascend(1, "no such", (), 0.1, scalar(1.0).data_ptr(), False, 1.0, 0.0, -1),
        lambda: table().set("no such", [0]),
        lambda: table().set("weight", [0, 0]),
    ):
        with pytest.raises(ValueError, match=r"no such|2 addresses for 1 tensors"):
            call()
