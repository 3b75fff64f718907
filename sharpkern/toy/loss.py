"""The loss of [F] 3.1 over the mean μ and the standard deviation σ of a Gaussian, and what perturbing makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# m, s, α, β of the two components ([F] below 15): the first makes the flat minimum, the second the sharp one.
COMPONENTS = ((20.0, 30.0, 0.7, 1.8), (-20.0, 10.0, 0.3, 1.2))
RHO = 8.0  # of the smoothed losses in [V] Fig. 1
_NODES = 20  # of the quadrature, of radii and of a quarter of the directions in a disc


def loss(theta: Tensor) -> Tensor:
    """l = -log Σ_i α_i exp(-E_i/β_i²), E_i = log(s_i/|σ|) + (σ² + (μ - m_i)²)/(2 s_i²) ([F] 15).

    The constant -1/2 of the Kullback-Leibler divergence is left out: only so do the printed minima come out.

    Args:
        theta: (μ, σ) in the last dimension.

    Returns:
        l, of the other dimensions.
    """
    mu, sigma = theta.unbind(-1)
    terms = []
    for m, s, alpha, beta in COMPONENTS:
        divergence = torch.log(s / sigma.abs()) + (sigma**2 + (mu - m) ** 2) / (2 * s**2)
        terms.append(math.log(alpha) - divergence / beta**2)
    return -torch.logsumexp(torch.stack(terms), 0)


def fisher(theta: Tensor) -> Tensor:
    """The Fisher diagonal of the Gaussian, (1/σ², 2/σ²).

    Args:
        theta: (μ, σ) in the last dimension.

    Returns:
        It, in the same shape.
    """
    sigma = theta[..., 1]
    return torch.stack([sigma**-2, 2 * sigma**-2], -1)


@dataclass(frozen=True)
class Minimum:
    """A minimum of the loss.

    Attributes:
        theta: (μ, σ).
        loss: l there.
        trace: Of the Hessian there.
    """

    theta: tuple[float, float]
    loss: float
    trace: float


def minima() -> tuple[Minimum, Minimum]:
    """The flat and the sharp minimum, found by L-BFGS from the means and deviations of the components.

    Returns:
        Them; [F] prints (19.85, 29.95) with l = 0.51 and trace 0.001, (-15.94, 13.46) with 0.49 and 0.006.
    """
    flat, sharp = (_minimum(m, s) for m, s, _, _ in COMPONENTS)
    return flat, sharp


def _minimum(mu: float, sigma: float) -> Minimum:
    theta = torch.tensor([mu, sigma], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> float:
        search.zero_grad()
        value = loss(theta)
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    search.step(closure)  # type: ignore[no-untyped-call]
    found = theta.detach()
    hessian = torch.autograd.functional.hessian(loss, found)  # type: ignore[no-untyped-call]
    assert isinstance(hessian, Tensor)
    return Minimum((found[0].item(), found[1].item()), loss(found).item(), hessian.trace().item())


# Smoothed losses ([V] Fig. 1) -------------------------------------------------------------------------------------


def averaged(theta: Tensor) -> Tensor:
    """E l(θ + ε) with ε normal, of variance ρ²/2 in each direction, by Gauss-Hermite quadrature ([V] 5)."""
    (mu, mu_weights), (sigma, sigma_weights) = _hermite(_NODES), _hermite(5 * _NODES)  # l has a logarithm in |σ|
    steps = RHO * torch.cartesian_prod(mu, sigma)  # of density exp(-x²), so times √2 times ρ/√2
    shares = torch.cartesian_prod(mu_weights, sigma_weights).prod(-1) / math.pi
    return torch.stack([share * loss(theta + step) for step, share in zip(steps, shares, strict=True)]).sum(0)


def worst(theta: Tensor) -> Tensor:
    """max l(θ + ε) over the disc ‖ε‖ <= ρ, on a polar grid ([V] 1)."""
    highest = loss(theta)
    for angle in torch.linspace(0, 2 * math.pi, 4 * _NODES + 1, dtype=torch.float64)[:-1]:
        direction = torch.stack([angle.cos(), angle.sin()])
        for radius in torch.linspace(0, RHO, _NODES + 1, dtype=torch.float64)[1:]:
            highest = torch.maximum(highest, loss(theta + radius * direction))
    return highest


def linearised(theta: Tensor) -> Tensor:
    """l(θ + ρ g/‖g‖), what a SAM step looks at ([V] 2)."""
    theta = theta.detach().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(theta).sum(), theta)
    return loss(theta.detach() + RHO * g / torch.linalg.vector_norm(g, dim=-1, keepdim=True))


def _hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the density exp(-x²), from the eigenvalues of the Jacobi matrix (Golub and Welsch)."""
    off = torch.arange(1, count, dtype=torch.float64).div(2).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, math.sqrt(math.pi) * vectors[0] ** 2


SMOOTHED: dict[str, Callable[[Tensor], Tensor]] = {
    "the loss": loss,
    "average over a Gaussian (MFVI)": averaged,
    "worst case in a disc": worst,
    "worst case, linearised (SAM)": linearised,
}
