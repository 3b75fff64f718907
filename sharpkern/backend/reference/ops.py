"""The definition: every op in plain PyTorch, on any device, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from sharpkern.backend.reference.philox import stochastic
from sharpkern.base import Number, Update
from sharpkern.covariance import Covariance
from sharpkern.tensors import Tensors


def why_not(device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
    """None: PyTorch runs wherever the tensors are."""
    return None


def _with_gradient(t: Tensors) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index, weight and gradient of each parameter that has one; the gradient in the arithmetic's dtype."""
    for i, (w, g) in enumerate(zip(t.weights, t.gradients, strict=True)):
        if g is not None:
            yield i, w, g.to(t.state_dtype)


def _exact(t: Tensors, i: int) -> Tensor:
    """The unperturbed weight in the arithmetic's dtype."""
    return (t.saved[i] if t.master else t.weights[i]).to(t.state_dtype)


@torch.no_grad()
def sq_norm(t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
    """total ← Σ s g², or with `add` total + Σ s g²."""
    if not add:
        total.zero_()
    for i, _, g in _with_gradient(t):
        s = covariance.s(_exact(t, i), covariance.fisher(g, t.fisher[i]))
        total += (s * g * g).sum(dtype=torch.float64)


@torch.no_grad()
def ascend_(t: Tensors, covariance: Covariance, rho: Number, total: Tensor, track: bool) -> None:
    """w0 ← w, w ← w + rho s g / sqrt(total)."""
    if not total.isfinite():
        return
    scale = float(rho) / float(total.sqrt()) if total > 0 else 0.0
    for i, w, g in _with_gradient(t):
        if not t.master:
            t.saved[i].copy_(w)
        w0 = t.saved[i].to(g.dtype)
        f = covariance.fisher(g, t.fisher[i])
        if scale != 0:
            moved = w0 + scale * (covariance.s(w0, f) * g)
            w.copy_(moved if t.draw is None else stochastic(moved, w.dtype, t.seed, int(t.draw), t.start[i]))
        stored = t.fisher[i]
        if track and covariance.stored and stored is not None and f is not None:
            stored.copy_(f)
    if track and t.draw is not None:
        t.draw += 1


@torch.no_grad()
def descend_(t: Tensors, update: Update, natural: Covariance | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    if not total.isfinite():
        return
    restore_(t, total)
    if second is not None and not second.isfinite():
        return
    for i, w, g in _with_gradient(t):
        w0 = t.source[i].to(g.dtype)
        if natural is not None:
            g = natural.s(w0, t.fisher[i]) * g
        new = update(w0, g, t.m[i], t.v[i], t.steps[i])
        if t.master:
            t.saved[i].copy_(new)
        w.copy_(new)
        t.steps[i] += 1


@torch.no_grad()
def restore_(t: Tensors, total: Tensor) -> None:
    """w ← w0."""
    if total.isfinite():
        for w, w0 in zip(t.weights, t.source, strict=True):
            if w0 is not w:
                w.copy_(w0)
