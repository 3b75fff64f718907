"""What a method changes in the second half of a step, beside the base update. Definitions; one class a method.

`kernel` and `scalars` name the same formula in the backends. Tensors are of one parameter's shape, all of one dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sharpkern.base import Number
from sharpkern.covariance import S_MAX, S_MIN, Learned, Tracer


@dataclass(frozen=True)
class Drawn:
    """MFVI: s moves by the slope ½ g2 ε of the loss in log s at the draw ε ([V] Alg. 2, the reparametrised gradient)."""

    learned: Learned

    kernel: ClassVar[str] = "drawn"

    @property
    def scalars(self) -> tuple[float, ...]:
        return self.learned.scalars


@dataclass(frozen=True)
class Traced:
    """TRACER: the update takes g_T = g + c (g2 - g), and Adam's second moment the raw g ([G] Alg. 1, 58).

    c = factor rho sqrt(Σ (s g)²) with factor = 2 / radius makes that g + 2 rho H v by finite difference, v = s g. Then f̄
    moves. Without a first gradient g_T = g2.

    Args:
        tracer: The covariance.
        rho: Weight of the penalty.
        factor: 2 / radius; 0 where g2 is g_T already.
    """

    tracer: Tracer
    rho: Number
    factor: float

    kernel: ClassVar[str] = "traced"

    def gradient(self, g: Tensor, g2: Tensor, total: Tensor) -> Tensor:
        """g_T."""
        return g + self.factor * float(self.rho) * float(total.sqrt()) * (g2 - g) if self.factor else g2


@dataclass(frozen=True)
class Estimated:
    """Evolution strategies: the gradient is the sum of the draws, each times what the losses say of it ([V] Table 1).

    g = Σ_k weights_k η_k / (sigma sqrt(s)), weights_k = (L(w + ε_k) - L(w - ε_k)) / (2 pairs), ε_k = sigma sqrt(s) η_k.
    With `learned` s goes to s · exp(lr/2 Σ_k utilities_k (η_k² - 1)) (separable NES), within S_MIN and S_MAX. Weights
    and utilities are the rows of `t.pairs`; the draws are those from `t.draw` on, which moves on by their number.

    Args:
        rho: The radius; sigma is rho times `noise`.
        noise: 1/sqrt(p).
        learned: Whether s moves.
        lr: Of log s.
    """

    rho: Number
    noise: float
    learned: bool
    lr: float

    kernel: ClassVar[str] = "estimated"

    def moved(self, s: Tensor, slope: Tensor) -> Tensor:
        """The next s, from Σ_k utilities_k (η_k² - 1)."""
        return (s * (0.5 * self.lr * slope).exp()).clamp(S_MIN, S_MAX)


Correction = Drawn | Traced | Estimated
