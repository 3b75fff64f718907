"""Which tensors make one launch, and the state that goes with them.

A plan is derived from the parameter groups and the state, and made anew whenever they no longer fit.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharpkern import ops
from sharpkern.base import Update
from sharpkern.covariance import Covariance
from sharpkern.sharded import Share, mesh_of, part_of, place, reshard, spread_like
from sharpkern.tensors import GROUP, Stale, Tensors, empty_like, gradient_dtype


class Plan:
    """Lists of tensors, one a group, device, dtype, gradient dtype and share in sums over processes.

    Args:
        groups: The parameter groups.
        state: The optimizer's state, by parameter.
        backend: The backend asked for.
        master: Whether weights of 16 bits have float32 masters.
        noise: Where random numbers are drawn, the seed and the number of draws so far; else None.
        stochastic: Whether w + ε of weights of 16 bits is rounded stochastically.
        taken: Whether gradients are taken with a factor and a bound.

    Attributes:
        numel: p, the number of elements of all parameters, on whatever process.
        tensors: The lists; those on one device share their `total`, Σ s g² of the last first pass.
        total: That of the first list.
        second: Room for Σ g2², by device.
        takes: Factor and bound of the gradients, by device; none where they are taken as they are.
        mesh: That of the first sharded parameter, or None.
        ops: The backend's module.
        backend: Its name.
        why_not: Why "auto" took none before it, or None.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        state: MutableMapping[Any, Any],
        backend: str,
        master: bool,
        noise: tuple[int, Tensor] | None,
        stochastic: bool,
        taken: bool = False,
    ) -> None:
        lists: dict[Any, list[Tensor]] = {}
        self.mesh = mesh_of([p for group in groups for p in group["params"]])
        start: dict[Tensor, int] = {}
        end = 0
        for index, group in enumerate(groups):
            for p in dict.fromkeys(group["params"]):  # a tensor that is listed twice counts once
                key = index, p.device, p.dtype, gradient_dtype(p), Share.of(p, self.mesh)
                lists.setdefault(key, []).append(p)
                start[p], end = end, end + -(-p.numel() // GROUP) * GROUP
        self.tensors = [
            Tensors(params, key[0], master and key[2].itemsize == 2, key[-1]) for key, params in lists.items()
        ]
        self.numel = sum(p.numel() for p in start)
        totals = {t.device: t.total for t in self.tensors}
        self.second = {device: torch.zeros_like(total) for device, total in totals.items()}
        self.takes = {device: total.new_zeros(2) for device, total in totals.items()} if taken else {}
        for t in self.tensors:
            for i, p in enumerate(t.params):
                if p in state and "step" in state[p]:  # a first pass may want it, before there is an update
                    t.steps[i] = state[p]["step"]
            t.total = totals[t.device]
            t.take = self.takes.get(t.device)
            t.stochastic = stochastic and t.dtype.itemsize == 2
            if noise is not None:
                t.seed, t.draw = noise[0], noise[1].to(t.device, copy=True)
                places = [place(p, start[p]) for p in t.params]
                t.start = [first for first, _, _ in places]
                t.rows = [(run, pitch) for _, run, pitch in places]
        self.total = self.tensors[0].total
        self.backend, self.why_not = ops.choose(backend, self.tensors[0].device, {t.dtype for t in self.tensors})
        self.ops = ops.load(self.backend)
        self._state = state
        self._size = len(state)

    def fits(self, state: MutableMapping[Any, Any]) -> bool:
        """Whether the state is still the one that this plan was made for."""
        return state is self._state and len(state) == self._size

    def counted(self) -> None:
        """Takes note of the state's size, after an op of this plan has added to it."""
        self._size = len(self._state)

    def reshard(self, model: nn.Module | None) -> None:
        """Where parameters are sharded: whole ones that were gathered for a pass are gathered anew for the next."""
        if self.mesh is not None and model is not None:
            reshard(model)

    def read_gradients(self) -> None:
        """Takes up the gradients as they stand.

        Raises:
            RuntimeError: One is sparse.
            Stale: Parameters or gradients no longer fit the plan.
        """
        for t in self.tensors:
            t.read_gradients()

    def attach_covariance(self, t: Tensors, covariance: Covariance) -> None:
        """Gives every parameter of a list what is kept of its covariance."""
        self._attach(t, "fisher", covariance.state, everywhere=True, initial=covariance.initial)

    def attach_saved(self, t: Tensors) -> None:
        """Makes room for the copy w0, or gives every parameter its float32 master.

        A master is the weight itself at first, and again where somebody else wrote the weight.
        """
        if t.master:
            self._attach(t, "saved", "master", everywhere=True)
            t.follow()
        else:
            t.allocate_saved()

    def attach_base(self, t: Tensors, update: Update, everywhere: bool) -> None:
        """Gives every parameter of a list that has a gradient, or every one, the state of the base update."""
        m, v = (*update.states, None, None)[:2]
        self._attach(t, "m", m, everywhere)
        self._attach(t, "v", v, everywhere)

    def _attach(self, t: Tensors, slot: str, name: str | None, everywhere: bool, initial: float = 0.0) -> None:
        if t.attached.get(slot, (None, True)) == (name, True):
            return
        new: list[Tensor | None] = [None] * len(t.params)
        missing: list[int] = []
        for i, (p, w, g) in enumerate(zip(t.params, t.weights, t.gradients, strict=True)):
            if name is not None and p in self._state and self._state[p].get(name) is not None:
                new[i] = t.fit(part_of(self._state[p][name], p), w)
            elif name is not None and (everywhere or g is not None):
                missing.append(i)
        if missing:
            weights = [t.weights[i] for i in missing]
            if t.share.mesh is None:
                zeros = empty_like(weights, t.state_dtype)
            else:  # torch pickles a DTensor only if its part lies at the start of a storage
                zeros = [torch.empty_like(w, dtype=t.state_dtype) for w in weights]
            for i, zero in zip(missing, zeros, strict=True):
                new[i] = zero.copy_(t.weights[i]) if name == "master" else zero.fill_(initial)
        for i, (p, x) in enumerate(zip(t.params, new, strict=True)):
            if name is not None and x is not None:
                state = self._state[p]
                state[name] = spread_like(x, p)
                if slot == "m":  # torch's SGD does not count, but has a buffer after its first update
                    t.steps[i] = 0.0 if i in missing else state.get("step", 1.0)
                    state["step"] = t.steps[i]
        setattr(t, slot, new)
        t.attached[slot] = (name, all(x is not None for x in new) or name is None)
        t.handle = None
        self.counted()


def read_gradients(plan: Plan | None, state: Any, make: Callable[[], Plan]) -> Plan:
    """A plan with the gradients as they stand: the one there is, or a new one where it no longer fits.

    Args:
        plan: The plan there is, or None.
        state: The optimizer's state.
        make: Makes a new one.

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
    plan = make()
    try:
        plan.read_gradients()
    except Stale:
        raise RuntimeError(
            "a gradient does not have the shape of its parameter: set it to None or compute it again"
        ) from None
    return plan
