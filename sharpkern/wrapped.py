"""A torch optimizer as the base update: it reads groups, state and gradients itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sharpkern.correction import Drawn
from sharpkern.perturbation import Launch


def correct_(launch: Launch) -> None:
    """The second half of the method, as the ops would do it, while the weights stand perturbed.

    Args:
        launch: One list; gradients and what is kept of the covariance are written.
    """
    t, correction = launch.tensors, launch.correction
    for w, w0, g, f in zip(t.weights, t.source, t.gradients, t.fisher, strict=True):
        if g is not None and f is not None and isinstance(correction, Drawn):
            f.copy_(correction.learned.moved(f, 0.5 * g.to(f.dtype) * (w.to(f.dtype) - w0.to(f.dtype))))


@contextmanager
def lent(
    groups: Sequence[dict[str, Any]],
    state: MutableMapping[Tensor, dict[str, Any]],
    launches: Sequence[Launch],
    hidden: Mapping[str, Any],
    penalties: Sequence[float],
) -> Generator[None]:
    """Groups, state and gradients as the torch optimizer wants them.

    Its own option that one of ours hides (Adadelta has a rho) takes its default; the Fisher diagonal leaves the state,
    since torch makes its own where it finds none at all; g2 becomes s g2 for a natural gradient. All that is undone.

    Args:
        groups: The parameter groups.
        state: The state, by parameter.
        launches: Those of the step.
        hidden: The options that ours hide, with their defaults.
        penalties: By group, what of w is added to the gradient.
    """
    own = [{name: group[name] for name in hidden} for group in groups]
    own_state = [(p, name) for p, kept in state.items() for name in ("fisher", "covariance") if name in kept]
    kept_state = [(p, name, state[p].pop(name)) for p, name in own_state]
    fisher = {p: value for p, name, value in kept_state if name == "fisher"}
    gradients = {}
    for launch in launches:
        penalty = penalties[launch.tensors.group]
        for p in launch.tensors.params:
            if p.grad is None or (launch.natural is None and penalty == 0):
                continue
            gradients[p] = p.grad
            g = p.grad if launch.natural is None else launch.natural.s(p, fisher[p]) * p.grad
            p.grad = (g.add(p, alpha=penalty) if penalty else g).to(p.grad.dtype)
    try:
        for group in groups:
            group.update(hidden)
        yield
    finally:
        for group, values in zip(groups, own, strict=True):
            group.update(values)
        for p, name, value in kept_state:
            state[p][name] = value
        for p, g in gradients.items():
            p.grad = g
