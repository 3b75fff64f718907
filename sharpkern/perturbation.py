"""The perturbation ε of one step, over all lists of tensors. One class a row of SPEC's second table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sharpkern.covariance import Covariance
from sharpkern.ops import Ops
from sharpkern.tensors import Tensors


@dataclass(frozen=True)
class Launch:
    """One list of tensors with the options of its group: what one launch covers.

    Attributes:
        tensors: The list.
        covariance: The covariance s of its group.
        rho: The radius of its group, in units of sqrt(s).
    """

    tensors: Tensors
    covariance: Covariance
    rho: float


class Perturbation(Protocol):
    """How w + ε is reached from w."""

    def perturb_(self, ops: Ops, launches: Sequence[Launch], total: Tensor, track: bool) -> None:
        """w0 ← w, w ← w + ε. `total` is left at Σ s g²; `track` lets a stored Fisher diagonal move on."""


class WorstCase:
    """ε = rho · s g / sqrt(Σ s g²), so Σ ε²/s = rho² ([F] 3, 5, 10); ε = 0 where the sum is 0.

    The sum runs over every parameter of every group: one global norm, each parameter with its own s.
    """

    def perturb_(self, ops: Ops, launches: Sequence[Launch], total: Tensor, track: bool) -> None:
        total.zero_()
        for launch in launches:
            ops.sq_norm(launch.tensors, launch.covariance, total)
        for launch in launches:
            ops.ascend_(launch.tensors, launch.covariance, launch.rho, total, track)
