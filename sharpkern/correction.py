"""What a method makes of the gradient in the second half of a step, and what it learns there. One class a row.

The definition, in PyTorch; `kernel` and `scalars` name the same formula in the backends. Tensors are of one parameter's
shape, all of one dtype: g2 the gradient at w + ε, g that of the first pass, f what is kept of the covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from sharpkern.base import Number
from sharpkern.covariance import S_MAX, S_MIN, Fisher, Learned, Tracer


class Correction(Protocol):
    """What the ops know of a correction."""

    @property
    def kernel(self) -> str:
        """Name of the formula in the backends' kernels."""

    @property
    def scalars(self) -> tuple[Number, ...]:
        """What the kernel's formula takes."""

    @property
    def first(self) -> bool:
        """Whether the gradients of the first pass have to be kept."""

    def gradient(self, g2: Tensor, g: Tensor | None, f: Tensor | None, total: Tensor, step: float) -> Tensor:
        """What the base update takes; total is Σ s g² or Σ (s g)², step the updates done before."""

    def moved(self, f: Tensor, g2: Tensor, g: Tensor | None, epsilon: Tensor) -> Tensor | None:
        """The next f, or None where it stays."""


@dataclass(frozen=True)
class Natural:
    """The natural gradient s g2, with s from the f of the first pass ([F] footnote 3)."""

    covariance: Fisher

    kernel: ClassVar[str] = "natural"
    first: ClassVar[bool] = False

    @property
    def scalars(self) -> tuple[Number, ...]:
        return self.covariance.scalars

    def gradient(self, g2: Tensor, g: Tensor | None, f: Tensor | None, total: Tensor, step: float) -> Tensor:
        return self.covariance.s(g2, f) * g2

    def moved(self, f: Tensor, g2: Tensor, g: Tensor | None, epsilon: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Drawn:
    """MFVI: s moves by the slope ½ g2 ε of the loss in log s at the draw ε, reparametrised ([V] Alg. 2)."""

    learned: Learned

    kernel: ClassVar[str] = "drawn"
    first: ClassVar[bool] = False

    @property
    def scalars(self) -> tuple[Number, ...]:
        return self.learned.scalars

    def gradient(self, g2: Tensor, g: Tensor | None, f: Tensor | None, total: Tensor, step: float) -> Tensor:
        return g2

    def moved(self, f: Tensor, g2: Tensor, g: Tensor | None, epsilon: Tensor) -> Tensor | None:
        return self.learned.moved(f, 0.5 * g2 * epsilon)


@dataclass(frozen=True)
class Traced:
    """TRACER: the update takes g_T = g + c (g2 - g), and Adam's second moment the raw g ([G] Alg. 1, 58).

    c = factor rho sqrt(Σ (s g)²) with factor = 2 / radius makes that g + 2 rho H v by finite difference, v = s g. Then
    f̄ moves. Without a first gradient g_T = g2.

    Args:
        tracer: The covariance.
        rho: Weight of the penalty.
        factor: 2 / radius; 0 where g2 is g_T already.
        precondition: Whether g_T is multiplied by s ([G] 53).
    """

    tracer: Tracer
    rho: Number
    factor: float
    precondition: bool

    kernel: ClassVar[str] = "traced"
    first: ClassVar[bool] = True

    @property
    def scalars(self) -> tuple[Number, ...]:
        return (*self.tracer.scalars, self.factor, float(self.precondition), self.rho)

    def gradient(self, g2: Tensor, g: Tensor | None, f: Tensor | None, total: Tensor, step: float) -> Tensor:
        if g is not None and self.factor:
            g2 = g + self.factor * float(self.rho) * float(total.sqrt()) * (g2 - g)
        return self.tracer.s(g2, self.tracer.fisher(g2, f, step)) * g2 if self.precondition else g2

    def moved(self, f: Tensor, g2: Tensor, g: Tensor | None, epsilon: Tensor) -> Tensor | None:
        return self.tracer.moved(f, g2 if g is None else g)


@dataclass(frozen=True)
class Estimated:
    """Evolution strategies: the gradient is the sum of the draws, each times what the losses say of it ([V] Table 1).

    g = Σ_k weights_k η_k / (sigma sqrt(s)), weights_k = (L(w + ε_k) - L(w - ε_k)) / (2 pairs), ε_k = sigma sqrt(s) η_k.
    s goes to s · exp(lr/2 Σ_k utilities_k (η_k² - 1)) where it is learned (separable NES), within S_MIN and S_MAX.
    Weights and utilities are the rows of `t.pairs`; the draws are those from `t.draw` on, which moves on by their
    number. No gradient is read: the ops have a path of their own for this one.

    Args:
        rho: The radius; sigma is rho times `noise`.
        noise: 1/sqrt(p).
        lr: Of log s.
    """

    rho: Number
    noise: float
    lr: float

    kernel: ClassVar[str] = "estimated"
    first: ClassVar[bool] = False

    @property
    def scalars(self) -> tuple[Number, ...]:
        return (self.noise, self.lr, self.rho)

    def gradient(self, g2: Tensor, g: Tensor | None, f: Tensor | None, total: Tensor, step: float) -> Tensor:
        """From g2 = Σ_k weights_k η_k."""
        g2 = g2 / (float(self.rho) * self.noise)
        return g2 if f is None else g2 / f.sqrt()

    def moved(self, f: Tensor, g2: Tensor, g: Tensor | None, epsilon: Tensor) -> Tensor | None:
        """From epsilon = Σ_k utilities_k (η_k² - 1)."""
        return (f * (0.5 * self.lr * epsilon).exp()).clamp(S_MIN, S_MAX)
