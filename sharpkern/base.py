"""The base update of one group: its definition, and what the kernels take.

`update(group, base_optimizer)` gives the fused update that equals what torch's class does with the options of the
group, or None where there is none: then the torch optimizer itself is called after the restore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Number = float | Tensor  # a tensor of one element on the weights' device is read there, step by step


def number(value: Any) -> Number:
    """An option as the ops take it: a float, or the tensor itself where reading it would wait for a device."""
    return value if isinstance(value, Tensor) and value.device.type != "cpu" else float(value)


class Update(Protocol):
    """What the ops know of a base update."""

    @property
    def kernel(self) -> str:
        """Name of the formula in the backends' kernels."""

    @property
    def options(self) -> tuple[Number, ...]:
        """What the kernel's formula takes; the learning rate first."""

    @property
    def states(self) -> tuple[str, ...]:
        """torch's names of the state tensors m, v."""

    def __call__(
        self, w0: Tensor, g: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, raw: Tensor | None = None
    ) -> Tensor:
        """The new weight; m and v are updated in place. `step` counts the updates done before, a 0-d tensor.

        A second moment takes `raw` instead of g where it is given.
        """


def _sign(maximize: bool) -> float:
    return -1.0 if maximize else 1.0


def _decayed(g: Tensor, w0: Tensor, weight_decay: float) -> Tensor:
    """g + weight_decay w0; without decay an infinite weight leaves g alone, as in torch."""
    return g.add(w0, alpha=weight_decay) if weight_decay else g


@dataclass(frozen=True)
class SGD:
    """d = g + weight_decay w0;  m ← momentum m + (1 - dampening) d, at first m = d;  w = w0 - lr m.

    With nesterov w = w0 - lr (d + momentum m); without momentum w = w0 - lr d. As `torch.optim.SGD`.
    """

    lr: Number
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    @property
    def kernel(self) -> str:
        if self.momentum == 0:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def options(self) -> tuple[Number, ...]:
        return (self.lr, self.momentum, self.dampening, self.weight_decay, _sign(self.maximize))

    @property
    def states(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def __call__(
        self, w0: Tensor, g: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, raw: Tensor | None = None
    ) -> Tensor:
        d = _decayed(_sign(self.maximize) * g, w0, self.weight_decay)
        if self.momentum == 0 or m is None:
            return w0.add(d, alpha=-float(self.lr))
        m.mul_(self.momentum).add_(d, alpha=1.0 if step == 0 else 1 - self.dampening)
        return w0.add(d.add(m, alpha=self.momentum) if self.nesterov else m, alpha=-float(self.lr))


@dataclass(frozen=True)
class Adam:
    """m ← m + (1 - β1)(g - m);  v ← β2 v + (1 - β2) g²;  w = w0 - lr m̂ / (sqrt(v̂) + eps).

    m̂ = m/(1 - β1^t) and v̂ = v/(1 - β2^t). Weight decay adds weight_decay w0 to g; decoupled it takes w0 to
    (1 - lr weight_decay) w0 instead. As `torch.optim.Adam` and `AdamW`. A penalty adds penalty w0 to g in any case.
    """

    lr: Number
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    maximize: bool
    penalty: float = 0.0

    kernel: ClassVar[str] = "adam"
    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    @property
    def _added(self) -> float:
        """What is added to g, in units of w0."""
        return self.penalty if self.decoupled else self.weight_decay + self.penalty

    @property
    def options(self) -> tuple[Number, ...]:
        shrinking = self.weight_decay if self.decoupled else 0.0
        return (self.lr, *self.betas, self.eps, self._added, _sign(self.maximize), shrinking)

    def __call__(
        self, w0: Tensor, g: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, raw: Tensor | None = None
    ) -> Tensor:
        assert m is not None
        assert v is not None
        (beta1, beta2), lr = self.betas, float(self.lr)
        t = float(step) + 1
        g = _decayed(_sign(self.maximize) * g, w0, self._added)
        if self.decoupled:
            w0 = w0 * (1 - lr * self.weight_decay)
        m.lerp_(g, 1 - beta1)
        raw = g if raw is None else raw
        v.mul_(beta2).addcmul_(raw, raw, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2**t)).add_(self.eps)
        return w0.addcdiv(m, root, value=-lr / (1 - beta1**t))


def update(
    group: Mapping[str, Any], base_optimizer: type[torch.optim.Optimizer], penalty: float = 0.0
) -> Update | None:
    """The fused update that does what `base_optimizer` does with the options of `group`, or None.

    Args:
        group: The options.
        base_optimizer: The class.
        penalty: Added to the gradient, in units of w0: weight decay that is never decoupled.

    Returns:
        The update.
    """
    if group.get("differentiable"):
        return None
    if base_optimizer is torch.optim.SGD:
        return SGD(
            number(group["lr"]),
            group["momentum"],
            group["dampening"],
            group["weight_decay"] + penalty,
            group["nesterov"],
            group["maximize"],
        )
    if base_optimizer in (torch.optim.Adam, torch.optim.AdamW) and not group["amsgrad"]:
        beta1, beta2 = group["betas"]
        decoupled = group.get("decoupled_weight_decay", base_optimizer is torch.optim.AdamW)
        return Adam(
            number(group["lr"]),
            (float(beta1), float(beta2)),
            group["eps"],
            group["weight_decay"],
            decoupled,
            group["maximize"],
            penalty,
        )
    return None
