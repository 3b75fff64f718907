"""The perturbation ε of one step, over all lists of tensors. One class a row of SPEC's second table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sharpkern.base import Update
from sharpkern.covariance import Covariance
from sharpkern.ops import Ops
from sharpkern.tensors import Tensors


@dataclass(frozen=True)
class Launch:
    """One list of tensors with what the options of its group come to: what one launch covers.

    Attributes:
        tensors: The list.
        options: The options, as they stood.
        covariance: The covariance s.
        rho: The radius, in units of sqrt(s).
        update: The fused base update, or None where the torch optimizer is called.
        natural: The covariance by which g2 is multiplied before the update, or None.
    """

    tensors: Tensors
    options: dict[str, Any]
    covariance: Covariance
    rho: float
    update: Update | None
    natural: Covariance | None


class Perturbation(Protocol):
    """How w + ε is reached from w."""

    @property
    def passes(self) -> int:
        """How many backward passes a step takes."""

    def perturb_(self, ops: Ops, launches: Sequence[Launch], total: Tensor, track: bool) -> None:
        """w0 ← w, w ← w + ε. `total` is left at Σ s g²; `track` lets a stored Fisher diagonal move on."""


class WorstCase:
    """ε = rho · s g / sqrt(Σ s g²), so Σ ε²/s = rho² ([F] 3, 5, 10); ε = 0 where the sum is 0.

    The sum runs over every parameter of every group: one global norm, each parameter with its own s.
    """

    passes = 2

    def perturb_(self, ops: Ops, launches: Sequence[Launch], total: Tensor, track: bool) -> None:
        total.zero_()
        for launch in launches:
            ops.sq_norm(launch.tensors, launch.covariance, total)
        for launch in launches:
            ops.ascend_(launch.tensors, launch.covariance, launch.rho, total, track)
