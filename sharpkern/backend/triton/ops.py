"""The ops as launches of the Triton kernels, one each.

On the CPU the kernels run only in Triton's interpreter, for tests.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from sharpkern.base import Number, Update
from sharpkern.covariance import Covariance
from sharpkern.tensors import Tensors

try:
    import triton.language as tl
    from triton.runtime.jit import JITFunction
except ImportError as error:
    _import_error: ImportError | None = error
else:
    _import_error = None
    from sharpkern.backend.triton import kernels, launch
    from sharpkern.backend.triton.base import FORMULAS as UPDATES
    from sharpkern.backend.triton.base import arguments as update_options
    from sharpkern.backend.triton.covariance import FORMULAS as COVARIANCES
    from sharpkern.backend.triton.covariance import damped
    from sharpkern.backend.triton.covariance import scalars as covariance_scalars
    from sharpkern.backend.triton.launch import table_of

    _TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def why_not(device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
    """Why the kernels cannot run on the device with weights of these dtypes, or None."""
    if _import_error is not None:
        return "triton is not installed"
    if device.type != "cuda" and not (device.type == "cpu" and not isinstance(kernels.restore, JITFunction)):
        return "Triton kernels run on CUDA devices only"
    if torch.float64 in dtypes:
        return "float64 weights: the Triton kernels compute in float32; use native or reference"
    return None


def _types(*dtypes: torch.dtype) -> dict[str, Any]:
    """The dtypes W, G of weights and gradients, and how many elements of the narrower are 16 bytes."""
    names = dict(zip(("W", "G"), map(_TYPES.__getitem__, dtypes), strict=False))
    return {**names, "V": 16 // min(x.itemsize for x in dtypes)}


def sq_norm(t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
    """total ← Σ s g², or with `add` total + Σ s g²."""
    table, formula = table_of(t), COVARIANCES[covariance.kernel]
    share = -(-table.chunks // len(table.partials))
    launch.run(
        t.device,
        kernels.sq_norm,
        -(-table.chunks // share),
        *(table.words, table.gradients(t), table.partials, total, table.count, table.chunks, share),
        covariance_scalars(covariance.scalars),
        COVARIANCE=formula.function,
        EXACT=kernels.ROWS.index("saved" if t.master else "weight"),
        READS_W=formula.weight,
        STATE=formula.state,
        ADD=add,
        CHUNK=table.chunk,
        **_types(torch.float32 if t.master else t.dtype, t.gradient_dtype),
    )


def ascend_(t: Tensors, covariance: Covariance, rho: Number, total: Tensor, track: bool) -> None:
    """w0 ← w, w ← w + rho s g / sqrt(total)."""
    table, formula = table_of(t), COVARIANCES[covariance.kernel]
    draw = t.draw is not None and t.dtype.itemsize == 2
    launch.run(
        t.device,
        kernels.ascend,
        table.chunks,
        *(table.words, table.gradients(t), t.draw, total, rho, table.count),
        covariance_scalars(covariance.scalars),
        COVARIANCE=formula.function,
        STATE=formula.state,
        MASTER=t.master,
        TRACK=track,
        ROUND=draw,
        RHO_LOADED=isinstance(rho, Tensor),
        CHUNK=table.chunk,
        **_types(t.dtype, t.gradient_dtype),
    )


def descend_(t: Tensors, update: Update, natural: Covariance | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    table, formula = table_of(t), UPDATES[update.kernel]
    lr, options, reads_step = update_options(update.kernel, update.options)
    launch.run(
        t.device,
        kernels.descend,
        table.chunks,
        *(table.words, table.gradients(t), t.steps, total, total if second is None else second, lr, table.count),
        options,
        covariance_scalars(() if natural is None else natural.scalars),
        UPDATE=formula.function,
        NATURAL=None if natural is None else damped,
        STATES=formula.states,
        MASTER=t.master,
        READS_STEP=reads_step,
        LR_LOADED=isinstance(lr, Tensor),
        CHUNK=table.chunk,
        **_types(t.dtype, t.gradient_dtype),
    )


def restore_(t: Tensors, total: Tensor) -> None:
    """w ← w0."""
    table = table_of(t)
    types = _types(t.dtype)
    launch.run(
        t.device,
        kernels.restore,
        table.chunks,
        table.words,
        total,
        table.count,
        CHUNK=table.chunk,
        MASTER=t.master,
        **types,
    )
