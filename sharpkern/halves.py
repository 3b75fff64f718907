"""The algorithm, once: the two halves of a step. A method is a row of `sharpkern.variants`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sharpkern import compiled, per_rank
from sharpkern.accumulation import Parts, check_parts
from sharpkern.base import Update
from sharpkern.correction import Estimated
from sharpkern.covariance import Identity
from sharpkern.modes import check_mode
from sharpkern.perturbation import Launch, add_up, perturb_
from sharpkern.plan import Plan, read_gradients
from sharpkern.saved import Saved
from sharpkern.sharded import local, part_of
from sharpkern.tensors import Stale
from sharpkern.wrapped import correct_, lent


class Halves(Saved):
    """From w to w + ε and back with an update; `SharpnessAware` is how users call them."""

    def _read_first(self) -> tuple[Plan, list[Launch]]:
        """The gradients as they stand, the options of the groups, and what is kept of the covariances."""
        plan = self._plan = read_gradients(self._plan, self.state, self._make_plan)
        self.backend, self.why_not = plan.backend, plan.why_not
        launches = self._refresh_launches(plan)
        for launch in launches:
            plan.attach_covariance(launch.tensors, launch.covariance)
        return plan, launches

    def _prepare(self, track: bool = True) -> tuple[Plan, list[Launch]]:
        """The same, and a Fisher diagonal that is given."""
        plan, launches = self._read_first()
        self._set_fisher(track)
        return plan, launches

    @torch.no_grad()
    def _make_state(self) -> None:
        """Makes all state that there is after a step, and moves nothing."""
        plan, launches = self._read_first()
        for x in launches:
            if x.tensors.master:
                plan.attach_saved(x.tensors)
            if x.update is not None:
                plan.attach_base(x.tensors, x.update, everywhere=True)
        if any(x.update is None for x in launches):
            self._step_wrapped({})
            plan.counted()

    def _set_fisher(self, track: bool) -> None:
        """Asks the callable for the Fisher diagonal, where there is one and its turn has come."""
        if self._fisher is None:
            return
        due = self._asked % self._refresh == 0
        self._asked += track
        if not due:
            return
        params = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            given = list(self._fisher())
        if [x.shape for x in given] != [p.shape for p in params]:
            raise ValueError(
                f"the callable fisher returned {len(given)} tensors whose shapes are not those of the {len(params)} "
                "parameters: it has to return one tensor a parameter, in parameter order"
            )
        for p, f in zip(params, given, strict=True):
            stored = self.state[p].get("fisher")
            if stored is not None:
                local(stored).copy_(part_of(f, p))

    @torch.no_grad()
    def _perturb(self, what: str, track: bool) -> None:
        self._wants(False, what)
        check_mode(what)
        if "_parts" not in self.__dict__:
            raise RuntimeError(
                f"{what} was called on a {type(self).__name__} that imitates the optimizer, and what the step leaves "
                "would stay there: call it on the optimizer, in Lightning on self.optimizers(use_pl_optimizer=False)"
            )
        if torch.compiler.is_dynamo_compiling():
            return compiled.perturb(self, what, track)
        self._taking.check(self)
        plan, launches = self._prepare(track)
        self._taking.begin(plan.takes)
        passes = self.perturbation.passes
        for launch in launches:
            t = launch.tensors
            t.gather()
            plan.attach_saved(t)
            t.set_source(everything=passes == 1)
            if launch.correction is not None and launch.correction.first:
                t.allocate_first()
            t.moved.value = False
            increment_version(t.written)
        group = per_rank.group_of(self._common)
        try:
            perturb_(plan.ops, launches, passes, track, lambda totals: per_rank.agree_(totals, group))
            self._half.perturbed = what
            for t in plan.tensors:
                t.scatter()
            self._watch.look(launches)
            if passes == 2:
                self._record.first(launches, track)
            else:
                self._record.none()
            for t in plan.tensors:
                t.release()
            if track:
                self._parts.ready = self._parts.hooked = False
            if passes == 2 or not track:  # the one pass of a step is to touch them
                self._statistics.keep(everything=not track)
            plan.reshard(self._common.model)
            torch.clear_autocast_cache()  # casts of w
        except BaseException:  # also Ctrl-C, which may come between two launches
            self._restore(plan, [x for x in launches if x.tensors.moved.value])
            self._end()
            raise

    def _init_group(self) -> bool:
        """What Dynamo calls while it traces a step, without tracing it, as in torch's optimizers: makes the state."""
        return compiled.prepare(self)

    def _read_second(self, plan: Plan) -> None:
        """Takes up the gradients at w + ε.

        Raises:
            RuntimeError: A gradient is sparse (w is restored then), or the weights were moved to other storage.
        """
        try:
            plan.read_gradients()
        except Stale:
            for launch in self._launches:
                launch.tensors.rescue()
            self._end()
            self._drop_plan()
            self._parts = Parts()
            raise RuntimeError(
                "the parameters were moved to other storage, or the dtype of a gradient changed, while the weights "
                "stood perturbed; w is restored and not updated. Call second_step() or restore() before model.to() "
                "and the like"
            ) from None

    def _descend_eagerly(self, accumulate: bool = False) -> None:
        plan = cast(Plan, self._plan)
        try:
            self._taking.check(self)
            self._read_second(plan)
            if accumulate:
                self._add_part(plan)
            else:
                accumulated = self._parts.count > 0
                if accumulated:
                    self._parts.average(plan)
                self._update(plan, check=accumulated)
        except BaseException:
            if self._perturbed is not None:
                self.restore()
            raise

    @torch.no_grad()
    def _add_part(self, plan: Plan) -> None:
        """Goes back to w; g2 joins those of the parts before."""
        check_parts(self, "accumulate=True")
        self._parts.add(plan)
        self._restore(plan)
        self._end()

    def _update(self, plan: Plan, check: bool) -> None:
        """The base update with the gradients as they were read, or if asked none if they are not finite; the end."""
        sums = self._descend(plan, check=check)
        self._record.second(self._launches)
        for launch in self._launches:
            launch.tensors.release()
        self._end()
        self._taking.tell(sums)

    @torch.no_grad()
    def _update_ready(self) -> None:
        """The update after `passes`: w stands as it was, and `.grad` holds what there is of the g2 by now."""
        self._parts.forget()
        plan = self._plan = read_gradients(self._plan, self.state, self._make_plan)
        self._taking.begin(plan.takes)
        for launch in self._refresh_launches(plan):
            t = launch.tensors
            t.gather()
            if t.master:
                plan.attach_saved(t)
            t.source, t.handle = t.saved if t.master else t.weights, None
        self._update(plan, check=True)

    @torch.no_grad()
    def _descend(
        self, plan: Plan, finite: dict[torch.device, Tensor] | None = None, check: bool = False
    ) -> list[Tensor]:
        """The second half. Returns sums that are not finite where the update was skipped."""
        launches = self._refresh_launches(plan)
        second = finite or {}
        if not second and (check or self._common.skip_nonfinite or self._taking.active):
            second = self._second_totals(plan)
            self._taking.clip(plan.takes, second)
        sums = [x for x in (plan.total, second.get(plan.total.device)) if x is not None]
        if any(x.update is None for x in launches):
            self._descend_wrapped(plan, second.get(plan.total.device))
            return sums
        for launch in launches:
            t, u = launch.tensors, cast(Update, launch.update)
            increment_version(t.written)
            plan.attach_base(t, u, everywhere=isinstance(launch.correction, Estimated))
            plan.ops.descend_(t, u, launch.correction, t.total, second.get(t.device))
            t.scatter()
            t.note()
        torch.clear_autocast_cache()  # casts of w + ε
        return sums

    def _second_totals(self, plan: Plan) -> dict[torch.device, Tensor]:
        """Σ g2² on every device: not finite where g2 is not."""
        add_up(plan.ops, [(t, Identity()) for t in plan.tensors], [plan.second[t.device] for t in plan.tensors])
        return plan.second

    def _descend_wrapped(self, plan: Plan, second: Tensor | None) -> None:
        """Restores, then calls the torch optimizer, which reads `.grad` itself. Waits for the device."""
        if not bool(plan.total.isfinite()) or not (second is None or bool(second.isfinite())):
            self._restore(plan)
            return
        changed: dict[Tensor, Tensor] = {}
        for x in self._launches:
            changed.update(correct_(x, self._penalty_of(self.param_groups[x.tensors.group])))
        self._restore(plan)
        self._step_wrapped(changed)
        for launch in self._launches:
            launch.tensors.gather()
        plan.counted()

    def _step_wrapped(self, changed: dict[Tensor, Tensor]) -> None:
        assert self.base_optimizer is not None
        with lent(self.param_groups, self.state, self._hidden, changed):
            self.base_optimizer.step()

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to w, bit for bit, without an update.

        After `perturb()` that is all. Otherwise it gives up the step, also between its parts: what was accumulated is
        forgotten.

        Raises:
            RuntimeError: The weights do not stand perturbed, and no parts are accumulated.
        """
        if not self._parts.count:
            self._wants(True, "restore()")
        if self._perturbed != "perturb()":
            self._parts.forget()
        if self._perturbed is not None:
            if torch.compiler.is_dynamo_compiling():
                compiled.restore(self)
            else:
                self._restore(cast(Plan, self._plan))
            self._end()

    def _restore(self, plan: Plan, launches: Sequence[Launch] | None = None) -> None:
        """Back to w, of all lists or of some."""
        for launch in self._launches if launches is None else launches:
            increment_version(launch.tensors.written)
            plan.ops.restore_(launch.tensors, launch.tensors.total)
            launch.tensors.scatter()
            launch.tensors.note()
        torch.clear_autocast_cache()  # casts of w + ε

    def _end(self) -> None:
        self._half.perturbed = None
        self._statistics.put_back()
        if self._plan is not None:
            self._plan.reshard(self._common.model)
