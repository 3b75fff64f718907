"""The covariance s of one group: its definition, and where its Fisher diagonal comes from.

Each class is one row of the table of methods. `s` and `fisher` are the definition in PyTorch; `kernel` and `scalars`
name the same formula in `csrc/covariance.h`. Tensors are of one parameter's shape, all of one dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, ones_like


class Covariance(Protocol):
    """What the ops know of a covariance."""

    @property
    def kernel(self) -> str:
        """Name of the formula in the backends' kernels."""

    @property
    def scalars(self) -> tuple[float, ...]:
        """What the kernel's formula takes."""

    @property
    def stored(self) -> bool:
        """Whether a Fisher diagonal is stored for every parameter."""

    @property
    def batch(self) -> bool:
        """Whether s depends on the gradient itself, through f = g²."""

    def fisher(self, g: Tensor, f: Tensor | None) -> Tensor | None:
        """The Fisher diagonal once the gradient `g` is seen, from its stored value `f`."""

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        """The covariance at the weight `w` and the Fisher diagonal `f`."""


@dataclass(frozen=True)
class Identity:
    """SAM: s = 1 ([F] 2, 3)."""

    kernel: ClassVar[str] = "identity"
    scalars: ClassVar[tuple[float, ...]] = ()
    stored: ClassVar[bool] = False
    batch: ClassVar[bool] = False

    def fisher(self, g: Tensor, f: Tensor | None) -> Tensor | None:
        return None

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        return ones_like(w)


@dataclass(frozen=True)
class Adaptive:
    """ASAM: s = (|w| + eta)² ([F] 4, 5)."""

    eta: float

    kernel: ClassVar[str] = "adaptive"
    stored: ClassVar[bool] = False
    batch: ClassVar[bool] = False

    @property
    def scalars(self) -> tuple[float, ...]:
        return (self.eta,)

    def fisher(self, g: Tensor, f: Tensor | None) -> Tensor | None:
        return None

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        return (w.abs() + self.eta).square()


@dataclass(frozen=True)
class Fisher:
    """Fisher SAM: s = 1/(1 + eta f) ("inverse") or 1/(f + eta) ("additive") ([F] 10, 12).

    With `beta` None, f = g² and is not stored. Otherwise f ← (1 - beta) f + beta g² ([G] 52): beta = 1 stores the g²
    of the first pass for the second, beta = 0 takes a Fisher diagonal that was given.
    """

    eta: float
    damping: str = "inverse"
    beta: float | None = None

    @property
    def kernel(self) -> str:
        return "fisher_average" if self.stored else "fisher"

    @property
    def scalars(self) -> tuple[float, ...]:
        damping = (1.0, self.eta) if self.damping == "inverse" else (self.eta, 1.0)  # a, b of s = 1/(a + b f)
        return damping if self.beta is None else (*damping, self.beta)

    @property
    def stored(self) -> bool:
        return self.beta is not None

    @property
    def batch(self) -> bool:
        return self.beta is None

    def fisher(self, g: Tensor, f: Tensor | None) -> Tensor | None:
        if self.beta is None or f is None:
            return g.square()
        return (1 - self.beta) * f + self.beta * g.square()

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        assert f is not None
        return 1 / (1 + self.eta * f) if self.damping == "inverse" else 1 / (f + self.eta)


def sam(group: dict[str, Any]) -> Covariance:
    """The covariance of SAM; with `adaptive` that of ASAM with eta = 0."""
    return Adaptive(0.0) if group["adaptive"] else Identity()


def asam(group: dict[str, Any]) -> Covariance:
    """The covariance of ASAM."""
    return Adaptive(float(group["eta"]))


def fisher_sam(group: dict[str, Any]) -> Covariance:
    """The covariance of Fisher SAM."""
    # a natural gradient needs in the second pass the f of the first: f = g² is stored then
    source = group["fisher"]
    stored = {"batch": 1.0 if group["natural_gradient"] else None, "average": group["beta"], "callable": 0.0}
    return Fisher(float(group["eta"]), group["damping"], stored[source])
