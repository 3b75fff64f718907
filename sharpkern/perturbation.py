"""The perturbation ε of one step, over all lists of tensors. One class a row of SPEC's second table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sharpkern.base import Number, Update
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
    rho: Number
    update: Update | None
    natural: Covariance | None


class Perturbation(Protocol):
    """How w + ε is reached from w."""

    @property
    def passes(self) -> int:
        """How many backward passes a step takes."""

    def perturb_(self, ops: Ops, launches: Sequence[Launch], track: bool) -> None:
        """w0 ← w, w ← w + ε. The lists' `total` is left at Σ s g²; `track` lets state move on."""


def add_up(ops: Ops, pairs: Sequence[tuple[Tensors, Covariance]], totals: Sequence[Tensor]) -> None:
    """Every total ← Σ s g² over all lists, wherever they are.

    Args:
        ops: The backend.
        pairs: Lists of tensors, each with its covariance.
        totals: For each list the total on its device; lists on one device share it.
    """
    by_device: dict[torch.device, Tensor] = {}
    for (t, covariance), total in zip(pairs, totals, strict=True):
        ops.sq_norm(t, covariance, total, add=total.device in by_device)
        by_device[total.device] = total
    if len(by_device) > 1:
        share_(list(by_device.values()))


def share_(totals: Sequence[Tensor]) -> None:
    """Every total, each on a device of its own, becomes the sum of all, added in the same order everywhere.

    Args:
        totals: 0-d.
    """
    sums = [torch.stack([part.to(total.device, non_blocking=True) for part in totals]).sum() for total in totals]
    for total, value in zip(totals, sums, strict=True):
        total.copy_(value)


class WorstCase:
    """ε = rho · s g / sqrt(Σ s g²), so Σ ε²/s = rho² ([F] 3, 5, 10); ε = 0 where the sum is 0.

    The sum runs over every parameter of every group: one global norm, each parameter with its own s.
    """

    passes = 2

    def perturb_(self, ops: Ops, launches: Sequence[Launch], track: bool) -> None:
        pairs = [(launch.tensors, launch.covariance) for launch in launches]
        add_up(ops, pairs, [t.total for t, _ in pairs])
        for launch in launches:
            ops.ascend_(launch.tensors, launch.covariance, launch.rho, launch.tensors.total, track)
