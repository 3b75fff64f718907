"""A torch optimizer as the base update: it reads groups, state and gradients itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sharpkern.perturbation import Launch


@contextmanager
def lent(
    groups: Sequence[dict[str, Any]],
    state: MutableMapping[Tensor, dict[str, Any]],
    launches: Sequence[Launch],
    hidden: Mapping[str, Any],
) -> Generator[None]:
    """Groups, state and gradients as the torch optimizer wants them.

    Its own option that one of ours hides (Adadelta has a rho) takes its default; the Fisher diagonal leaves the state,
    since torch makes its own where it finds none at all; g2 becomes s g2 for a natural gradient. All that is undone.

    Args:
        groups: The parameter groups.
        state: The state, by parameter.
        launches: Those of the step.
        hidden: The options that ours hide, with their defaults.
    """
    own = [{name: group[name] for name in hidden} for group in groups]
    fisher = {p: kept.pop("fisher") for p, kept in state.items() if "fisher" in kept}
    gradients = {}
    for launch in launches:
        for p in launch.tensors.params:
            if launch.natural is not None and p.grad is not None:
                gradients[p] = p.grad
                p.grad = (launch.natural.s(p, fisher[p]) * p.grad).to(p.grad.dtype)
    try:
        for group in groups:
            group.update(hidden)
        yield
    finally:
        for group, values in zip(groups, own, strict=True):
            group.update(values)
        for p, f in fisher.items():
            state[p]["fisher"] = f
        for p, g in gradients.items():
            p.grad = g
