"""The ops as launches of the Triton kernels, one each.

On the CPU the kernels run only in Triton's interpreter, for tests.
"""

from __future__ import annotations

from collections.abc import Collection

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


def _exact(t: Tensors) -> torch.dtype:
    """The dtype of w0."""
    return torch.float32 if t.master else t.dtype


def _width(*dtypes: torch.dtype, state: bool = False) -> int:
    """Elements in 16 bytes of the widest dtype in use: then all lists are spread over the threads in the same way."""
    return 16 // max([x.itemsize for x in dtypes] + [4 * state])


def sq_norm(t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
    """total ← Σ s g², or with `add` total + Σ s g²."""
    table, formula = table_of(t), COVARIANCES[covariance.kernel]
    share = -(-table.chunks // len(table.partials))
    launch.run(
        kernels.sq_norm,
        (t.device, -(-table.chunks // share), 8),
        *(table.words, table.gradients(t), table.partials, total, table.count, table.chunks, share),
        covariance_scalars(covariance.scalars),
        COVARIANCE=formula.function,
        W=_TYPES[_exact(t)],
        G=_TYPES[t.gradient_dtype],
        EXACT=kernels.ROWS.index("saved" if t.master else "weight"),
        READS_W=formula.weight,
        STATE=formula.state,
        ADD=add,
        V=_width(t.gradient_dtype, _exact(t) if formula.weight else t.gradient_dtype, state=formula.state),
        CHUNK=table.chunk,
    )


def ascend_(t: Tensors, covariance: Covariance, rho: Number, total: Tensor, track: bool) -> None:
    """w0 ← w, w ← w + rho s g / sqrt(total)."""
    table, formula = table_of(t), COVARIANCES[covariance.kernel]
    rounds = t.draw is not None and t.dtype.itemsize == 2
    launch.run(
        kernels.ascend,
        (t.device, table.chunks, 8),
        *(table.words, table.gradients(t), t.draw, total, rho, table.count),
        covariance_scalars(covariance.scalars),
        COVARIANCE=formula.function,
        W=_TYPES[t.dtype],
        G=_TYPES[t.gradient_dtype],
        STATE=formula.state,
        MASTER=t.master,
        TRACK=track,
        COUNTS=t.draw is not None,
        ROUNDS=rounds,
        RHO_LOADED=isinstance(rho, Tensor),
        # the 8 elements that share a counter of random bits belong to one thread
        V=8 if rounds else _width(t.dtype, t.gradient_dtype, _exact(t), state=formula.state),
        CHUNK=table.chunk,
    )


def descend_(t: Tensors, update: Update, natural: Covariance | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    table, formula = table_of(t), UPDATES[update.kernel]
    lr, options, reads_step = update_options(update.kernel, update.options)
    width = _width(t.dtype, t.gradient_dtype, _exact(t), state=formula.states > 0 or natural is not None)
    launch.run(
        kernels.descend,
        (t.device, table.chunks, table.chunk // (32 * width)),  # one access a list and thread: Adam has many lists
        *(table.words, table.gradients(t), t.steps, total, total if second is None else second, lr, table.count),
        options,
        covariance_scalars(() if natural is None else natural.scalars),
        UPDATE=formula.function,
        NATURAL=None if natural is None else damped,
        W=_TYPES[t.dtype],
        G=_TYPES[t.gradient_dtype],
        STATES=formula.states,
        MASTER=t.master,
        READS_STEP=reads_step,
        LR_LOADED=isinstance(lr, Tensor),
        V=width,
        CHUNK=table.chunk,
    )


def restore_(t: Tensors, total: Tensor) -> None:
    """w ← w0."""
    table = table_of(t)
    launch.run(
        kernels.restore,
        (t.device, table.chunks, 8),
        *(table.words, total, table.count),
        W=_TYPES[t.dtype],
        MASTER=t.master,
        V=_width(t.dtype, _exact(t)),
        CHUNK=table.chunk,
    )
