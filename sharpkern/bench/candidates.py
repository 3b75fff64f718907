"""The table of whole steps: what is measured side by side in one process. A row is a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import sharpkern
from sharpkern.base import Update, update
from sharpkern.bench import peers, rivals, traffic
from sharpkern.bench.measure import Step, two_passes
from sharpkern.bench.rivals import BASES, RHO
from sharpkern.bench.shapes import Shape
from sharpkern.bench.traffic import Sizes
from sharpkern.covariance import Adaptive, Covariance, Fisher, Identity

COVARIANCES: dict[str, Covariance] = {
    "SAM": Identity(),
    "ASAM": Adaptive(0.01),
    "FisherSAM": Fisher(1.0),
    "RandomSAM": Identity(),
}
OURS = "sharpkern"
FLOOR = "torch fused"  # the base step alone, without any perturbation


class Pool:
    """Fresh random parameters for every candidate, and one set of gradients a dtype that all of them read.

    Args:
        shapes: Of the parameters.
        device: "cpu" or "cuda".
    """

    def __init__(self, shapes: Sequence[Shape], device: str = "cpu") -> None:
        self.shapes, self.device = list(shapes), device
        self.elements = sum(map(math.prod, shapes))
        self._gradients: dict[torch.dtype, list[torch.Tensor]] = {}

    def gradients(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The gradients of a dtype."""
        if dtype not in self._gradients:
            drawn = (torch.randn(shape, device=self.device) for shape in self.shapes)
            self._gradients[dtype] = [x.mul_(0.01).to(dtype) for x in drawn]
        return self._gradients[dtype]

    def parameters(self, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        """New parameters with those gradients."""
        drawn = (torch.randn(shape, device=self.device) for shape in self.shapes)
        params = [torch.nn.Parameter(x.mul_(0.05).to(dtype)) for x in drawn]
        for p, g in zip(params, self.gradients(dtype), strict=True):
            p.grad = g
        return params


def _never(device: str) -> str | None:
    """Nothing stands against it."""
    return None


@dataclass(frozen=True)
class Candidate:
    """One way to take a whole step.

    Attributes:
        who: Whose it is.
        method: "SAM", "ASAM", ...; empty for the base step alone.
        base: "sgd" or "adamw".
        make: Makes the step.
        dtype: Of weights and gradients.
        note: What is special about it.
        bytes: Bytes a parameter that it has to move; None where nothing is claimed.
        extra: Bytes a parameter beside weights, gradients and state that it may take, generously.
        slow: Whether it takes long to prepare: measured only where all is.
        jax: Whether it runs in JAX, whose threads are those of its first call in a process, and so are their cores.
        why_not: Why it cannot be measured on a device, or None.
    """

    who: str
    method: str
    base: str
    make: Callable[[Pool], Step]
    dtype: torch.dtype = torch.float32
    note: str = ""
    bytes: int | None = None
    extra: int = 8
    slow: bool = False
    jax: bool = False
    why_not: Callable[[str], str | None] = _never

    @property
    def name(self) -> str:
        """The name in tables and CSV files."""
        dtype = "" if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        return " ".join(part for part in (self.who, self.method, self.base, dtype, self.note) if part)

    @property
    def held(self) -> int:
        """Bytes a parameter of weights, gradients and the state of the base update."""
        return traffic.held(base_update(self.base), Sizes.of(self.dtype))


def base_update(base: str) -> Update:
    """The fused update of a base with the options of `BASES`."""
    kind, options = BASES[base]
    found = update(kind([torch.zeros(1)], **options).param_groups[0], kind)
    assert found is not None
    return found


def ours(method: str, base: str, dtype: torch.dtype = torch.float32) -> Candidate:
    """A row for one of our optimizers."""
    kind = getattr(sharpkern, method)

    def make(pool: Pool) -> Step:
        return two_passes(kind(pool.parameters(dtype), BASES[base][0], rho=RHO, **BASES[base][1]))

    moved = traffic.step(COVARIANCES[method], base_update(base), Sizes.of(dtype), kind.backward_passes())
    return Candidate(OURS, method, base, make, dtype, bytes=moved)


def _scaled(pool: Pool) -> Step:
    """Gradients unscaled and checked in both passes and clipped by norm, and the scaler's update."""
    scaler = torch.amp.GradScaler(pool.device, init_scale=4.0)
    kind, options = BASES["sgd"]
    step = two_passes(sharpkern.SAM(pool.parameters(), kind, rho=RHO, scaler=scaler, max_norm=1.0, **options))

    def both() -> None:
        step()
        scaler.update()

    return both


def _update_alone(base: str) -> Candidate:
    """The second half alone: restore and base update."""

    def make(pool: Pool) -> Step:
        optimizer = sharpkern.SAM(pool.parameters(), BASES[base][0], rho=RHO, **BASES[base][1])
        optimizer.first_step()
        optimizer.second_step()
        plan = optimizer._plan
        assert plan is not None
        t, fused = plan.tensors[0], base_update(base)
        t.read_gradients()
        return lambda: plan.ops.descend_(t, fused, None, plan.total, None)

    return Candidate(OURS, "", base, make, note="update alone", bytes=traffic.descend(base_update(base), Sizes()))


def _rivals(base: str) -> Iterator[Candidate]:
    """SAM as others write it, and the base step alone."""

    def written(kind: type[Any]) -> Callable[[Pool], Step]:
        return lambda pool: two_passes(kind(pool.parameters(), base))

    yield Candidate("eager", "SAM", base, written(rivals.Usual))
    yield Candidate("foreach", "SAM", base, written(rivals.Foreach))
    yield Candidate("foreach compiled", "SAM", base, written(rivals.Compiled), slow=True)
    yield from _published(base, adaptive=False)
    for kind in (peers.Optax, peers.OptaxHalves):
        yield Candidate(
            "optax" if kind is peers.Optax else "optax in halves",
            "SAM",
            base,
            partial(_optax, kind, base),
            extra=20,
            jax=True,
            why_not=lambda device: peers.missing("jax", "optax") if device == "cpu" else "measured on the CPU only",
        )
    moved = traffic.descend(base_update(base), Sizes())
    yield Candidate(FLOOR, "", base, lambda pool: rivals.plain(pool.parameters(), base, fused=True).step, bytes=moved)


def _optax(kind: type[peers.Optax], base: str, pool: Pool) -> Step:
    return kind(pool.parameters(), base)


def _pytorch_optimizer(base: str, adaptive: bool, how: str, pool: Pool) -> Step:
    return peers.pytorch_optimizer(pool.parameters(), base, adaptive, **{how: True})


def _published(base: str, adaptive: bool) -> Iterator[Candidate]:
    for how in ("foreach", "fused"):
        yield Candidate(
            f"pytorch_optimizer {how}",
            "ASAM" if adaptive else "SAM",
            base,
            partial(_pytorch_optimizer, base, adaptive, how),
            why_not=lambda device: peers.missing("pytorch_optimizer"),
        )


def _groups(base: str) -> dict[str, tuple[Candidate, ...]]:
    """What is measured together: SAM with its rivals, ASAM with its, and our own among themselves."""
    sam, *_, floor = ours("SAM", base), *_rivals(base)
    own: list[Candidate] = [ours("RandomSAM", base), ours("SAM", base, torch.bfloat16), _update_alone(base)]
    if base == "sgd":
        moved = traffic.step(Identity(), base_update(base), Sizes(), second_norm=True)
        own.append(Candidate(OURS, "SAM", base, _scaled, note="scaled, clipped", bytes=moved))
    return {
        base: (sam, ours("FisherSAM", base), *_rivals(base)),
        f"{base} adaptive": (sam, ours("ASAM", base), *_published(base, adaptive=True)),
        f"{base} our own": (sam, *own, floor),
    }


PUBLISHED = ("pytorch_optimizer foreach", "pytorch_optimizer fused", "optax", "optax in halves")
GROUPS: dict[str, tuple[Candidate, ...]] = {**_groups("sgd"), **_groups("adamw")}


def find(name: str) -> Candidate:
    """The candidate of that name."""
    return next(candidate for group in GROUPS.values() for candidate in group if candidate.name == name)
