"""How a step takes the gradients that it finds: unscaled, clipped by value, and in the second pass clipped by norm.

The kernels read g ← clip(factor g, ±bound); here the two numbers are made, on the device, without waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

_EPSILON = 1e-6  # added to the norm, as torch.nn.utils.clip_grad_norm_ does


class _Witness:
    """What a GradScaler looks at instead of the optimizer: one gradient, not finite where one of the step was not."""

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros((), device=device, requires_grad=True)
        self.param_groups = [{"params": [self.flag]}]


class Taking:
    """Factor and bound of the gradients.

    With the scale S of a `torch.amp.GradScaler`, `clip_value` c and `max_norm` the base update takes g2 as
    clip(g2/S, ±c) · min(1, max_norm / (‖clip(g2/S, ±c)‖ + 1e-6)), one norm over all parameters; ε is made of
    clip(g/S, ±c), whose norm does not matter.

    Args:
        scaler: The one that scales the losses, or None.
        max_norm: The largest norm, or None.
        clip_value: The largest magnitude, or None.
    """

    def __init__(self, scaler: GradScaler | None, max_norm: float | None, clip_value: float | None) -> None:
        self.scaler, self.max_norm, self.clip_value = scaler, max_norm, clip_value
        self._constant: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._witness: _Witness | None = None

    @property
    def active(self) -> bool:
        """Whether gradients are taken otherwise than they are; then the norm of g2 is wanted."""
        return not (self.scaler is None and self.max_norm is None and self.clip_value is None)

    def check(self, optimizer: object) -> None:
        """Checks that nobody else unscales, and that the scaler knows of the last step.

        Args:
            optimizer: The optimizer, as the scaler knows it.

        Raises:
            RuntimeError: `scaler.unscale_(optimizer)` was called, or `scaler.update()` was not.
        """
        states = getattr(self.scaler, "_per_optimizer_states", {})  # a scaler that is disabled has none
        for who, told in (
            (optimizer, "scaler.unscale_(optimizer) was called, and gradients would be unscaled twice: leave it out"),
            (self._witness, "the scaler was told of a step before this one: call scaler.update() after every step"),
        ):
            if who is not None and id(who) in states and states[id(who)]["stage"] is OptState.UNSCALED:
                raise RuntimeError(told)

    def begin(self, takes: Mapping[torch.device, Tensor]) -> None:
        """Factor and bound before any norm is known.

        Args:
            takes: Them, by device, to be written.
        """
        scale = None
        for device, take in takes.items():
            if device not in self._constant:
                bound = float("inf") if self.clip_value is None else self.clip_value
                one = torch.ones((), device=device)
                self._constant[device] = one, torch.tensor([1.0, bound], dtype=take.dtype, device=device)
            one, start = self._constant[device]
            take.copy_(start)
            if self.scaler is not None:
                scale = self.scaler.scale(one) if scale is None else scale
                take[0].div_(scale.to(device, non_blocking=True))

    def clip(self, takes: Mapping[torch.device, Tensor], squares: Mapping[torch.device, Tensor]) -> None:
        """Makes the norm of g2 at most max_norm.

        Args:
            takes: Factor and bound, by device, to be changed.
            squares: Σ g2², by device.
        """
        if self.max_norm is not None:
            for device, take in takes.items():
                take.mul_((self.max_norm / (squares[device].sqrt() + _EPSILON)).clamp(max=1.0))

    def tell(self, sums: Iterable[Tensor]) -> None:
        """Tells the scaler whether the step was skipped, in the way in which it finds out itself.

        Args:
            sums: On one device; not finite where a gradient was not.

        Raises:
            RuntimeError: It was told before, and `update()` was not called since.
        """
        if self.scaler is None:
            return
        found = torch.stack(list(sums)).mul(0).sum().float()
        if self._witness is None or self._witness.flag.device != found.device:
            self._witness = _Witness(found.device)
        self._witness.flag.grad = found
        try:
            self.scaler.unscale_(cast(Any, self._witness))
        except RuntimeError as error:
            raise RuntimeError(
                "the scaler was told of a step before this one: call scaler.update() after every step of the optimizer"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Taking, (self.scaler, self.max_norm, self.clip_value)
