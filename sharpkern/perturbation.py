"""The perturbation ε of one step, over all lists of tensors. One class a row of SPEC's second table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sharpkern.base import Number, Update
from sharpkern.correction import Correction
from sharpkern.covariance import Covariance
from sharpkern.ops import Ops
from sharpkern.sharded import add_over_
from sharpkern.tensors import Tensors


@dataclass(frozen=True)
class Launch:
    """One list of tensors with what the options of its group come to: what one launch covers.

    Attributes:
        tensors: The list.
        options: The options, as they stood.
        covariance: The covariance s.
        rho: The radius, in units of sqrt(s).
        worst: Share of the worst case in ε.
        noise: Standard deviation of ε at rho = 1 and s = 1.
        update: The fused base update, or None where the torch optimizer is called.
        correction: What the method makes of g2 before the update, or None.
    """

    tensors: Tensors
    options: dict[str, Any]
    covariance: Covariance
    rho: Number
    worst: float
    noise: float
    update: Update | None
    correction: Correction | None


class Perturbation(Protocol):
    """How w + ε is reached from w."""

    @property
    def passes(self) -> int:
        """How many backward passes a step takes; with one the perturbation does not look at gradients."""

    def shares(self, group: Mapping[str, Any]) -> tuple[float, float]:
        """Shares of the worst case and of the Gaussian in ε."""


class WorstCase:
    """ε = rho · s g / sqrt(Σ s g²), so Σ ε²/s = rho² ([F] 3, 5, 10); ε = 0 where the sum is 0.

    The sum runs over every parameter of every group: one global norm, each parameter with its own s.
    """

    passes = 2

    def shares(self, group: Mapping[str, Any]) -> tuple[float, float]:
        return 1.0, 0.0


class Gaussian:
    """ε = rho/sqrt(p) · sqrt(s) η, η standard normal, so E Σ ε²/s = rho² ([V] Alg. 1); p counts all parameters."""

    passes = 1

    def shares(self, group: Mapping[str, Any]) -> tuple[float, float]:
        return 0.0, 1.0


class Mixed:
    """ε = (1 - mix) · worst case + mix · Gaussian ([V] section 4)."""

    passes = 2

    def shares(self, group: Mapping[str, Any]) -> tuple[float, float]:
        return 1.0 - group["mix"], float(group["mix"])


def add_up(ops: Ops, pairs: Sequence[tuple[Tensors, Covariance]], totals: Sequence[Tensor]) -> None:
    """Every total ← Σ s g² over all lists, wherever they are: on several devices, or spread over processes.

    Args:
        ops: The backend.
        pairs: Lists of tensors, each with its covariance.
        totals: For each list the total on its device; lists on one device share it.
    """
    parts: dict[tuple[torch.device, Any], Tensor] = {}  # by device and mesh; on each device one of them is the total
    for (t, covariance), total in zip(pairs, totals, strict=True):
        key = total.device, t.share.mesh
        new = key not in parts
        if new:
            parts[key] = torch.empty_like(total) if any(device == total.device for device, _ in parts) else total
        if t.share.counted:
            ops.sq_norm(t, covariance, parts[key], add=not new)
        elif new:
            parts[key].zero_()
    by_device: dict[torch.device, Tensor] = {}
    for (device, mesh), part in parts.items():
        add_over_(part, mesh)
        by_device[device] = by_device[device].add_(part) if device in by_device else part
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


def perturb_(
    ops: Ops, launches: Sequence[Launch], passes: int, track: bool, agree: Callable[[list[Tensor]], None]
) -> None:
    """w0 ← w, w ← w + ε. With two passes the lists' `total` is left at Σ s g².

    Args:
        ops: The backend.
        launches: All lists.
        passes: Of the perturbation.
        track: Whether state moves on.
        agree: Takes the totals, one a device, before they are used.
    """
    if passes == 2:
        pairs = [(launch.tensors, launch.covariance) for launch in launches]
        add_up(ops, pairs, [t.total for t, _ in pairs])
        agree(list({t.device: t.total for t, _ in pairs}.values()))
    for x in launches:
        total = x.tensors.total if passes == 2 else None
        ops.ascend_(x.tensors, x.covariance, x.rho, total, track, x.worst, x.noise)
        x.tensors.moved.value = True
