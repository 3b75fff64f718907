"""Which tensors make one launch, and the state that goes with them.

A plan is derived from the parameter groups and the state, and made anew whenever they no longer fit.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpkern import ops
from sharpkern.base import Update
from sharpkern.tensors import Stale, Tensors, empty_like, gradient_dtype


class Plan:
    """Lists of tensors, one a group, device, dtype and gradient dtype.

    Args:
        groups: The parameter groups.
        state: The optimizer's state, by parameter.
        backend: The backend asked for.

    Attributes:
        tensors: The lists.
        total: Σ s g² of the last first pass: float64, 0-d, on the device.
        ops: The backend's module.
        backend: Its name.
        why_not: Why "auto" took none before it, or None.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], state: MutableMapping[Any, Any], backend: str) -> None:
        lists: dict[Any, list[Tensor]] = {}
        for index, group in enumerate(groups):
            for p in dict.fromkeys(group["params"]):  # a tensor that is listed twice counts once
                lists.setdefault((index, p.device, p.dtype, gradient_dtype(p)), []).append(p)
        self.tensors = [Tensors(params, key[0]) for key, params in lists.items()]
        device = self.tensors[0].params[0].device
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.backend, self.why_not = ops.choose(backend, device)
        self.ops = ops.load(self.backend)
        self._state = state
        self._size = len(state)

    def fits(self, state: MutableMapping[Any, Any]) -> bool:
        """Whether the state is still the one that this plan was made for."""
        return state is self._state and len(state) == self._size

    def counted(self) -> None:
        """Takes note of the state's size, after an op of this plan has added to it."""
        self._size = len(self._state)

    def read_gradients(self) -> None:
        """Takes up the gradients as they stand.

        Raises:
            RuntimeError: One is sparse.
            Stale: Parameters or gradients no longer fit the plan.
        """
        for t in self.tensors:
            t.read_gradients()

    def attach_fisher(self, t: Tensors, stored: bool) -> None:
        """Gives every parameter of a list a Fisher diagonal, zeros at first, or none where `stored` is False."""
        self._attach(t, "fisher", "fisher" if stored else None, everywhere=True)

    def attach_base(self, t: Tensors, update: Update) -> None:
        """Gives every parameter of a list that has a gradient the state of the base update."""
        m, v = (*update.states, None, None)[:2]
        self._attach(t, "m", m, everywhere=False)
        self._attach(t, "v", v, everywhere=False)

    def _attach(self, t: Tensors, slot: str, name: str | None, everywhere: bool) -> None:
        if t.attached.get(slot, (None, True)) == (name, True):
            return
        new: list[Tensor | None] = [None] * len(t.params)
        missing: list[int] = []
        for i, (p, w, g) in enumerate(zip(t.params, t.weights, t.gradients, strict=True)):
            if name is not None and p in self._state and self._state[p].get(name) is not None:
                new[i] = t.fit(self._state[p][name], w)
            elif name is not None and (everywhere or g is not None):
                missing.append(i)
        if missing:
            zeros = empty_like([t.weights[i] for i in missing], t.state_dtype)
            for i, zero in zip(missing, zeros, strict=True):
                new[i] = zero.zero_()
        for i, (p, x) in enumerate(zip(t.params, new, strict=True)):
            if name is not None and x is not None:
                state = self._state[p]
                state[name] = x
                if slot == "m":  # torch's SGD does not count, but has a buffer after its first update
                    t.steps[i] = 0.0 if i in missing else state.get("step", 1.0)
                    state["step"] = t.steps[i]
        setattr(t, slot, new)
        t.attached[slot] = (name, all(x is not None for x in new) or name is None)
        t.handle = None
        self.counted()


def read_gradients(plan: Plan | None, groups: Sequence[dict[str, Any]], state: Any, backend: str) -> Plan:
    """A plan with the gradients as they stand: the one there is, or a new one where it no longer fits.

    Args:
        plan: The plan there is, or None.
        groups: The parameter groups.
        state: The optimizer's state.
        backend: The backend asked for.

    Returns:
        The plan.

    Raises:
        RuntimeError: A gradient is sparse or does not have the shape of its parameter.
    """
    if plan is not None and plan.fits(state):
        try:
            plan.read_gradients()
        except Stale:
            pass
        else:
            return plan
    plan = Plan(groups, state, backend)
    try:
        plan.read_gradients()
    except Stale:
        raise RuntimeError(
            "a gradient does not have the shape of its parameter: set it to None or compute it again"
        ) from None
    return plan
