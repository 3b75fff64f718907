"""What happens to the loss at w + ε, with the ε of any of the package's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch

from sharpkern.analysis.gradients import Loss, at_gradient
from sharpkern.optimizer import SharpnessAware

T = TypeVar("T")


@dataclass(frozen=True)
class Sharpness:
    """The loss at w and at w + ε.

    Attributes:
        loss: L(w).
        perturbed: L(w + ε).
        length: ‖ε‖, in units of the weights whatever the covariance.
    """

    loss: float
    perturbed: float
    length: float

    @property
    def gap(self) -> float:
        """The sharpness L(w + ε) - L(w)."""
        return self.perturbed - self.loss


def sharpness(optimizer: SharpnessAware, loss: Loss) -> Sharpness:
    """L(w + ε) - L(w) with the ε of the optimizer, its ρ and its covariance s.

    With the worst case ε = ρ s g / sqrt(Σ s g²) this is sharpness as SAM defines it, max L(w + ε) - L(w) over
    Σ ε²/s <= ρ², its maximum taken where the linearised loss has it ([F] 2 and 3, 4 and 5, 9 and 10). So it is a lower
    bound of the maximum. With the Gaussian it is one sample of the mean; give several seeds and average.

    w comes back bit for bit, also after an exception. Gradients and the optimizer's state stay as they were. Call
    `model.eval()` before, so that running statistics stay too, or put this into `sharpkern.frozen_statistics(model)`.

    Args:
        optimizer: Says what ε is; its base optimizer has no part in it.
        loss: Computes the loss and returns it, without backward.

    Returns:
        Both losses and the length of ε.

    Raises:
        RuntimeError: The weights stand perturbed already.

    Examples:
        >>> from sharpkern import SAM
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> found = sharpness(SAM([w], rho=0.5), lambda: w.square().sum() / 2)  # from ‖w‖ = 5 to 5.5
        >>> found.gap
        2.625
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    with at_gradient(optimizer, loss) as value:
        before = [p.detach().to(torch.float64, copy=True) for p in params]
        with optimizer.perturbed(), torch.no_grad():
            moved = [torch.linalg.vector_norm(p - w) for p, w in zip(params, before, strict=True)]
            length = sum(x.item() ** 2 for x in moved) ** 0.5
            return Sharpness(value, loss().item(), length)


def perturbation_curve(
    optimizer: SharpnessAware, loss: Loss, radii: Iterable[float], measure: Callable[[], T]
) -> list[T]:
    """Whatever is measured, at w + ε for one ρ after the other ([F] section 5.4 and Fig. 4).

    [F]'s adversarial perturbation α ∇L/‖∇L‖ is that of `SAM` with ρ = α; the Gaussian one, that of `RandomSAM`,
    draws the same noise for every ρ. The gradient is taken once. What is said in `sharpness` of w, gradients and
    statistics holds here too.

    Args:
        optimizer: Says what ε is. Its ρ (`radius` of `TRACER`) comes back afterwards.
        loss: Computes the loss and returns it, without backward; the adversary climbs it.
        radii: Values of ρ, in units of sqrt(s).
        measure: Called at each w + ε without gradients, such as a function that returns the test accuracy.

    Returns:
        What `measure` returned, in the order of the radii.

    Raises:
        ValueError: A radius is out of range.
        RuntimeError: The weights stand perturbed already.
    """
    groups = optimizer.param_groups
    names = ["radius" if "radius" in group else "rho" for group in groups]
    before = [group[name] for group, name in zip(groups, names, strict=True)]
    found = []
    try:
        with at_gradient(optimizer, loss):
            for rho in radii:
                for group, name in zip(groups, names, strict=True):
                    group[name] = rho
                with optimizer.perturbed(), torch.no_grad():
                    found.append(measure())
    finally:
        for group, name, rho in zip(groups, names, before, strict=True):
            group[name] = rho
    return found
