"""Every op of every backend against the reference in float64, on fresh random data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sharpkern import ops
from sharpkern.base import SGD, Adam
from sharpkern.correction import Correction, Drawn, Estimated, Natural, Traced
from sharpkern.covariance import Adaptive, Covariance, Fisher, Identity, Learned, Tracer
from sharpkern.tensors import Tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COVARIANCES: tuple[Covariance, ...] = (
    Identity(),
    Adaptive(0.01),
    Fisher(10.0, "inverse"),
    Fisher(0.5, "additive"),
    Fisher(10.0, "inverse", 0.9),
    Fisher(0.5, "additive", 0.9),
    Learned(0.3, 0.1, 2.0),
    Learned(0.05, 0.1, 2.0, log=False),
    Tracer(0.3),
    Tracer(0.3, adam=0.9),
)
UPDATES: tuple[SGD | Adam, ...] = (
    SGD(0.1, weight_decay=0.01),
    SGD(0.1, momentum=0.9, dampening=0.5, weight_decay=0.01, maximize=True),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.01, (0.9, 0.999), 1e-8, 0.01, decoupled=False, maximize=False),
    Adam(0.01, (0.9, 0.999), 1e-8, 0.01, decoupled=True, maximize=True),
)
CORRECTIONS: tuple[Correction | None, ...] = (
    None,
    Natural(Fisher(10.0, "inverse", 1.0)),
    Natural(Fisher(0.5, "additive", 1.0)),
    Drawn(Learned(0.3, 0.1, 2.0)),
    Drawn(Learned(0.05, 0.1, 2.0, log=False)),
    Traced(Tracer(0.3, beta=0.2), 0.1, 20.0, False),
    Traced(Tracer(0.3, adam=0.9), 0.1, 20.0, True),
)
PAIRS = 3
SIZES = (1, 7, 64, 1000, 4097, 40001)

# In units in the last place of the output's dtype, at the size of what was added up: arithmetic of a few roundings.
BOUND = 4.0
# The norm rounds to float32 once a term and adds up to 32 of them in each lane before it turns to float64.
NORM_BOUND = 16.0
LARGEST = 6.7  # of all normal numbers that are drawn


@dataclass(frozen=True)
class Row:
    """The worst error of one op.

    Attributes:
        backend: Name of the backend.
        device: "cpu" or "cuda".
        op: Name of the op.
        formula: Covariance or base update.
        dtype: Of the weights and gradients.
        error: In units in the last place.
        bound: What it has to stay below.
    """

    backend: str
    device: str
    op: str
    formula: str
    dtype: torch.dtype
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is in bounds; NaN is not."""
        return self.error <= self.bound


@dataclass(frozen=True)
class _Place:
    """A backend on a device, and where random data come from."""

    backend: str
    device: str
    generator: torch.Generator

    @property
    def ops(self) -> ops.Ops:
        return ops.load(self.backend)

    def row(self, op: str, formula: str, dtype: torch.dtype, error: float, bound: float) -> Row:
        """What came out there."""
        return Row(self.backend, self.device, op, formula, dtype, error, bound)

    def scalar(self, value: Tensor) -> Tensor:
        """A sum as the ops take it."""
        return value.to(self.device)


def _lists(dtype: torch.dtype, place: _Place) -> Tensors:
    """A list of tensors with everything that any op may want, random."""

    def draw(n: int, scale: float) -> Tensor:
        return (torch.randn(n, generator=place.generator) * scale).to(place.device)

    params = [torch.nn.Parameter(draw(n, 0.5).to(dtype)) for n in SIZES]
    for p in params:
        p.grad = draw(p.numel(), 0.3).to(dtype)
    t = Tensors(params, 0)
    t.read_gradients()
    t.allocate_saved()
    t.set_source()
    t.steps += 3
    t.fisher = [(0.01 + draw(n, 0.1).square()).to(t.state_dtype) for n in SIZES]
    t.first = [draw(n, 0.3).to(dtype) for n in SIZES]
    t.pairs = draw(2 * PAIRS, 0.3).reshape(2, PAIRS)
    t.seed, t.draw = 2**40 + 3, torch.tensor(5, device=place.device)
    t.start = [8 * sum(SIZES[:i]) for i in range(len(SIZES))]
    t.m = [draw(n, 0.2).to(t.state_dtype) for n in SIZES]
    t.v = [draw(n, 0.2).square().to(t.state_dtype) for n in SIZES]
    for w, w0 in zip(t.weights, t.saved, strict=True):
        w0.copy_(w)
    return t


def _twin(t: Tensors) -> Tensors:
    """The same on the CPU in float64."""

    def wide(tensors: Sequence[Tensor | None]) -> list[Any]:
        return [None if x is None else x.to("cpu", torch.float64, copy=True) for x in tensors]

    params = [torch.nn.Parameter(w) for w in wide(t.weights)]
    for p, g in zip(params, wide(t.gradients), strict=True):
        p.grad = g
    twin = Tensors(params, 0)
    twin.read_gradients()
    twin.saved = wide(t.saved)
    twin.set_source()
    twin.steps += t.steps.cpu()
    twin.pairs = None if t.pairs is None else t.pairs.cpu()
    twin.seed, twin.start = t.seed, t.start
    twin.draw = None if t.draw is None else t.draw.to("cpu", copy=True)
    twin.first = wide(t.first)
    twin.fisher, twin.m, twin.v = wide(t.fisher), wide(t.m), wide(t.v)
    return twin


def _magnitudes(t: Tensors) -> Tensors:
    """The same in float64 without signs: an update of these, with -lr, gives the size of what the update adds up."""
    twin = _twin(t)
    for row in (twin.weights, twin.saved, twin.gradients, twin.m, twin.first):
        for x in row:
            if x is not None:
                x.abs_()
    for x in twin.first:
        if x is not None:
            x.neg_()  # g2 - g
    return twin


def _error(got: Sequence[Tensor | None], wanted: Sequence[Tensor | None], sizes: Sequence[Tensor | None]) -> float:
    """The worst difference in ulp at the size of the value or the given one, whichever is larger."""
    worst = 0.0
    for x, y, x0 in zip(got, wanted, sizes, strict=True):
        if x is None or y is None or x0 is None:
            continue
        info = torch.finfo(x.dtype)
        size = torch.maximum(y.abs(), x0.cpu().double().abs()).clamp_min(info.smallest_normal)
        error = float(((x.cpu().double() - y).abs() / (size * info.eps)).max())
        worst = error if not error <= worst else worst  # NaN is the worst
    return worst


def _copies(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.clone() for x in tensors]


def _formula(covariance: Covariance) -> str:
    """The name under which a covariance is listed."""
    if isinstance(covariance, Learned):
        return covariance.kernel + ("" if covariance.log else "_direct")
    if isinstance(covariance, Tracer):
        return covariance.kernel + ("_adam" if covariance.adam else "")
    if not isinstance(covariance, Fisher):
        return covariance.kernel
    return covariance.damping + ("" if covariance.batch else "_average")


def _norm_rows(dtype: torch.dtype, place: _Place) -> Iterator[Row]:
    backend, reference = place.ops, ops.load("reference")
    for covariance in COVARIANCES:
        t = _lists(dtype, place)
        total, wanted = torch.zeros((2,), dtype=torch.float64).unbind()
        total = place.scalar(total)
        backend.sq_norm(t, covariance, total)
        reference.sq_norm(_twin(t), covariance, wanted)
        error = float((total.cpu() / wanted - 1).abs() / torch.finfo(t.state_dtype).eps)
        yield place.row("sq_norm", _formula(covariance), dtype, error, NORM_BOUND)

        twin, before = _twin(t), [_copies(t.weights), _copies(t.fisher)]
        backend.ascend_(t, covariance, 0.5, place.scalar(wanted), True)
        reference.ascend_(twin, covariance, 0.5, wanted, True)
        errors = [_error(t.weights, twin.weights, before[0]), _error(t.fisher, twin.fisher, before[1])]
        if not all(torch.equal(w0, w) for w0, w in zip(t.saved, before[0], strict=True) if w is not None):
            errors.append(float("inf"))  # the copy is exact or wrong
        yield place.row("ascend_", _formula(covariance), dtype, max(errors), BOUND)


def _noise_rows(dtype: torch.dtype, place: _Place) -> Iterator[Row]:
    """Noise is float32 whatever the weights: its error is measured at its largest possible value."""
    rho, noise = 2.0, 0.3
    for covariance in (Identity(), Learned(0.3)):
        t = _lists(dtype, place)
        twin = _twin(t)
        place.ops.ascend_(t, covariance, rho, None, True, 0.0, noise)
        ops.load("reference").ascend_(twin, covariance, rho, None, True, 0.0, noise)
        errors = []
        for x, y, f in zip(t.weights, twin.weights, twin.fisher, strict=True):
            size = LARGEST * rho * noise * (1.0 if f is None or not covariance.state else float(f.max()) ** 0.5)
            unit = torch.finfo(torch.float32).eps * size + torch.finfo(dtype).eps * y.abs()
            errors.append(float(((x.cpu().double() - y).abs() / unit).max()))
        yield place.row("ascend_", f"noise × {_formula(covariance)}", dtype, max(errors), BOUND)

    t = _lists(dtype, place)
    twin, estimated, one = _twin(t), Estimated(0.5, 0.1, 0.3), torch.ones((), dtype=torch.float64)
    place.ops.descend_(t, SGD(1.0), estimated, place.scalar(one), None)
    ops.load("reference").descend_(twin, SGD(1.0), estimated, one, None)
    assert t.pairs is not None
    weights, utilities = t.pairs.cpu().double().abs().sum(1).tolist()
    errors = []
    for x, y, f, wanted in zip(t.weights, twin.weights, t.fisher, twin.fisher, strict=True):
        assert f is not None
        assert wanted is not None
        size = LARGEST * weights / (0.5 * 0.1 * 0.1)  # s is 0.01 or more
        unit = torch.finfo(torch.float32).eps * size + torch.finfo(dtype).eps * y.abs()
        errors.append(float(((x.cpu().double() - y).abs() / unit).max()))
        unit = torch.finfo(torch.float32).eps * wanted * (1 + 0.5 * 0.3 * utilities * LARGEST**2)
        errors.append(float(((f.cpu().double() - wanted).abs() / unit).max()))
    yield place.row("descend_", "sgd × estimated", dtype, max(errors), BOUND)


def _update_rows(dtype: torch.dtype, place: _Place) -> Iterator[Row]:
    backend, reference = place.ops, ops.load("reference")
    one = torch.ones((), dtype=torch.float64)
    total = place.scalar(one)
    for update, correction in itertools.product(UPDATES, CORRECTIONS):
        t = _lists(dtype, place)
        twin, size = _twin(t), _magnitudes(t)
        reference.descend_(size, replace(update, lr=-update.lr, maximize=False), correction, one, None)
        backend.descend_(t, update, correction, total, None)
        reference.descend_(twin, update, correction, one, None)
        errors = [
            _error(t.weights, twin.weights, size.weights),
            _error(t.m, twin.m, size.m),
            _error(t.v, twin.v, size.v),
            _error(t.fisher, twin.fisher, size.fisher),
        ]
        name = "adamw" if isinstance(update, Adam) and update.decoupled else update.kernel
        formula = name + ("" if correction is None else f" × {correction.kernel}")
        yield place.row("descend_", formula, dtype, max(errors), BOUND)

    t = _lists(dtype, place)
    for w in t.weights:
        w.fill_(float("nan"))
    backend.restore_(t, total)
    same = all(torch.equal(w, w0) for w, w0 in zip(t.weights, t.saved, strict=True))
    yield place.row("restore_", "copy", dtype, 0.0 if same else float("inf"), 0.0)


def run(seed: int = 0) -> Iterator[Row]:
    """Checks every op × formula × dtype of every backend on every device where it can be used.

    Args:
        seed: Of the random data.

    Yields:
        One row a check.
    """
    generator = torch.Generator().manual_seed(seed)
    for status in ops.backends():
        for dtype in DTYPES:
            if ops.load(status.name).why_not(torch.device(status.device), {dtype}) is None:
                place = _Place(status.name, status.device, generator)
                yield from _norm_rows(dtype, place)
                yield from _noise_rows(dtype, place)
                yield from _update_rows(dtype, place)
