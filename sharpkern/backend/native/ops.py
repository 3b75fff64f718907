"""The C++ extension: fused kernels, one parallel region of the CPU or one launch of CUDA an op.

The extension gets addresses and sizes; see `csrc/README.md`. A table of them is made once for a list of tensors and
only the gradients' addresses change from step to step.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpkern.base import Number, Update
from sharpkern.correction import Correction
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
    if device.type == "cuda":
        return _why_not_cuda(device)
    if device.type != "cpu":
        return f"the extension has kernels for cpu and cuda, none for {device.type}"
    return None


def _why_not_cuda(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run on the device, or None."""
    compiled = [int(name) for name in _kernels.cuda_architectures()]
    if not compiled:
        return (
            "the extension is built without its CUDA kernels; install sharpkern again with SHARPKERN_CUDA=1 in the "
            "environment and nvcc on the PATH"
        )
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "this PyTorch finds no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    here = 10 * major + minor
    # what was compiled for a GPU runs on later ones of its generation; the newest is PTX too, which all later ones run
    if here >= max(compiled) or any(name // 10 == major and name <= here for name in compiled):
        return None
    names = ", ".join(f"sm_{name}" for name in compiled)
    return f"the extension's CUDA kernels are compiled for {names}, this GPU is sm_{here}"


def cuda_architectures() -> list[str]:
    """The GPU architectures that the CUDA kernels were compiled for, such as "90"; none if they were not built."""
    return _kernels.cuda_architectures()


def instruction_sets() -> list[str]:
    """The instruction sets that run on this processor, the one in use first."""
    return _kernels.instruction_sets()


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(device: torch.device) -> Callable[[Number], float | tuple[int, bool]]:
    """How CUDA kernels take a number: its value, or the address at which they read it and whether that is float64."""

    def number(x: Number) -> float | tuple[int, bool]:
        if not isinstance(x, Tensor) or x.device.type == "cpu":
            return float(x)
        wide = x.dtype == torch.float64
        # a copy may be freed at once: its memory is reused in the order of the stream, after the launch
        return x.detach().to(device, torch.float64 if wide else torch.float32).data_ptr(), wide

    return number


class _Handle:
    """A table of the extension, how it is told where to run and takes numbers, and the gradients' revision in it."""

    def __init__(self, t: Tensors) -> None:
        numel = [w.numel() for w in t.weights]
        names = _name(t.dtype), _name(t.gradient_dtype)
        self.table: Any  # Table and CudaTable differ in how they take `where` and numbers, as the two attributes say
        self.where: Callable[[], int]
        self.number: Callable[[Number], Any]
        if t.device.type == "cpu":
            streaming = sum(numel) * t.weights[0].element_size() >= STREAMING_BYTES
            self.table = _kernels.Table(numel, *names, t.master, _kernels.instruction_sets()[0], streaming)
            self.table.set_moved(ctypes.addressof(t.moved))
            self.where, self.number = torch.get_num_threads, float
        else:
            self.table = _kernels.CudaTable(numel, *names, t.master, t.weights[0].get_device())
            self.workspace = torch.zeros(self.table.workspace_bytes, dtype=torch.uint8, device=t.device)
            self.table.set_workspace(self.workspace.data_ptr(), self.workspace.nbytes)
            device = t.device  # not t: it holds this handle, and a cycle would keep its memory
            self.where, self.number = lambda: torch.cuda.current_stream(device).cuda_stream, _number(device)
        rows: dict[str, Sequence[Tensor | None]] = {
            "weight": t.weights,
            "saved": t.saved,
            "source": t.source,
            "first": t.first,
            "fisher": t.fisher,
            "m": t.m,
            "v": t.v,
        }
        for row, tensors in rows.items():
            if tensors:
                self.table.set(row, _addresses(tensors))
        self.table.set_steps(t.steps.data_ptr())
        if t.take is not None:
            self.table.set_take(t.take.data_ptr())
        if t.draw is not None:
            self.table.set_noise(t.draw.data_ptr(), t.seed, t.start, t.stochastic)
            if any(run for run, _ in t.rows):
                self.table.set_runs(*zip(*t.rows, strict=True))
        self.revision = -1


def _handle(t: Tensors) -> _Handle:
    """The handle of the list, with the gradients as they stand."""
    if t.handle is None:
        t.handle = _Handle(t)
    handle: _Handle = t.handle
    if handle.revision != t.revision:
        handle.table.set("gradient", t.gradient_addresses)
        handle.revision = t.revision
    return handle


def sq_norm(t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
    """total ← Σ s g², or with `add` total + Σ s g²."""
    handle = _handle(t)
    handle.table.sq_norm(handle.where(), covariance.kernel, covariance.scalars, total.data_ptr(), add)


def ascend_(
    t: Tensors,
    covariance: Covariance,
    rho: Number,
    total: Tensor | None,
    track: bool,
    worst: float = 1.0,
    noise: float = 0.0,
    again: int | None = None,
) -> None:
    """w0 ← w, w ← w + rho (worst s g / sqrt(total) + noise sqrt(s) η)."""
    handle = _handle(t)
    handle.table.ascend(
        handle.where(),
        covariance.kernel,
        covariance.scalars,
        handle.number(rho),
        0 if total is None else total.data_ptr(),
        track,
        worst,
        noise,
        -1 if again is None else again,
    )


def descend_(t: Tensors, update: Update, correction: Correction | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    handle = _handle(t)
    if t.pairs is not None:
        handle.table.set_pairs(t.pairs.data_ptr(), t.pairs.shape[1])
    handle.table.descend(
        handle.where(),
        update.kernel,
        [handle.number(x) for x in update.options],
        "" if correction is None else correction.kernel,
        [] if correction is None else [handle.number(x) for x in correction.scalars],
        total.data_ptr(),
        0 if second is None else second.data_ptr(),
    )


def restore_(t: Tensors, total: Tensor) -> None:
    """w ← w0."""
    handle = _handle(t)
    handle.table.restore(handle.where(), total.data_ptr())
