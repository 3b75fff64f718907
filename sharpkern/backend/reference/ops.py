"""The definition: every op in plain PyTorch, on any device, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from sharpkern.backend.reference.philox import normals, stochastic
from sharpkern.base import Number, Update
from sharpkern.correction import Correction, Estimated
from sharpkern.covariance import Covariance
from sharpkern.tensors import Tensors


def why_not(device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
    """None: PyTorch runs wherever the tensors are."""
    return None


def _with_gradient(t: Tensors) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index, weight and gradient of each parameter that has one; the gradient in the arithmetic's dtype."""
    for i, (w, g) in enumerate(zip(t.weights, t.gradients, strict=True)):
        if g is not None:
            yield i, w, t.taken(g)


def _fisher(t: Tensors, covariance: Covariance, i: int, g: Tensor) -> Tensor | None:
    return covariance.fisher(g, t.fisher[i], float(t.steps[i]))


def _exact(t: Tensors, i: int) -> Tensor:
    """The unperturbed weight in the arithmetic's dtype."""
    return (t.saved[i] if t.master else t.weights[i]).to(t.state_dtype)


@torch.no_grad()
def sq_norm(t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
    """total ← Σ s g², or with `add` total + Σ s g²."""
    if not add:
        total.zero_()
    for i, _, g in _with_gradient(t):
        s = covariance.s(_exact(t, i), _fisher(t, covariance, i, g))
        total += (s * g * (s * g if covariance.direction else g)).sum(dtype=torch.float64)


@torch.no_grad()
def ascend_(
    t: Tensors,
    covariance: Covariance,
    rho: Number,
    total: Tensor | None,
    track: bool,
    worst: float = 1.0,
    noise: float = 0.0,
    again: int | None = None,
) -> None:
    """w0 ← w, w ← w + rho (worst s g / sqrt(total) + noise sqrt(s) η)."""
    if total is not None and not total.isfinite():
        return
    scale = worst * float(rho) / float(total.sqrt()) if total is not None and total > 0 else 0.0
    sigma = noise * float(rho)
    number = 0 if t.draw is None else int(t.draw) + (again or 0)
    if again is None and not t.master:
        for i, w in enumerate(t.weights):
            if total is None or t.gradients[i] is not None:
                t.saved[i].copy_(w)
    t.moved.value = True
    for i, w in enumerate(t.weights):
        gradient = t.gradients[i] if total is not None else None
        if total is not None and gradient is None:
            continue
        w0 = moved = (t.saved if again is None else t.source)[i].to(t.state_dtype)
        g = torch.zeros_like(w0) if gradient is None else t.taken(gradient)
        f = _fisher(t, covariance, i, g)
        s = covariance.s(w0, f)
        if scale != 0:
            moved = moved + scale * (s * g)
        if sigma != 0:
            assert t.draw is not None
            moved = moved + sigma * s.sqrt() * normals(t.seed, number, t.start[i], w, t.rows_of(i)).to(w0.dtype)
        if scale != 0 or sigma != 0 or again is not None:
            if t.stochastic:
                moved = stochastic(moved, w.dtype, t.seed, number, t.start[i], t.rows_of(i))
            w.copy_(moved)
        if gradient is None:
            continue
        stored, kept, first = t.fisher[i], covariance.after(g, f, scale), t.first[i]
        if track and stored is not None and kept is not None:
            stored.copy_(kept)
        if first is not None:
            first.copy_(gradient)
    if track and t.draw is not None:
        t.draw += 1


@torch.no_grad()
def descend_(t: Tensors, update: Update, correction: Correction | None, total: Tensor, second: Tensor | None) -> None:
    """w ← update(w0, g); without a gradient w ← w0."""
    if not total.isfinite():
        return
    if second is not None and not second.isfinite():
        return restore_(t, total)
    for i, w in enumerate(t.weights):
        w0 = t.source[i]
        g = corrected_(t, i, correction, total)
        if g is None:
            if w0 is not w:
                w.copy_(w0)
            continue
        raw = None
        if correction is not None and correction.first:
            raw = t.gradients[i] if t.first[i] is None else t.first[i]
        new = update(w0.to(g.dtype), g, t.m[i], t.v[i], t.steps[i], None if raw is None else t.taken(raw))
        if t.master:
            t.saved[i].copy_(new)
        w.copy_(new)
        t.steps[i] += 1
    count_(t, correction)


def corrected_(t: Tensors, i: int, correction: Correction | None, total: Tensor) -> Tensor | None:
    """The gradient that the base update of one parameter takes, or None; what is kept of its covariance moves on."""
    w, f, first, gradient = t.weights[i], t.fisher[i], t.first[i], t.gradients[i]
    if isinstance(correction, Estimated):
        g2, epsilon = _summed(t, i)
    elif gradient is None:
        return None
    else:
        g2 = t.taken(gradient)
        epsilon = w.to(g2.dtype) - t.source[i].to(g2.dtype)
    if correction is None:
        return g2
    first = None if first is None else t.taken(first)
    g = correction.gradient(g2, first, f, total, float(t.steps[i]))
    moved = None if f is None else correction.moved(f, g2, first, epsilon)
    if f is not None and moved is not None:
        f.copy_(moved)
    return g


def _summed(t: Tensors, i: int) -> tuple[Tensor, Tensor]:
    """Σ_k weights_k η_k and Σ_k utilities_k (η_k² - 1) over the draws of one parameter."""
    assert t.draw is not None
    assert t.pairs is not None
    weighted, squares = (torch.zeros_like(t.weights[i], dtype=t.state_dtype) for _ in range(2))
    for k, (weight, utility) in enumerate(t.pairs.T):
        noise = normals(t.seed, int(t.draw) + k, t.start[i], t.weights[i], t.rows_of(i)).to(t.state_dtype)
        weighted += weight * noise
        squares += utility * (noise.square() - 1)
    return weighted, squares


def count_(t: Tensors, correction: Correction | None) -> None:
    """The draws that the correction has taken are done."""
    if isinstance(correction, Estimated) and t.draw is not None and t.pairs is not None:
        t.draw += t.pairs.shape[1]


@torch.no_grad()
def restore_(t: Tensors, total: Tensor) -> None:
    """w ← w0."""
    if total.isfinite():
        for w, w0 in zip(t.weights, t.source, strict=True):
            if w0 is not w:
                w.copy_(w0)
