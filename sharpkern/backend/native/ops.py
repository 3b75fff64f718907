"""The C++ extension: fused kernels on the CPU, one parallel region an op.

The extension gets addresses and sizes; see `csrc/README.md`. A table of them is made once for a list of tensors and
only the gradients' addresses change from step to step.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sharpkern.base import Number, Update
from sharpkern.covariance import Covariance
from sharpkern.tensors import Tensors

try:
    from sharpkern.backend.native import _kernels
except ImportError as error:
    _import_error: ImportError | None = error
else:
    _import_error = None

# Written data of this many bytes does not stay in a core's cache: it is streamed past it.
STREAMING_BYTES = 16 << 20


def why_not(device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
    """Why the extension cannot run on the device, or None."""
    if _import_error is not None:
        if sys.platform != "linux" or platform.machine() not in {"x86_64", "AMD64"}:
            return f"the extension is built on Linux x86-64 only, this is {sys.platform} {platform.machine()}"
        return f"the extension is not built ({_import_error}); install sharpkern again with a C++ compiler at hand"
    if device.type != "cpu":
        return f"the extension has CPU kernels only, none for {device.type}"
    return None


def instruction_sets() -> list[str]:
    """The instruction sets that run on this processor, the one in use first."""
    return _kernels.instruction_sets()


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Handle:
    """A table of the extension, and the revision of the gradients in it."""

    def __init__(self, t: Tensors) -> None:
        numel = [w.numel() for w in t.weights]
        streaming = sum(numel) * t.weights[0].element_size() >= STREAMING_BYTES
        self.table = _kernels.Table(
            numel, _name(t.dtype), _name(t.gradient_dtype), t.master, _kernels.instruction_sets()[0], streaming
        )
        rows: dict[str, Sequence[Tensor | None]] = {
            "weight": t.weights,
            "saved": t.saved,
            "source": t.source,
            "fisher": t.fisher,
            "m": t.m,
            "v": t.v,
        }
        for row, tensors in rows.items():
            if tensors:
                self.table.set(row, _addresses(tensors))
        self.table.set_steps(t.steps.data_ptr())
        if t.draw is not None:
            self.table.set_noise(t.draw.data_ptr(), t.seed, t.start)
        self.revision = -1


def _table(t: Tensors) -> _kernels.Table:
    """The table of the list, with the gradients as they stand."""
    if t.handle is None:
        t.handle = _Handle(t)
    handle: _Handle = t.handle
    if handle.revision != t.revision:
        handle.table.set("gradient", t.gradient_addresses)
        handle.revision = t.revision
    return handle.table


def sq_norm(t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
    """total ← Σ s g², or with `add` total + Σ s g²."""
    _table(t).sq_norm(torch.get_num_threads(), covariance.kernel, covariance.scalars, total.data_ptr(), add)


def ascend_(t: Tensors, covariance: Covariance, rho: Number, total: Tensor, track: bool) -> None:
    """w0 ← w, w ← w + rho s g / sqrt(total)."""
    _table(t).ascend(
        torch.get_num_threads(), covariance.kernel, covariance.scalars, float(rho), total.data_ptr(), track
    )


def descend_(t: Tensors, update: Update, natural: Covariance | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    _table(t).descend(
        torch.get_num_threads(),
        update.kernel,
        [float(x) for x in update.options],
        "" if natural is None else natural.kernel,
        () if natural is None else natural.scalars,
        total.data_ptr(),
        0 if second is None else second.data_ptr(),
    )


def restore_(t: Tensors, total: Tensor) -> None:
    """w ← w0."""
    _table(t).restore(torch.get_num_threads(), total.data_ptr())
