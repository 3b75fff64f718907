"""The backends' ops as ops of torch.library, which can stand in the graphs of torch.compile.

Each is a function of the tensors that it is given, and no formula is written again: it makes a list of them and calls
the backend. What the options come to is asked of the optimizer when the op runs; its number is an argument.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sharpkern.covariance import Identity
from sharpkern.modes import check_mode
from sharpkern.ops import Ops
from sharpkern.perturbation import Launch
from sharpkern.plan import Plan
from sharpkern.tensors import _EMPTY, Tensors, _layout

if TYPE_CHECKING:
    from sharpkern.halves import Halves

_TYPES = {
    "gradients": "Tensor?[]",
    "take": "Tensor{}?",
    "steps": "Tensor{}",
    "total": "Tensor{}",
    "second": "Tensor{}?",
    "draw": "Tensor{}?",
}
BASED = ("saved", "fisher", "first", "m", "v")  # the slots that are given as whole allocations
_ATTRIBUTES = {"first": "_first"}  # of `Tensors`, where it is not called as the slot
optimizers: WeakValueDictionary[int, Halves] = WeakValueDictionary()


def _fit(x: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype and the layout of another; a copy where it is not."""
    if x.dtype == dtype and (x.stride() == like.stride() or _layout(x) == _layout(like)):
        return x
    return torch.empty_like(like, dtype=dtype).copy_(x)


def _take_gradients(t: Tensors, gradients: Sequence[Tensor | None]) -> None:
    """As `Tensors.read_gradients`, with gradients that need not be those of the parameters."""
    pairs = zip(t.weights, gradients, strict=True)
    t.gradients = [None if g is None else _fit(g, w, t.gradient_dtype) for w, g in pairs]
    t.gradient_addresses = [0 if g is None else g.data_ptr() or _EMPTY for g in t.gradients]
    t.complete = all(g is not None for g in gradients)
    t.revision += 1


def _base(x: Tensor) -> Tensor:
    """The allocation of which a tensor is a part."""
    return x if x._base is None else x._base


def note_bases(t: Tensors) -> None:
    """Notes the allocations behind a list's copies and state: what ops are given in place of their many parts.

    Args:
        t: The list. What it is noted in, `bases`, is by slot.
    """
    for slot in BASED:
        kept: list[Tensor | None] = getattr(t, _ATTRIBUTES.get(slot, slot))
        t.bases[slot] = list(dict.fromkeys(_base(x) for x in kept if x is not None))


def given(t: Tensors, slot: str) -> Any:
    """What a list of tensors has for a slot of an op.

    Args:
        t: The list.
        slot: The slot.

    Returns:
        A tensor, tensors, or None.
    """
    if slot == "gradients":
        return [p.grad for p in t.params]
    if slot == "weights":
        return t.params
    return t.bases[slot] if slot in BASED else getattr(t, slot)


def _stand_in(own: Tensors, lists: dict[str, Any]) -> tuple[Tensors, dict[str, list[Tensor]]]:
    """A list like another but with other tensors, and what in its slots are copies of them for their layout."""
    t, fitted = copy.copy(own), dict[str, list[Tensor]]()
    t.handle, t._gaps = None, []
    for slot, values in lists.items():
        if slot not in BASED and slot != "weights":
            setattr(t, slot, values)
            continue
        likes = own.weights if slot == "weights" else own.bases[slot]
        fitted[slot] = [_fit(x, like, like.dtype) for x, like in zip(values, likes, strict=True)]
        if slot == "weights":
            t.weights = fitted[slot]
            continue
        new = dict(zip(likes, fitted[slot], strict=True))
        name = _ATTRIBUTES.get(slot, slot)
        setattr(t, name, [x if x is None else _part(x, new.get(_base(x))) for x in getattr(own, name)])
    t.first = [None if x is None else y for x, y in zip(own.first, t._first or own.first, strict=True)]
    if "v" in lists and shared(own):
        t.fisher = t.v
    moved = [x is not w for x, w in zip(own.source, own.weights, strict=True)]
    t.source = [w0 if m else w for m, w0, w in zip(moved, t.saved, t.weights, strict=True)]
    return t, fitted


def _part(x: Tensor, new: Tensor | None) -> Tensor:
    """What of another allocation lies where a tensor lies in its own."""
    if new is None or x._base is None:
        return x if new is None else new
    return new.as_strided(x.shape, x.stride(), new.storage_offset() + x.storage_offset() - x._base.storage_offset())


def shared(t: Tensors) -> bool:
    """Whether what is kept of the covariance is the base update's second moment."""
    return t.attached.get("fisher", (None, True))[0] == "exp_avg_sq"


def _launch(optimizer: Halves, index: int, t: Tensors, options: Sequence[Tensor]) -> Launch:
    """What the options of a list's group come to, with the tensors that were given among them."""
    group, last = optimizer.param_groups[t.group], optimizer._launches[index]
    if options:
        names = [name for name, x in group.items() if isinstance(x, Tensor)]
        group = {**group, **dict(zip(names, options, strict=True))}
    launch = optimizer._launch(t, group, last)
    optimizer._launches[index] = launch
    return launch


@dataclass(frozen=True)
class Op:
    """One op: a backend's, on the tensors of a list that it is given.

    Attributes:
        name: Of the op.
        reads: What of a list of tensors it reads.
        writes: What of it it writes.
        flags: Names of its switches.
        run: Calls the backend: the list, its launch, Σ s g², Σ g2² or None, the switches.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    flags: tuple[str, ...]
    run: Callable[..., None]

    @property
    def schema(self) -> str:
        """As torch.library takes it: the numbers of optimizer and list, tensors among the options, slots, switches."""
        marks = dict.fromkeys(self.reads, "") | {slot: f"({'abcdef'[i]}!)" for i, slot in enumerate(self.writes)}
        slots = [f"{_TYPES.get(slot, 'Tensor{}[]').format(mark)} {slot}" for slot, mark in marks.items()]
        rest = ", ".join((*slots, *(f"bool {flag}" for flag in self.flags)))
        return f"(int optimizer, int index, Tensor[] options, {rest}) -> ()"

    def __call__(self, number: int, index: int, options: list[Tensor], *values: Any) -> None:
        """Runs the backend's op on what is given.

        That is the optimizer's own list of tensors, unless a compiler made copies: then a stand-in. Which parameters
        have gradients, and so what else there is of them, is the same in both.
        """
        if self.name != "restore_":
            check_mode("a compiled step")
        optimizer = optimizers[number]
        plan = cast(Plan, optimizer._plan)
        own = plan.tensors[index]
        slots = (*self.reads, *self.writes)
        lists, flags = dict(zip(slots, values, strict=False)), values[len(slots) :]
        gradients, total, second = lists.pop("gradients", None), lists.pop("total"), lists.pop("second", None)
        if "v" in lists and shared(own):
            del lists["fisher"]  # it is given as v
        launch = _launch(optimizer, index, own, options)
        if gradients is not None:
            _take_gradients(own, gradients)
        if "first" in self.writes:
            settle(own, launch, optimizer.perturbation.passes)
        same = all(_same(x, given(own, slot)) for slot, x in lists.items())
        t, fitted = (own, {}) if same else _stand_in(own, lists)
        t.gather()
        self.run(plan.ops, t, launch, total, second, *flags)
        t.scatter()
        for slot in {*self.writes} & {*fitted}:
            for x, y in zip(lists[slot], fitted[slot], strict=True):
                if x is not y:
                    x.copy_(y)
        if "weights" in self.writes:
            increment_version(lists["weights"])
        own.release()


def _same(x: Any, y: Any) -> bool:
    """Whether a slot is given the tensors that it has."""
    return len(x) == len(y) and all(map(is_, x, y)) if isinstance(x, list) else x is y


def settle(t: Tensors, launch: Launch, passes: int) -> None:
    """Which of the copies of weights and gradients the second half of the step reads."""
    t.set_source(everything=passes == 1)
    if launch.correction is not None and launch.correction.first:
        t.allocate_first()


def _sq_norm(ops: Ops, t: Tensors, x: Launch, total: Tensor, second: Tensor | None, plain: bool, add: bool) -> None:
    ops.sq_norm(t, Identity() if plain else x.covariance, total, add)


def _ascend_(ops: Ops, t: Tensors, x: Launch, total: Tensor, second: Tensor | None, worst: bool, track: bool) -> None:
    ops.ascend_(t, x.covariance, x.rho, total if worst else None, track, x.worst, x.noise)


def _descend_(ops: Ops, t: Tensors, x: Launch, total: Tensor, second: Tensor | None) -> None:
    if x.update is None:
        raise RuntimeError(
            "a base optimizer that is not fused waits for the device in the middle of a step, which a compiled "
            "second_step() cannot: call it outside of torch.compile, or take SGD, Adam or AdamW without amsgrad"
        )
    ops.descend_(t, x.update, x.correction, total, second)


def _restore_(ops: Ops, t: Tensors, x: Launch, total: Tensor, second: Tensor | None) -> None:
    ops.restore_(t, total)


_LISTS = ("weights", "saved", "fisher")
OPS = (
    Op("sq_norm", ("gradients", "take", *_LISTS, "steps"), ("total",), ("plain", "add"), _sq_norm),
    Op("ascend_", ("gradients", "take", "steps", "total"), (*_LISTS, "first", "draw"), ("worst", "track"), _ascend_),
    Op("descend_", ("gradients", "take", "first", "total", "second"), (*_LISTS, "m", "v", "steps"), (), _descend_),
    Op("restore_", ("saved", "total"), ("weights",), (), _restore_),
)
for _op in OPS:
    torch.library.define(f"sharpkern::{_op.name}", _op.schema)
    torch.library.impl(f"sharpkern::{_op.name}", "default", _op.__call__)
    torch.library.register_fake(f"sharpkern::{_op.name}", lambda *_: None)
