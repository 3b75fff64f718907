"""A step under torch.compile: what Dynamo traces of it, over the ops of `sharpkern.library`.

The eager step reads addresses and never asks the dispatcher, so it cannot be traced. Here is the same step once more,
without any arithmetic of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sharpkern.library import OPS, given, note_bases, optimizers, settle, shared
from sharpkern.perturbation import share_
from sharpkern.plan import Plan
from sharpkern.tensors import Tensors

if TYPE_CHECKING:
    from sharpkern.halves import Halves

_SLOTS = {op.name: (*op.reads, *op.writes) for op in OPS}
_numbers = itertools.count()


def eagerly(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function outside of the graph: a graph break, and an error with fullgraph=True."""
    from sharpkern.eager import outside  # which loads torch's compiler

    return outside(function, *args)


def prepare(optimizer: Halves) -> bool:
    """Makes the state that a step wants, and the lists of tensors. Runs while Dynamo traces, without being traced.

    Args:
        optimizer: The optimizer. Its gradients have to be there.

    Returns:
        Whether all base updates are fused.

    Raises:
        RuntimeError: It is being traced after all, or a gradient is sparse.
    """
    if torch.compiler.is_dynamo_compiling():
        raise RuntimeError(
            f"torch {torch.__version__} traces the preparation of a step instead of calling it: make the optimizer "
            "outside of the compiled function, and its steps there if it is"
        )
    if optimizer._perturbed is None:
        plan, _ = optimizer._prepare(track=False)
        optimizer._taking.begin(plan.takes)
    else:
        plan = cast(Plan, optimizer._plan)
        optimizer._read_second(plan)
    for launch in optimizer._launches:
        t = launch.tensors
        if optimizer._perturbed is None:
            plan.attach_saved(t)
            settle(t, launch, optimizer.perturbation.passes)
        if launch.update is not None:
            plan.attach_base(t, launch.update, everywhere=False)
        t.release()
        note_bases(t)
    if optimizer._number is None:
        optimizer._number = next(_numbers)
    optimizers[optimizer._number] = optimizer
    optimizer._opt_called = True  # what torch's schedulers look at; an assignment that is traced would be lost
    return all(launch.update is not None for launch in optimizer._launches)


def _call(name: str, optimizer: Halves, index: int, *flags: bool, **instead: Tensor | None) -> None:
    """Calls an op with what a list of tensors has in its slots, or with what is given for one."""
    t, slots = cast(Plan, optimizer._plan).tensors[index], _SLOTS[name]
    options = [x for x in optimizer.param_groups[t.group].values() if isinstance(x, Tensor)]
    values: list[Any] = []
    for slot in slots:
        if slot in instead:
            values.append(instead[slot])
        elif slot == "fisher" and "v" in slots and shared(t):
            values.append([])  # it is there as v
        else:
            values.append(given(t, slot))
    getattr(torch.ops.sharpkern, name)(optimizer._number, index, options, *values, *flags)


def _add_up(optimizer: Halves, lists: Sequence[Tensors], totals: dict[torch.device, Tensor], plain: bool) -> None:
    """Every total, one a device, ← Σ s g² over all lists; `plain`: Σ g²."""
    seen = set()
    for i, t in enumerate(lists):
        _call("sq_norm", optimizer, i, plain, t.device in seen, total=totals[t.device])
        seen.add(t.device)
    if len(totals) > 1:
        share_(list(totals.values()))


def _asks(optimizer: Halves) -> bool:
    """Whether a GradScaler or other processes are asked in both halves."""
    return optimizer._several or optimizer._taking.scaler is not None


def perturb(optimizer: Halves, what: str, track: bool) -> None:
    """The first half of a step, as `Halves._perturb`.

    Args:
        optimizer: The optimizer.
        what: Who asks.
        track: Whether state moves on.
    """
    if optimizer._fisher is not None or _asks(optimizer):
        eagerly(optimizer._perturb, what, track)
        return
    optimizer._init_group()
    plan = cast(Plan, optimizer._plan)
    lists, worst = plan.tensors, optimizer.perturbation.passes == 2
    optimizer._taking.begin(plan.takes)
    for t in lists:
        if t.master:
            for p, master in zip(t.params, t.saved, strict=True):
                master.copy_(torch.where(master.to(p.dtype) == p, master, p.to(master.dtype)))
    if worst:
        _add_up(optimizer, lists, {t.device: t.total for t in lists}, plain=False)
    for i in range(len(lists)):
        _call("ascend_", optimizer, i, worst, track)
    optimizer._half.perturbed = what
    optimizer._record.none()
    optimizer._parts.ready = optimizer._parts.hooked = False
    if worst or not track:
        optimizer._statistics.keep(everything=True)  # versions are not to be looked at in a graph


@torch.no_grad()
def descend(optimizer: Halves, accumulate: bool = False) -> None:
    """Back to w, and the update.

    Args:
        optimizer: The optimizer.
        accumulate: Whether there is no update yet, and g2 joins those of other parts of the step.
    """
    parts = accumulate or optimizer._parts.count > 0
    if parts or _asks(optimizer) or not optimizer._init_group():
        eagerly(optimizer._descend_eagerly, accumulate)
        return
    plan = cast(Plan, optimizer._plan)
    lists = plan.tensors
    second: dict[torch.device, Tensor] = {}
    if optimizer._common.skip_nonfinite or optimizer._taking.active:
        second = {t.device: torch.empty_like(t.total) for t in lists}
        _add_up(optimizer, lists, second, plain=True)
        optimizer._taking.clip(plan.takes, second)
    for i, t in enumerate(lists):
        _call("descend_", optimizer, i, second=second.get(t.device))
    optimizer._end()


def restore(optimizer: Halves) -> None:
    """Back to w, bit for bit.

    Args:
        optimizer: The optimizer.
    """
    if _asks(optimizer):
        eagerly(optimizer._restore, optimizer._plan)
        return
    for i in range(len(cast(Plan, optimizer._plan).tensors)):
        _call("restore_", optimizer, i)


def zero_grad(optimizer: Halves, set_to_none: bool) -> None:
    """As `zero_grad()`, which torch keeps out of graphs.

    Args:
        optimizer: The optimizer.
        set_to_none: Whether gradients are dropped; else they become zero.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()
