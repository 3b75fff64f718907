"""One step of several parts: their g2 are added up, and one update takes them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sharpkern.plan import Plan
from sharpkern.tensors import state_dtype

if TYPE_CHECKING:
    from sharpkern.groups import Groups
    from sharpkern.optimizer import SharpnessAware


class Parts:
    """The g2 of the parts of a step so far: their sum, 4 B/param from the first part to the update.

    Attributes:
        count: How many parts there are.
        ready: Whether `.grad` holds what `step()` shall update with, as `passes` leaves it.
        hooked: Whether then `step(closure)` calls the closure for what hangs on it, and not for a step of its own.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """There are no parts."""
        self.count = 0
        self.ready = self.hooked = False
        self._sums: dict[Tensor, Tensor] = {}
        self._flags: dict[torch.device, Tensor] = {}  # 0, or NaN from the first pass on that was not finite

    @torch.no_grad()
    def add(self, plan: Plan) -> None:
        """Adds the gradients as they stand, and remembers on the device whether the first pass was finite.

        Args:
            plan: That of the part, whose `total` is that of its first pass.
        """
        pairs = [(p, p.grad.detach()) for t in plan.tensors for p in t.params if p.grad is not None]
        known = [(self._sums[p], g) for p, g in pairs if p in self._sums]
        self._sums.update({p: g.to(state_dtype(p), copy=True) for p, g in pairs if p not in self._sums})
        if known:
            torch._foreach_add_([x for x, _ in known], [g for _, g in known])
        for device, total in {t.device: t.total for t in plan.tensors}.items():
            self._flags[device] = self._flags.get(device, 0.0) + 0.0 * total
        self.count += 1

    @torch.no_grad()
    def average(self, plan: Plan) -> None:
        """Adds the gradients as they stand, of the last part, and makes `.grad` the mean; then there are no parts.

        Where the first pass of a part was not finite there is a NaN among the means.

        Args:
            plan: That of the last part; it reads the gradients anew.
        """
        self.add(plan)
        rows = [(p, t.gradient_dtype, self._sums[p]) for t in plan.tensors for p in t.params if p in self._sums]
        if rows:
            torch._foreach_div_([mean for _, _, mean in rows], self.count)
            for device, flag in self._flags.items():
                _mark([mean for _, _, mean in rows if mean.device == device], flag)
        for p, dtype, mean in rows:
            if p.grad is None:
                p.grad = mean.to(dtype)
            else:
                p.grad.copy_(mean)
        self.forget()
        plan.read_gradients()


def _mark(gradients: Sequence[Tensor], flag: Tensor) -> None:
    """The smallest of the gradients, if there is one, gets a flag of 0 or NaN added."""
    for smallest in sorted(gradients, key=Tensor.numel)[:1]:
        smallest.add_(flag.to(smallest.dtype))


def check_parts(optimizer: Groups, what: str) -> None:
    """Checks that a method's second half is the base update alone, which takes a mean as well as one g2.

    Args:
        optimizer: The optimizer.
        what: Who asks, for the message.

    Raises:
        ValueError: It is not.
    """
    groups = optimizer.param_groups
    if any(optimizer._correction_of(group, optimizer.covariance_of(group)) is not None for group in groups):
        raise ValueError(
            f"{what} averages the gradients at w + ε, and {type(optimizer).__name__} wants each of them with its "
            "own perturbation: give it the whole batch"
        )


def m_sharpness(optimizer: SharpnessAware, closures: Sequence[Callable[[], Any]]) -> Any:
    """One step in m parts: ε_i from the gradient of part i alone, one update with the mean of the parts' g2.

    With one part this is `optimizer.step(closure)`. Averages that a method keeps (f̄, a learned s) move and noise is
    drawn anew with each part, as with `second_step(accumulate=True)`. An error in a closure gives up the whole step.

    Args:
        optimizer: Any whose second half is the base update alone: not MFVI, TRACER or EvolutionStrategies.
        closures: One a part, as `step` takes them: each zeroes the gradients, computes the mean loss of its part, calls
            backward and returns the loss.

    Returns:
        The mean of the parts' losses.

    Raises:
        ValueError: There is no closure, or the method is none of those.
        RuntimeError: The weights stand perturbed.
    """
    if not closures:
        raise ValueError("closures is empty: wanted one closure a part of the batch")
    *others, last = closures
    optimizer._wants(False, "m_sharpness()")
    if others:
        check_parts(optimizer, "m_sharpness")
    losses = [optimizer._passes(closure, accumulate=True) for closure in others]
    losses.append(optimizer.step(last))
    return sum(losses[1:], losses[0]) / len(losses)


def _flagged(params: Sequence[Tensor], kept: list[Tensor | None], total: Tensor) -> None:
    """A first pass that was not finite puts a NaN among the gradients that are kept, on the device.

    So whoever looks at them before `step()` sees it: other ranks, a GradScaler. Otherwise they stay what they are.
    """
    found = [(p.numel(), i) for i, p in enumerate(params) if p.grad is not None and p.grad.device == total.device]
    for _, i in sorted(found)[:1]:
        kept[i] = torch.zeros_like(cast(Tensor, params[i].grad)) if kept[i] is None else kept[i]
        _mark([cast(Tensor, kept[i])], 0.0 * total)


def passes(
    optimizer: SharpnessAware,
    backward: Callable[[], Any],
    unsynced: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """Both passes of one micro-batch, for a loop that accumulates in `.grad`, clips and calls `step()` without closure.

    Afterwards w stands as it was and `.grad` holds what it held before plus g2, as if g2 were the gradient of an
    ordinary backward pass. `step()` then updates with `.grad`, whatever was clipped or unscaled in between; one that
    is not finite skips the step, and so does a first pass that was not, which leaves a NaN there. An exception
    restores w; `.grad` is of no use then.

    Args:
        optimizer: Any whose second half is the base update alone: not MFVI, TRACER or EvolutionStrategies.
        backward: Computes the loss, calls backward and returns the loss; it zeroes nothing. Called twice, or once by a
            method of one pass.
        unsynced: Makes a context for the first pass, such as `model.no_sync` of DistributedDataParallel: ε is then
            each rank's own.

    Returns:
        What `backward` returned at w; by a method of one pass, at w + ε.

    Raises:
        ValueError: The method is none of those.
        RuntimeError: The weights stand perturbed, or parts are accumulated.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> import sharpkern
        >>> optimizer = sharpkern.SAM([weight], rho=1.0, lr=0.25)
        >>> def backward():
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss.detach()
        >>> passes(optimizer, backward)
        tensor(9.)
        >>> weight.grad  # 2 (3 + 1), the gradient at w + ε
        tensor([8.])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([1.])
    """
    check_parts(optimizer, "passes")
    optimizer._wants_whole("passes()")
    optimizer._parts.ready = optimizer._parts.hooked = False
    params = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.grad for p in params]
    two, loss = optimizer.perturbation.passes == 2, None
    try:
        if two:
            for p in params:
                p.grad = None
            with unsynced(), torch.enable_grad():
                loss = backward()
        optimizer.first_step()
        if two:
            with torch.no_grad():
                _flagged(params, kept, cast(Plan, optimizer._plan).total)
            for p, grad in zip(params, kept, strict=True):
                p.grad = grad
        with torch.enable_grad():
            perturbed_loss = backward()
    finally:
        if optimizer._perturbed is not None:
            optimizer.restore()
    optimizer._parts.ready = True
    return loss if two else perturbed_loss
