"""SAM as it is usually written for PyTorch, as tightly as eager PyTorch allows, and the latter under torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3}),
}
RHO = 0.05


def plain(params: Sequence[Tensor], base: str, **how: Any) -> torch.optim.Optimizer:
    """torch's optimizer alone."""
    kind, options = BASES[base]
    return kind(params, **options, **how)


class Usual:
    """One parameter after the other: its norm, w + ε with ε kept, w - ε, then torch's optimizer with its defaults.

    Not exact: w + ε - ε is w up to rounding.
    """

    def __init__(self, params: Sequence[Tensor], base: str) -> None:
        self.params = list(params)
        self.base = plain(params, base)
        self.epsilon: list[Tensor] = []

    @torch.no_grad()
    def first_step(self) -> None:
        """w ← w + ε."""
        norm = torch.stack([p.grad.norm() for p in self.params if p.grad is not None]).norm()
        scale = RHO / (norm + 1e-12)
        self.epsilon = []
        for p in self.params:
            assert p.grad is not None
            epsilon = p.grad * scale
            p.add_(epsilon)
            self.epsilon.append(epsilon)

    @torch.no_grad()
    def second_step(self) -> None:
        """w ← w - ε, then the update."""
        for p, epsilon in zip(self.params, self.epsilon, strict=True):
            p.sub_(epsilon)
        self.epsilon = []
        self.base.step()


class Foreach:
    """Exact, with one call of PyTorch for all tensors wherever there is one, and torch's fused optimizer."""

    def __init__(self, params: Sequence[Tensor], base: str, **how: Any) -> None:
        self.params = list(params)
        self.saved = [torch.empty_like(p) for p in params]
        self.base = plain(params, base, **(how or {"fused": True}))

    @torch.no_grad()
    def first_step(self) -> None:
        """w0 ← w, w ← w + ε."""
        gradients = [p.grad for p in self.params if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_copy_(self.saved, self.params)
        self.climb(gradients, RHO / (norm + 1e-12))

    def climb(self, gradients: list[Tensor], scale: Tensor) -> None:
        """w ← w + scale g; a number is taken without a pass of its own, but on a GPU reading it would wait."""
        if scale.is_cuda:
            torch._foreach_add_(self.params, torch._foreach_mul(gradients, scale))
        else:
            torch._foreach_add_(self.params, gradients, alpha=scale.item())

    @torch.no_grad()
    def second_step(self) -> None:
        """w ← w0, then the update."""
        torch._foreach_copy_(self.params, self.saved)
        self.base.step()


class Compiled(Foreach):
    """The same, both halves compiled; torch's optimizer then is its foreach form, which the compiler can fuse."""

    def __init__(self, params: Sequence[Tensor], base: str) -> None:
        capturable = {"capturable": True} if base == "adamw" and params[0].is_cuda else {}
        super().__init__(params, base, foreach=True, **capturable)
        self.base.step()  # state that appears later would have everything compiled again
        self.first_step = torch.compile(super().first_step)  # type: ignore[method-assign]
        self.second_step = torch.compile(super().second_step)  # type: ignore[method-assign]

    def climb(self, gradients: list[Tensor], scale: Tensor) -> None:
        """w ← w + scale g, in one graph."""
        torch._foreach_add_(self.params, torch._foreach_mul(gradients, scale))
