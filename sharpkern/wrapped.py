"""A torch optimizer as the base update: it reads groups, state and gradients itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor

from sharpkern.backend.reference.ops import estimate
from sharpkern.correction import Drawn, Estimated, Traced
from sharpkern.perturbation import Launch


def correct_(launch: Launch, total: Tensor, penalty: float) -> dict[Tensor, Tensor]:
    """The second half of a method, as the ops would do it, while the weights stand perturbed.

    What is kept of the covariance moves on.

    Args:
        launch: One list.
        total: Σ s g².
        penalty: What of w is added to the gradient.

    Returns:
        By parameter, the gradients that are not g2.
    """
    t, correction, natural = launch.tensors, launch.correction, launch.natural
    changed = {}
    if isinstance(correction, Estimated):
        for i, p in enumerate(t.params):
            g = estimate(t, i, correction)
            changed[p] = g.add(t.source[i], alpha=penalty) if penalty else g
        cast(Tensor, t.draw).add_(cast(Tensor, t.pairs).shape[1])
        return changed
    rows = zip(t.params, t.weights, t.source, t.gradients, t.first, t.fisher, t.steps, strict=True)
    for p, w, source, gradient, first, f, step in rows:
        if gradient is None:
            continue
        g2 = g = gradient.to(t.state_dtype)
        w0 = source.to(g.dtype)
        if isinstance(correction, Traced) and first is not None:
            g = correction.gradient(first.to(g.dtype), g2, total)
        if natural is not None:
            g = natural.s(w0, natural.fisher(g, f, float(step)) if isinstance(correction, Traced) else f) * g
        if f is not None and isinstance(correction, Drawn):
            f.copy_(correction.learned.moved(f, 0.5 * g2 * (w.to(g.dtype) - w0)))
        if f is not None and isinstance(correction, Traced):
            f.copy_(correction.tracer.moved(f, g2 if first is None else first.to(g.dtype)))
        if penalty:
            g = g.add(w0, alpha=penalty)
        if g is not g2:
            changed[p] = g
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
        p.grad = g.to(p.dtype if p.grad is None else p.grad.dtype).view_as(p)
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
