"""Weights of 16 bits: a small perturbation may be lost in their rounding, and the user should know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from sharpkern.perturbation import Launch

# A smaller share of lost coordinates is not worth a word.
SHARE = 0.01


def _capturing(t: Tensor) -> bool:
    return t.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Watch:
    """Warns once if the perturbation does not arrive in weights of 16 bits.

    bf16(w + ε) = w wherever |ε| is below half a unit in the last place of w: for weights of size 0.05, 16.8 million of
    them and rho = 0.05 that is so for 94 % of the coordinates. The share is measured at the first perturbation, which
    waits for the device once; later steps are not looked at.
    """

    def __init__(self) -> None:
        self._done = False

    def look(self, launches: Sequence[Launch]) -> None:
        """Compares w + ε with w, once.

        Args:
            launches: What has just been perturbed.
        """
        if self._done:
            return
        rounded = [x.tensors for x in launches if x.tensors.dtype.itemsize == 2]
        rounded = [t for t in rounded if not t.master and t.draw is None]
        if not rounded:
            self._done = True
            return
        total = rounded[0].total
        if _capturing(total) or not bool(total.isfinite() & (total > 0)) or not any(float(x.rho) for x in launches):
            return
        still = moved = 0
        for t in rounded:
            for w, w0, g in zip(t.weights, t.saved, t.gradients, strict=True):
                if g is not None:
                    wanted = int((g != 0).sum())
                    arrived = int(((w != w0) & (g != 0)).sum())
                    still, moved = still + wanted - arrived, moved + arrived
        self._done = True
        share = still / max(still + moved, 1)
        if share >= SHARE:
            names = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in rounded}))
            warnings.warn(
                f"{names} weights swallow the perturbation: w + ε was rounded back to w for {100 * share:.1f} % of the "
                "coordinates that have a gradient. Use master_weights=True or stochastic_rounding=True, or keep the "
                "weights in float32 and use autocast",
                UserWarning,
                stacklevel=2,
            )
