"""The ops as launches of the Triton kernels, one each.

On the CPU the kernels run only in Triton's interpreter, for tests.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from sharpkern.base import Number, Update
from sharpkern.correction import Correction, Estimated
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
    from sharpkern.backend.triton.correction import arguments as correction_arguments
    from sharpkern.backend.triton.correction import formula as correction_formula
    from sharpkern.backend.triton.covariance import FORMULAS as COVARIANCES
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
    """total ← Σ s g² or (s g)², with `add` on top of what there was."""
    table, formula = table_of(t), COVARIANCES[covariance.kernel]
    share = -(-table.chunks // len(table.partials))
    launch.run(
        kernels.sq_norm,
        (t.device, -(-table.chunks // share), 8),
        *(table.words, table.gradients(t), t.take, table.partials, t.steps, total, table.count, table.chunks, share),
        covariance_scalars(covariance.kernel, covariance.scalars),
        COVARIANCE=formula.function,
        DIRECTION=formula.direction,
        W=_TYPES[_exact(t)],
        G=_TYPES[t.gradient_dtype],
        EXACT=kernels.ROWS.index("saved" if t.master else "weight"),
        READS_W=formula.weight,
        STATE=formula.state,
        READS_STEP=formula.step,
        ADD=add,
        TAKES=t.take is not None,
        V=_width(t.gradient_dtype, _exact(t) if formula.weight else t.gradient_dtype, state=formula.state),
        CHUNK=table.chunk,
    )


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
    table, formula = table_of(t), COVARIANCES[covariance.kernel]
    gradients, rounds = None if total is None else table.gradients(t), t.stochastic and t.dtype.itemsize == 2
    used = [t.dtype, _exact(t)] if total is None else [t.dtype, _exact(t), t.gradient_dtype]
    launch.run(
        kernels.ascend,
        (t.device, table.chunks, 8),
        *(table.words, gradients, t.take, t.draw, t.steps, total, rho, worst, noise, again or 0, table.count),
        covariance_scalars(covariance.kernel, covariance.scalars),
        COVARIANCE=formula.function,
        KEPT=formula.kept,
        W=_TYPES[t.dtype],
        G=_TYPES[t.gradient_dtype],
        READS_STEP=formula.step,
        STATE=formula.state,
        MASTER=t.master,
        WORST=total is not None,
        NOISE=noise != 0,
        AGAIN=again is not None,
        KEEPS_FIRST=table.keeps_first and total is not None,
        TRACK=track,
        COUNTS=t.draw is not None,
        ROUNDS=rounds,
        CUT=table.cut,
        RHO_LOADED=isinstance(rho, Tensor),
        TAKES=t.take is not None,
        # the 8 elements that share a counter of random bits belong to one thread, and the 4 that share one of normals
        V=8 if rounds else _width(*used, state=formula.state),
        CHUNK=table.chunk,
    )


def descend_(t: Tensors, update: Update, correction: Correction | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    table, formula = table_of(t), UPDATES[update.kernel]
    lr, options, reads_step = update_options(update.kernel, update.options)
    corrects = correction_formula(correction, t.fisher[0] is not None)
    radius, scalars, others = correction_arguments(correction)
    estimates = isinstance(correction, Estimated)
    gradients, draws, pairs, count = None, None, None, 0
    if estimates:
        assert t.pairs is not None
        draws, pairs, count = t.draw, t.pairs, t.pairs.shape[1]
    else:
        gradients = table.gradients(t)
    used = [t.dtype, _exact(t)] if estimates else [t.dtype, _exact(t), t.gradient_dtype]
    width = _width(*used, state=formula.states > 0 or corrects.state)
    # one access a list and thread, for Adam has many lists; with TRACER too many: half as many threads, twice as large
    warps = 8 if corrects.first and formula.states > 1 else table.chunk // (32 * width)
    launch.run(
        kernels.descend,
        (t.device, table.chunks, warps),
        *(table.words, gradients, t.take, draws, pairs, t.steps, total, total if second is None else second),
        *(lr, radius, table.count, count, options, scalars, others),
        UPDATE=formula.function,
        CORRECTION=corrects.function,
        W=_TYPES[t.dtype],
        G=_TYPES[t.gradient_dtype],
        STATES=formula.states,
        READS_FIRST=corrects.first,
        READS_F=corrects.state,
        READS_EPSILON=corrects.epsilon,
        MOVES=corrects.moves,
        ESTIMATES=estimates,
        MASTER=t.master,
        READS_STEP=reads_step or corrects.step,
        CUT=table.cut and estimates,
        LR_LOADED=isinstance(lr, Tensor),
        RADIUS_LOADED=isinstance(radius, Tensor),
        TAKES=t.take is not None,
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
