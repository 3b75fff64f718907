"""What the ops are tried on: float64 formulas from the papers, lists of tensors between canaries, bounds, checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import oracles
import torch
from oracles import spacing
from torch import Tensor

from sharpkern import ops
from sharpkern.base import SGD, Adam, Update
from sharpkern.correction import Natural
from sharpkern.covariance import Adaptive, Covariance, Fisher, Identity
from sharpkern.tensors import Tensors

# Bounds -----------------------------------------------------------------------------------------------------------

# An output is the end of at most 16 roundings of scalars and intermediate results, each half a unit of the arithmetic
# at the size of what was added up; a weight narrower than the arithmetic is then rounded once more, to the nearest.
UNITS = 8.0
# A term of the norm is the end of 8 roundings. Before float64 at most 32 are added up one by one, then in 6 halvings:
# the CPU's chunk of 1024 in 64 lanes of 16, a GPU's of 4096 in 256 lanes of 16.
NORM_UNITS = (8 + 32 + 6) / 2

# By how many elements a view is misaligned, and how many tensors are many: tests of one backend change them.
OFFSETS = (1, 8)
MANY = 2500

SIZES = (0, 1, 3, 4, 7, 8, 15, 16, 17, 255, 256, 257, 511, 513, 1023, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 65537)

# Of the weights and of the gradients.
DTYPES = {
    "f32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "f16": (torch.float16, torch.float16),
    "f64": (torch.float64, torch.float64),
    "bf16-f32": (torch.bfloat16, torch.float32),
    "f32-bf16": (torch.float32, torch.bfloat16),
    "f16-f32": (torch.float16, torch.float32),
}

# Formulas, which know nothing of sharpkern ------------------------------------------------------------------------
#
# Every tensor has two rows: the value, and the sum of the magnitudes of what was added up to it. Rounding errors are
# measured against the second: terms that cancel leave the error of the larger ones behind.

Damping = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # of w, g, f: the new f, and s
Take = tuple[float, float] | None  # the factor and the bound with which gradients are read
At = Callable[[Callable[[float], float]], Tensor]  # a number for every element, from the updates it has seen
MINUS = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)


def identity(w: Tensor, g: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """SAM, [F] 2 and 3: s = 1."""
    return f, torch.ones_like(w)


def adaptive(eta: float) -> Damping:
    """ASAM, [F] 4 and 5: s = (|w| + eta)²."""
    return lambda w, g, f: (f, (w.abs() + eta) ** 2)


def fisher(eta: float, additive: bool, beta: float | None = None) -> Damping:
    """Fisher SAM, [F] 10 and 12: s = 1/(1 + eta f) or 1/(f + eta), from f = g² or, [G] 52, its moving average."""

    def formula(w: Tensor, g: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        f = g * g if beta is None else (1 - beta) * f + beta * g * g
        return f, 1 / (f + eta) if additive else 1 / (1 + eta * f)

    return formula


def sgd(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    at: At,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new w, m and v of torch.optim.SGD, as its documentation states it."""
    d = (MINUS * g if maximize else g) + weight_decay * w
    if momentum:
        m = momentum * m + at(lambda t: 1.0 if t == 0 else 1 - dampening) * d
        d = d + momentum * m if nesterov else m
    return w + MINUS * lr * d, m, v


def adam(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    at: At,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new w, m and v of torch.optim.Adam, or AdamW if decoupled, as its documentation states it."""
    d = MINUS * g if maximize else g
    if decoupled:
        w = w * (1 - lr * weight_decay)
    else:
        d = d + weight_decay * w
    m = betas[0] * m + (1 - betas[0]) * d
    v = betas[1] * v + (1 - betas[1]) * d * d
    root = (v[0] / at(lambda t: 1 - betas[1] ** (t + 1))).sqrt() + eps
    blur = torch.stack([torch.ones_like(v[0]), (v[1] / v[0]).nan_to_num(1.0)])  # cancellation in d reaches the root
    return w + MINUS * lr * m * blur / (at(lambda t: 1 - betas[0] ** (t + 1)) * root), m, v


COVARIANCES: dict[str, tuple[Covariance, Damping]] = {
    "identity": (Identity(), identity),
    "adaptive": (Adaptive(0.01), adaptive(0.01)),
    "adaptive-0": (Adaptive(0.0), adaptive(0.0)),
    "inverse": (Fisher(10.0, "inverse"), fisher(10.0, additive=False)),
    "additive": (Fisher(0.5, "additive"), fisher(0.5, additive=True)),
    "inverse-average": (Fisher(10.0, "inverse", 0.9), fisher(10.0, False, 0.9)),
    "additive-average": (Fisher(0.5, "additive", 0.3), fisher(0.5, True, 0.3)),
    "inverse-kept": (Fisher(10.0, "inverse", 1.0), fisher(10.0, False, 1.0)),
    "additive-given": (Fisher(0.5, "additive", 0.0), fisher(0.5, True, 0.0)),
}
NATURAL: dict[str, tuple[Natural | None, Damping]] = {
    "plain": (None, identity),
    "inverse": (Natural(Fisher(10.0, "inverse", 0.9)), fisher(10.0, False, 0.0)),  # s of the stored f: it stays now
    "additive": (Natural(Fisher(0.5, "additive", 1.0)), fisher(0.5, True, 0.0)),
}
_ADAM = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decoupled": False, "maximize": False}
UPDATES: dict[str, tuple[Callable[..., Update], Callable[..., tuple[Tensor, Tensor, Tensor]], dict[str, Any]]] = {
    "sgd": (SGD, sgd, {"lr": 0.1}),
    "sgd-decay": (SGD, sgd, {"lr": 0.1, "weight_decay": 0.05, "maximize": True}),
    "momentum": (SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    "dampening": (
        SGD,
        sgd,
        {"lr": 0.2, "momentum": 0.8, "dampening": 0.4, "weight_decay": 0.05, "maximize": True},
    ),
    "nesterov": (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "adam": (Adam, adam, _ADAM),
    "adam-decay": (Adam, adam, {**_ADAM, "betas": (0.4, 0.9), "weight_decay": 0.05, "maximize": True}),
    "adamw": (Adam, adam, {**_ADAM, "weight_decay": 0.1, "decoupled": True}),
}

# Lists of tensors -------------------------------------------------------------------------------------------------

NORMAL = 0.4 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(20260817), dtype=torch.float64)
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """The bits of a tensor as integers: NaN and the sign of zero can be compared."""
    return x.detach().cpu().contiguous().view(_INTEGER[x.element_size()])


def exactly(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    return x.dtype == y.dtype and torch.equal(bits(x), bits(y))


class Arena:
    """Views into one buffer, half of them misaligned by some elements, with canaries on both sides."""

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype, draw: torch.Generator, finite: bool) -> None:
        starts, end = [], 0
        offsets, moved = (torch.randint(*span, (len(sizes),), generator=draw) for span in (OFFSETS, (0, 2)))
        for n, offset in zip(sizes, (offsets * moved).tolist(), strict=True):
            starts.append(end // 64 * 64 + 128 + offset)
            end = starts[-1] + n
        self.buffer = torch.full((end + 64,), float("nan"), dtype=dtype, device=oracles.DEVICE)
        if finite:  # an operation on two NaN may give the same NaN back: only every other canary is one
            self.buffer[::2] = 1000.0
        self.views = [self.buffer[start : start + n] for start, n in zip(starts, sizes, strict=True)]
        self.margin = torch.ones(end + 64, dtype=torch.bool)
        for start, n in zip(starts, sizes, strict=True):
            self.margin[start : start + n] = False
        self.canaries = self._margin()

    def fill(self, value: float) -> None:
        """Fill every view."""
        for view in self.views:
            view.fill_(value)

    def flat(self) -> Tensor:
        """A copy of all views on the CPU, one after the other."""
        return torch.cat(self.views).cpu()

    def intact(self) -> bool:
        """Whether all canaries are as they were, bit for bit."""
        return exactly(self._margin(), self.canaries)

    def _margin(self) -> Tensor:
        return self.buffer.cpu()[self.margin]


class Lists:
    """A list of tensors with random data, every row of it in an arena of its own.

    Before the first pass the copy holds NaN, before the second (`perturbed`) the weights do. Every other tensor has
    seen 3 updates, the others none.
    """

    def __init__(
        self,
        dtypes: str,
        seed: int,
        sizes: Sequence[int] = SIZES,
        perturbed: bool = False,
        missing: Sequence[int] = (),
        take: Take = None,
    ) -> None:
        self.take = take
        draw = torch.Generator().manual_seed(seed)
        weight, gradient = DTYPES[dtypes]
        state = torch.float64 if weight == torch.float64 else torch.float32
        rows = {"weight": weight, "gradient": gradient, "saved": weight, "fisher": state, "m": state, "v": state}
        self.arenas = {row: Arena(sizes, dtype, draw, row != "gradient") for row, dtype in rows.items()}
        self.sizes = list(sizes)
        self.steps = [3.0 * (i % 2) for i in range(len(sizes))]
        for row, arena in self.arenas.items():
            start = int(torch.randint(len(NORMAL) - sum(sizes), (1,), generator=draw))
            values = NORMAL[start : start + sum(sizes)]
            values = values.square() if row in {"fisher", "v"} else values
            for view, part, step in zip(arena.views, values.split(self.sizes), self.steps, strict=True):
                view.copy_(part) if step or row not in {"m", "v"} else view.zero_()
            if row == ("weight" if perturbed else "saved"):
                arena.fill(float("nan"))
        self.t = self._tensors(range(len(self.sizes)), missing)
        self.t.steps.copy_(torch.tensor(self.steps))
        self.before = {row: arena.flat() for row, arena in self.arenas.items()}

    def _tensors(self, which: Sequence[int], missing: Sequence[int] = ()) -> Tensors:
        view = {row: [arena.views[i] for i in which] for row, arena in self.arenas.items()}
        params = [torch.nn.Parameter(w) for w in view["weight"]]
        for i, p, g in zip(which, params, view["gradient"], strict=True):
            p.grad_dtype = g.dtype
            p.grad = None if i in missing else g
        t = Tensors(params, 0)
        t.read_gradients()
        t.saved, t.fisher, t.m, t.v = view["saved"], list(view["fisher"]), list(view["m"]), list(view["v"])
        t.set_source()
        if self.take:
            t.take = torch.tensor(self.take, dtype=torch.float64, device=oracles.DEVICE)
        return t

    def alone(self) -> Iterator[Tensors]:
        """Each tensor in a list of its own."""
        for i in range(len(self.sizes)):
            yield self._tensors([i])

    def two(self, row: str) -> Tensor:
        """What a row held at first, in float64: values and magnitudes."""
        x = self.before[row].double()
        if self.take and row == "gradient":
            factor, bound = self.take
            x = (factor * x).clamp(-bound, bound)
        return torch.stack([x, x.abs()])

    def changed(self) -> set[str]:
        """The rows that no longer are as they were, bit for bit, the canaries around them, and the step counts."""
        found = {row for row, arena in self.arenas.items() if not exactly(arena.flat(), self.before[row])}
        found |= {f"canaries of {row}" for row, arena in self.arenas.items() if not arena.intact()}
        return found if self.t.steps.tolist() == self.steps else found | {"steps"}

    def at(self, number: Callable[[float], float]) -> Tensor:
        """A number for every element, from the updates that its tensor has seen."""
        return torch.tensor([number(t) for t in self.steps], dtype=torch.float64).repeat_interleave(
            torch.tensor(self.sizes)
        )

    def check(self, row: str, wanted: Tensor) -> None:
        """A row is within the bounds of the wanted one, which has values and magnitudes."""
        got, state = self.arenas[row].flat(), self.arenas["m"].buffer.dtype
        allowed = UNITS * torch.finfo(state).eps * wanted[1]
        if got.dtype != state:
            allowed += spacing(torch.maximum(got.double().abs(), wanted[0].abs()), got.dtype) / 2
        wrong = ~((got.double() - wanted[0]).abs() <= allowed)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise AssertionError(
                f"{row}: {int(wrong.sum())} of {wrong.numel()} elements out of bounds, the first at {i}: "
                f"{got[i]!r}, wanted {wanted[0, i]!r} ± {allowed[i]:.3g}"
            )


# Checks of one op -------------------------------------------------------------------------------------------------


def scalar(x: float) -> Tensor:
    """A sum as the ops take it."""
    return torch.tensor(x, dtype=torch.float64, device=oracles.DEVICE)


def check_sq_norm(
    backend: ops.Ops, covariance: str, dtypes: str, sizes: Sequence[int] = SIZES, take: Take = None
) -> None:
    """The sum of every tensor alone, and of all of them on top of what was there."""
    core, formula = COVARIANCES[covariance]
    case = Lists(dtypes, 1, sizes, take=take)
    g = case.two("gradient")
    terms = formula(case.two("weight"), g, case.two("fisher"))[1][0] * g[0] ** 2
    bound = NORM_UNITS * torch.finfo(case.t.state_dtype).eps
    total, before = scalar(3.0), 3.0
    backend.sq_norm(case.t, core, total, add=True)
    assert abs(total.cpu() - before - terms.sum()) <= bound * (before + terms.sum())
    for t, part in zip(case.alone(), terms.split(case.sizes), strict=True):
        total.fill_(float("nan"))  # overwritten, not added to
        backend.sq_norm(t, core, total)
        assert abs(total.cpu() - part.sum()) <= bound * part.sum(), f"{part.numel()} elements"
    assert not case.changed()


def check_ascend(
    backend: ops.Ops, covariance: str, dtypes: str, sizes: Sequence[int] = SIZES, take: Take = None
) -> Lists:
    """The weights move, the copy is exact, and a stored Fisher diagonal moves."""
    core, formula = COVARIANCES[covariance]
    case, rho, total = Lists(dtypes, 2, sizes, take=take), 0.7, 2.3
    backend.ascend_(case.t, core, rho, scalar(total), True)
    w, g = case.two("weight"), case.two("gradient")
    f, s = formula(w, g, case.two("fisher"))
    case.check("weight", w + rho / total**0.5 * s * g)
    assert exactly(case.arenas["saved"].flat(), case.before["weight"])
    if core.state:
        case.check("fisher", f)
    assert case.changed() <= {"weight", "saved"} | ({"fisher"} if core.state else set())
    return case


def check_descend(
    backend: ops.Ops, update: str, natural: str, dtypes: str, sizes: Sequence[int] = SIZES, take: Take = None
) -> Lists:
    """The new weights come from the copy, the state moves, the steps of what has elements are counted."""
    make, formula, options = UPDATES[update]
    core, damping = NATURAL[natural]
    case = Lists(dtypes, 3, sizes, perturbed=True, take=take)
    backend.descend_(case.t, make(**options), core, scalar(1.0), None)
    w0, g = case.two("saved"), case.two("gradient")
    w, m, v = formula(w0, damping(w0, g, case.two("fisher"))[1] * g, case.two("m"), case.two("v"), case.at, **options)
    for row, wanted in (("weight", w), ("m", m), ("v", v)):
        case.check(row, wanted)
    counted = zip(case.t.steps.tolist(), case.steps, case.sizes, strict=True)
    assert all(after == before + 1 for after, before, n in counted if n)
    assert case.changed() <= {"weight", "steps", *("m", "v")[: len(make(**options).states)]}
    return case
