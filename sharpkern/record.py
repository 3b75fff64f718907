"""What a step leaves behind for `covariance()` and `diagnostics()`, at no cost to a step that nobody asks about."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sharpkern.backend.reference.philox import normals
from sharpkern.covariance import Learned, Tracer
from sharpkern.perturbation import Launch
from sharpkern.sharded import add_over_, mean_over_
from sharpkern.tensors import state_dtype, taken

# Gradients of this many bytes are kept after the step without being asked for.
KEPT_BYTES = 64 << 20


def _versions(row: Sequence[Tensor | None]) -> list[int]:
    """How often the outer gradients were written in place; whoever zeroes or accumulates does it to all of them."""
    return [row[i]._version for i in (0, -1) if row[i] is not None]  # type: ignore[union-attr]


class Gradients:
    """The gradients of one pass as the step took them, if they are still what they were then.

    They are held where they are small, or else only looked at as long as somebody else holds them.

    Args:
        launches: Their lists; None where a parameter has no gradient.
        copied: Whether to copy them, so that they outlive an overwriting.
    """

    def __init__(self, launches: Sequence[Launch], copied: bool) -> None:
        lists: Sequence[list[Tensor | None]] = [x.tensors.gradients for x in launches]
        owned = sum(x.tensors.gradient_bytes for x in launches) <= KEPT_BYTES
        self._takes = [None if x.tensors.take is None else x.tensors.take.clone() for x in launches]
        self._shape = [[g is None for g in row] for row in lists] if copied or not owned else None
        if copied:
            lists = [[None if g is None else g.clone() for g in row] for row in lists]
        self._versions = list(map(_versions, lists))
        self._lists: Sequence[list[Any]] = lists
        self._owned = owned or copied
        if not self._owned:
            self._lists = [[None if g is None else weakref.ref(g) for g in row] for row in lists]

    def lists(self) -> Sequence[list[Tensor | None]] | None:
        """The gradients, or None where they were freed or overwritten."""
        lists: Sequence[list[Tensor | None]] = self._lists
        if not self._owned:
            lists = [[None if r is None else r() for r in row] for row in self._lists]
            if [[g is None for g in row] for row in lists] != self._shape:
                return None
        if list(map(_versions, lists)) != self._versions:
            return None
        return [
            row if take is None else [None if g is None else taken(g.to(state_dtype(g)), take) for g in row]
            for row, take in zip(lists, self._takes, strict=True)
        ]


@dataclass
class Half:
    """Where a step stands. An object of its own, since torch.compile loses what is assigned to an optimizer.

    Attributes:
        perturbed: What took the weights to w + ε, where they stand now; None at w.
    """

    perturbed: str | None = None


class Record:
    """The gradients and losses of the last step, as far as they are there."""

    def __init__(self) -> None:
        self._asked = False
        self._first: Gradients | None = None
        self._second: Gradients | None = None
        self._tracked = False
        self._total: Tensor | None = None
        self._losses: tuple[Any, ...] = (None, None)

    def first(self, launches: Sequence[Launch], tracked: bool) -> None:
        """Takes up the gradients of the first pass, and lets go of those of the step before."""
        self._first = Gradients(launches, self._asked)
        self._second, self._tracked, self._losses = None, tracked, (None, None)

    def none(self) -> None:
        """There is no first pass in this step."""
        self._first = self._second = None
        self._losses = (None, None)

    def second(self, launches: Sequence[Launch]) -> None:
        """Takes up the gradients of the second pass."""
        self._second = Gradients(launches, self._asked)

    def losses(self, loss: Any, perturbed: Any) -> None:
        """Takes up what the closure returned in both passes."""
        self._losses = tuple(x.detach() if isinstance(x, Tensor) else x for x in (loss, perturbed))
        if not all(isinstance(x, (Tensor, float, int)) for x in self._losses):  # such as a tuple: it may hold a graph
            self._losses = (None, None)

    def _fisher(self, launch: Launch, i: int, g: Tensor | None) -> Tensor | None:
        """The Fisher diagonal that the last first pass used for one parameter."""
        stored = launch.tensors.fisher[i]
        if isinstance(launch.covariance, Tracer) and stored is not None:
            return launch.covariance.fisher(stored, stored, float(launch.tensors.steps[i]))
        if g is None or (stored is not None and self._tracked):
            return stored
        return launch.covariance.fisher(g.to(launch.tensors.state_dtype), stored)

    def _epsilon(self, launch: Launch, i: int, g: Tensor | None, scale: Tensor) -> Tensor:
        """The perturbation of one parameter in the last step; NaN where the s that it was taken with has moved on."""
        t = launch.tensors
        w0 = t.saved[i].to(t.state_dtype)
        if g is None and (self._first is not None or not launch.noise):
            return torch.zeros_like(w0, dtype=torch.float64)
        if isinstance(launch.covariance, (Learned, Tracer)):
            return torch.full_like(w0, float("nan"), dtype=torch.float64)
        s = launch.covariance.s(w0, self._fisher(launch, i, g)).double()
        epsilon = torch.zeros_like(s) if g is None else scale * s * g
        if launch.noise:
            sigma = launch.noise * float(launch.rho)
            draw = int(cast(Tensor, t.draw)) - 1
            epsilon = epsilon + sigma * s.sqrt() * normals(t.seed, draw, t.start[i], w0, t.rows_of(i))
        return epsilon

    @torch.no_grad()
    def covariance(self, index: int, launch: Launch, perturbed: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter of a launch with its s; see `SharpnessAware.covariance`."""
        self._asked = True
        t = launch.tensors
        batch = launch.covariance.batch
        lists = self._first.lists() if self._first is not None else None
        if lists is None and batch:
            raise RuntimeError(
                "covariance() with f = g² wants the gradients of the last first pass, and they were freed or "
                "overwritten. From the next first pass on they are kept: call covariance() again after it"
            )
        gradients = lists[index] if lists is not None else [None] * len(t.params)
        for i, p in enumerate(t.params):
            w = t.source[i] if perturbed else t.weights[i]
            f = self._fisher(launch, i, gradients[i])
            if batch and f is None:  # no gradient, no information: f = 0
                f = torch.zeros_like(w, dtype=t.state_dtype)
            yield p, launch.covariance.s(w.to(t.state_dtype), f)

    @torch.no_grad()
    def diagnostics(self, launches: Sequence[Launch], total: Tensor | None) -> dict[str, Tensor]:
        """See `SharpnessAware.diagnostics`."""
        self._asked = True
        if self._second is None or total is None:
            raise RuntimeError(
                "diagnostics() wants a whole eager step before it: call step(closure), or first_step() and "
                "second_step(), outside of torch.compile"
            )
        nan = torch.full_like(total, float("nan"))
        figures = dict.fromkeys(("grad_norm", "perturbation_norm", "loss_gap", "gradient_cosine"), nan)
        loss, perturbed = (torch.as_tensor(nan if x is None else x).detach().to(total) for x in self._losses)
        if loss.numel() != 1 or perturbed.numel() != 1:
            loss, perturbed = nan, nan
        figures["loss_gap"] = (perturbed - loss).reshape(())
        squares = self._squares(launches, total)
        mesh = next((x.tensors.share.mesh for x in launches), None)
        if mesh is not None:
            mean_over_(figures["loss_gap"], mesh)
        figures["perturbation_norm"] = squares[1].sqrt()
        if self._first is not None:
            figures["grad_norm"] = squares[0].sqrt()
            figures["gradient_cosine"] = squares[3] / (squares[0].sqrt() * squares[2].sqrt())
        return figures

    def _squares(self, launches: Sequence[Launch], total: Tensor) -> Tensor:
        """Σ g², ε², g2² and g g2 over all parameters, on whatever process; NaN where gradients are gone."""
        lists = [None if x is None else x.lists() for x in (self._first, self._second)]
        sums: dict[Any, Tensor] = {}
        for row, launch in enumerate(launches):
            t = launch.tensors
            part = sums.setdefault(t.share.mesh, torch.zeros(4, dtype=torch.float64, device=total.device))
            if t.share.counted:
                for i in range(len(t.params)):
                    g, g2 = (None if x is None else x[row][i] for x in lists)
                    part += self._square(launch, i, g, g2).to(total.device)
        for mesh, part in sums.items():
            if self._first is not None and lists[0] is None:
                part.fill_(torch.nan)
            if lists[1] is None:
                part[2:] = torch.nan
            add_over_(part, mesh)
        return torch.stack(list(sums.values())).sum(0)

    def _square(self, launch: Launch, i: int, g: Tensor | None, g2: Tensor | None) -> Tensor:
        """What one parameter adds to these."""
        own = launch.tensors.total
        scale = torch.where(own > 0, launch.rho / own.sqrt(), 0.0)
        zero = torch.zeros_like(own)
        first, second = (zero if x is None else x.double() for x in (g, g2))
        epsilon = self._epsilon(launch, i, g, launch.worst * scale)
        sums = (first.square(), epsilon.square(), second.square(), first * second)
        return torch.stack([x.sum() for x in sums])
