"""A torch optimizer as the base update: it reads groups, state and gradients itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sharpkern.backend.reference.ops import corrected_, count_
from sharpkern.perturbation import Launch
from sharpkern.sharded import spread_like


def correct_(launch: Launch, penalty: float) -> dict[Tensor, Tensor]:
    """The second half of a method, as the ops would do it, while the weights stand perturbed.

    What is kept of the covariance moves on.

    Args:
        launch: One list.
        penalty: What of w is added to the gradient.

    Returns:
        By parameter, the gradients that are not g2.
    """
    t, changed = launch.tensors, {}
    if launch.correction is None and penalty == 0 and t.take is None:
        return {}
    for i, p in enumerate(t.params):
        g = corrected_(t, i, launch.correction, t.total)
        if g is not None:
            changed[p] = g.add(t.source[i], alpha=penalty) if penalty else g
    count_(t, launch.correction)
    return changed


@contextmanager
def lent(
    groups: Sequence[dict[str, Any]],
    state: MutableMapping[Tensor, dict[str, Any]],
    hidden: Mapping[str, Any],
    changed: Mapping[Tensor, Tensor],
) -> Generator[None]:
    """Groups, state and gradients as the torch optimizer wants them.

    Its own option that one of ours hides (Adadelta has a rho) takes its default; the Fisher diagonal leaves the state,
    since torch makes its own where it finds none at all; gradients become those of the method. All that is undone.

    Args:
        groups: The parameter groups.
        state: The state, by parameter.
        hidden: The options that ours hide, with their defaults.
        changed: By parameter, the gradients to be taken instead of those that are there.
    """
    own = [{name: group[name] for name in hidden} for group in groups]
    own_state = [(p, name) for p, kept in state.items() for name in ("fisher", "covariance") if name in kept]
    kept_state = [(p, name, state[p].pop(name)) for p, name in own_state]
    gradients = {p: p.grad for p in changed}
    for p, g in changed.items():
        p.grad = spread_like(g.to(p.dtype if p.grad is None else p.grad.dtype), p).view_as(p)
    try:
        for group in groups:
            group.update(hidden)
        yield
    finally:
        for group, values in zip(groups, own, strict=True):
            group.update(values)
        for p, name, value in kept_state:
            state[p][name] = value
        for p, before in gradients.items():
            p.grad = before
