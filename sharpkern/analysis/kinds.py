"""The perturbations that `sharpkern sharpness` compares: a new one is a row of `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sharpkern.optimizer import SharpnessAware
from sharpkern.variants import ASAM, SAM, FisherSAM, RandomSAM


@dataclass(frozen=True)
class Kind:
    """A row.

    Attributes:
        name: What the CSV files call it.
        title: What the table and the figure show.
        rho: The radius in the table: the method's default.
        longest: The largest radius of a curve, where the accuracy of the digits' network has fallen or is falling.
        unit: Of the radius, as the figure's axis has it.
        make: Makes the optimizer of parameters, with this radius and a seed of its noise.
        random: Whether it draws noise, so that several seeds are averaged.
    """

    name: str
    title: str
    rho: float
    longest: float
    unit: str
    make: Callable[[Sequence[Tensor], float, int], SharpnessAware]
    random: bool = False


_ROWS = (
    Kind("sam", "SAM", 0.05, 2.0, "weights", lambda params, rho, seed: SAM(params, rho=rho)),
    Kind("asam", "ASAM", 0.5, 3.0, "relative", lambda params, rho, seed: ASAM(params, rho=rho)),
    Kind("fishersam", "Fisher SAM", 0.1, 2.0, "weights", lambda params, rho, seed: FisherSAM(params, rho=rho)),
    Kind(
        "gaussian", "Gaussian", 0.05, 5.0, "weights",
        lambda params, rho, seed: RandomSAM(params, rho=rho, seed=seed), random=True,
    ),
)  # fmt: skip

KINDS: Mapping[str, Kind] = {row.name: row for row in _ROWS}
