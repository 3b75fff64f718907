"""What `sharpkern sharpness` measures at one checkpoint, as rows for its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from sharpkern.analysis.checkpoint import Subject
from sharpkern.analysis.estimate import Estimate
from sharpkern.analysis.fisher import fisher_trace
from sharpkern.analysis.hessian import Hessian, hessian_trace, top_eigenvalue
from sharpkern.analysis.kinds import KINDS
from sharpkern.analysis.perturb import perturbation_curve, sharpness
from sharpkern.analysis.report import Advance, Number, Stage
from sharpkern.analysis.surface import filter_normalised, loss_surface
from sharpkern.usage import UsageError

T = TypeVar("T")
DRAWS = 8  # of Gaussian noise
POINTS = 20  # of a curve, beside ρ = 0
WIDTH, SIDE = 1.0, 25  # of a loss surface: a and b from -WIDTH to WIDTH in SIDE steps
PROBES = 64  # of the Hessian trace


def worst_case(subject: Subject, seed: int, stage: Stage) -> Iterator[Number]:
    """Loss, accuracy, and the sharpness of every kind of perturbation at its method's own ρ.

    Args:
        subject: The network.
        seed: Of the first draw of noise.
        stage: Begins a progress bar.

    Yields:
        Rows of the table.
    """
    advance = stage(f"{subject.name}: sharpness", len(KINDS))
    loss, accuracy = subject.loss_and_accuracy()
    yield Number(subject.name, "loss", Estimate(loss))
    yield Number(subject.name, "accuracy (%)", Estimate(accuracy))
    for kind in KINDS.values():
        draws = range(seed, seed + (DRAWS if kind.random else 1))
        found = [sharpness(kind.make(subject.parameters, kind.rho, k), subject.loss) for k in draws]
        title = f"{kind.title}, ρ = {kind.rho:g}"
        yield Number(subject.name, f"sharpness, {title}", Estimate.of(x.gap for x in found))
        yield Number(subject.name, f"‖ε‖, {title}", Estimate.of(x.length for x in found))
        advance()


def trace_ratio(subject: Subject, batch_size: int, stage: Stage) -> Iterator[Number]:
    """tr(F F̄⁻¹) over batches, with TRACER's own β and δ.

    Args:
        subject: The network.
        batch_size: Examples in each.
        stage: Begins a progress bar.

    Yields:
        A row of the table.

    Raises:
        UsageError: There are fewer examples than one batch wants.
    """
    batches = subject.batches(batch_size)
    if not batches:
        raise UsageError(f"batch size {batch_size}: there are {len(subject.targets)} examples")
    advance = stage(f"{subject.name}: Fisher", 2 * len(batches))
    losses = [_counted(batch.loss, advance) for batch in batches]
    yield Number(subject.name, f"tr(F F̄⁻¹), batches of {batch_size}", fisher_trace(losses, subject.parameters))


def hessian(subject: Subject, seed: int, stage: Stage) -> Iterator[Number]:
    """Trace and largest eigenvalue of the Hessian.

    Args:
        subject: The network.
        seed: Of the probes and of Lanczos' first vector.
        stage: Begins a progress bar.

    Yields:
        Rows of the table.
    """
    watched = _Watched(subject.loss, subject.parameters)
    watched.advance = stage(f"{subject.name}: Hessian trace", PROBES)
    yield Number(subject.name, "Hessian, trace", hessian_trace(watched, PROBES, seed))
    watched.advance = stage(f"{subject.name}: Lanczos", None)
    yield Number(subject.name, "Hessian, top eigenvalue", Estimate(top_eigenvalue(watched, seed=seed)))


def curves(subject: Subject, longest: float | None, seed: int, stage: Stage) -> Iterator[dict[str, Any]]:
    """Loss and accuracy over ρ, for every kind of perturbation.

    Args:
        subject: The network.
        longest: The largest ρ; that of each kind if None.
        seed: Of the first draw of noise.
        stage: Begins a progress bar.

    Yields:
        Rows of `curves.csv`.
    """
    draws = sum(DRAWS if kind.random else 1 for kind in KINDS.values())
    advance = stage(f"{subject.name}: curves", draws * (POINTS + 1))
    measure = _counted(subject.loss_and_accuracy, advance)
    for kind in KINDS.values():
        radii = [(longest or kind.longest) * k / POINTS for k in range(POINTS + 1)]
        for draw in range(seed, seed + (DRAWS if kind.random else 1)):
            optimizer = kind.make(subject.parameters, kind.rho, draw)
            found = perturbation_curve(optimizer, subject.loss, radii, measure)
            for rho, (loss, accuracy) in zip(radii, found, strict=True):
                where = {"checkpoint": subject.name, "perturbation": kind.name, "draw": draw, "rho": rho}
                yield {**where, "loss": loss, "accuracy": accuracy}


def surface(subject: Subject, seed: int, stage: Stage) -> Iterator[dict[str, Any]]:
    """The loss over two filter-normalised random directions.

    Args:
        subject: The network.
        seed: Of the first direction; the second has the next one.
        stage: Begins a progress bar.

    Yields:
        Rows of `surface.csv`.
    """
    advance = stage(f"{subject.name}: surface", SIDE**2)
    along = [WIDTH * (2 * k / (SIDE - 1) - 1) for k in range(SIDE)]
    directions = filter_normalised(subject.parameters, seed), filter_normalised(subject.parameters, seed + 1)
    measure = _counted(lambda: subject.loss().item(), advance)
    values = loss_surface(subject.parameters, directions, (along, along), measure)
    for a, row in zip(along, values.tolist(), strict=True):
        for b, loss in zip(along, row, strict=True):
            yield {"checkpoint": subject.name, "a": a, "b": b, "loss": loss}


class _Watched(Hessian):
    """A Hessian that tells of each product."""

    advance: Advance

    def __matmul__(self, v: Tensor) -> Tensor:
        self.advance()
        return super().__matmul__(v)


def _counted(measure: Callable[[], T], advance: Advance) -> Callable[[], T]:
    def counted() -> T:
        advance()
        return measure()

    return counted
