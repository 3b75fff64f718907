"""The seam: the ops that every backend has, and how a backend is found.

A backend is a module. Between the two places where a sharpness-aware step must stop, the global norm and the second
backward pass, all work is elementwise; the ops are cut there, and each covers all tensors of its list in one launch.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from sharpkern.base import Number, Update
from sharpkern.correction import Correction
from sharpkern.covariance import Covariance
from sharpkern.tensors import Tensors

NAMES = ("native", "triton", "reference")  # in the order in which "auto" tries them


class Ops(Protocol):
    """What a backend module has. `total` is Σ s g² of the first pass, float64, one element, on the device.

    No op waits for the device. Where `t.master` is set, `t.saved` holds float32 weights: they are w0, and no copy is
    made; the weights get their rounded values. Where `t.draw` is set, w + ε is rounded stochastically.
    """

    def why_not(self, device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
        """Why the backend cannot run on the device, with weights of these dtypes, or None."""

    def sq_norm(self, t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
        """total ← Σ s g², or with `add` total + Σ s g²; the state dtype within a chunk, float64 across chunks."""

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
        """w0 ← w, w ← w + rho (worst s g / sqrt(total) + noise sqrt(s) η), η standard normal, never stored.

        With `again`, a number that is added to that of the draw, no copy is made and w ← w0 + ε, w0 from `t.source`.
        With `track` what is kept of the covariance, and `t.draw`, move on; where `t.first` is there it gets g. Without
        total there is no worst case, and gradients are not looked at. Otherwise nothing at all happens where total is
        not finite; w stays bit for bit where there is no noise and rho / sqrt(total) is 0 or total is 0.
        """

    def descend_(
        self,
        t: Tensors,
        update: Update,
        correction: Correction | None,
        total: Tensor,
        second: Tensor | None,
    ) -> None:
        """w ← update(w0, g), state in place; the correction, where there is one, makes that g and moves what is kept.

        Without a gradient w ← w0. Nothing at all where total is not finite; only w ← w0 where `second` is not.
        """

    def restore_(self, t: Tensors, total: Tensor) -> None:
        """w ← w0, bit for bit; nothing where total is not finite."""


@dataclass(frozen=True)
class BackendStatus:
    """One backend on one kind of device.

    Attributes:
        name: "native", "triton" or "reference".
        device: "cpu", "cuda", ...
        usable: Whether it runs there.
        why_not: The reason if it does not, else None.
    """

    name: str
    device: str
    usable: bool
    why_not: str | None


def load(name: str) -> Ops:
    """The backend of that name.

    Args:
        name: One of `NAMES`.

    Returns:
        Its module.

    Raises:
        ValueError: There is none.
    """
    if name not in NAMES:
        raise ValueError(f"backend={name!r}: wanted one of {', '.join(('auto', *NAMES))}")
    return cast(Ops, importlib.import_module(f"sharpkern.backend.{name}"))


def choose(name: str, device: torch.device, dtypes: Collection[torch.dtype] = ()) -> tuple[str, str | None]:
    """Picks the backend to use on a device.

    Args:
        name: "auto" or one of `NAMES`.
        device: Where the parameters are.
        dtypes: Those of the parameters.

    Returns:
        Its name, and why "auto" took none before it, or None.

    Raises:
        ValueError: There is no such backend.
        RuntimeError: The backend asked for does not run there.
    """
    if name != "auto":
        reason = load(name).why_not(device, dtypes)
        if reason:
            raise RuntimeError(
                f"backend={name!r} cannot be used on {device}: {reason}. backend='auto' picks one that can"
            )
        return name, None
    reasons: list[str] = []
    for candidate in NAMES:
        reason = load(candidate).why_not(device, dtypes)
        if reason is None:
            return candidate, "; ".join(reasons) or None
        reasons.append(f"{candidate}: {reason}")
    raise RuntimeError(f"no backend runs on {device}: {'; '.join(reasons)}")


def backends() -> list[BackendStatus]:
    """Every backend on every device at hand, and why not where it cannot be used.

    Returns:
        One status a backend and device, in the order in which "auto" tries them.

    Examples:
        >>> [b.name for b in backends() if b.usable and b.device == "cpu"][-1]
        'reference'
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = [(name, device, load(name).why_not(torch.device(device))) for name in NAMES for device in devices]
    return [BackendStatus(name, device, reason is None, reason) for name, device, reason in rows]
