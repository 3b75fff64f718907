"""Trace and largest eigenvalue of the Hessian from Hessian-vector products alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sharpkern.analysis.estimate import Estimate
from sharpkern.analysis.gradients import Loss
from sharpkern.usage import require_extra


class Hessian:
    """H = ∇²L at w as an operator, H v by differentiating g · v; H itself is never formed.

    The graph of the gradient is built once and held for as long as this object lives: about three times the memory of a
    forward pass with its activations.

    Args:
        loss: Computes the loss and returns it, without backward. Call `model.eval()` before, or H is that of the
            batch's own statistics.
        params: What is differentiated by. They must not move while this is in use.

    Raises:
        ValueError: No parameter is trainable.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> hessian = Hessian(lambda: w[0] ** 2 * w[1], [w])  # [[2 w1, 2 w0], [2 w0, 0]]
        >>> hessian @ torch.tensor([1.0, 0.0])
        tensor([2., 2.])
    """

    def __init__(self, loss: Loss, params: Iterable[Tensor]) -> None:
        self._params = [p for p in params if p.requires_grad]
        if not self._params:
            raise ValueError("no parameter is trainable: there is nothing to differentiate by")
        with torch.enable_grad():
            self._gradient = torch.autograd.grad(loss(), self._params, create_graph=True, materialize_grads=True)
        self.size = sum(p.numel() for p in self._params)
        self.device = self._params[0].device

    def __matmul__(self, v: Tensor) -> Tensor:
        pieces = torch.split(v, [p.numel() for p in self._params])
        with torch.enable_grad():
            pairs = zip(self._gradient, pieces, strict=True)
            product = torch.stack([(g * x.view_as(g).to(g.dtype)).sum() for g, x in pairs]).sum()
            if not product.requires_grad:  # the gradient is constant
                return torch.zeros_like(v)
            found = torch.autograd.grad(product, self._params, retain_graph=True, materialize_grads=True)
        return torch.cat([x.flatten().to(v.dtype) for x in found])


def hessian_trace(hessian: Hessian, probes: int = 64, seed: int = 0) -> Estimate:
    """tr H by Hutchinson's estimator: the mean of vᵀ H v over v with independent elements ±1 (Hutchinson 1989).

    Args:
        hessian: H.
        probes: How many v, each as dear as two backward passes; the standard error falls with their square root.
        seed: Of the v, drawn on the CPU.

    Returns:
        The estimate, unbiased, with its standard error, in units of the loss over weights squared.

    Raises:
        ValueError: probes is not positive.
    """
    if probes < 1:
        raise ValueError(f"probes={probes}: wanted at least 1")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(probes):
        v = torch.randint(2, (hessian.size,), generator=generator).mul_(2).sub_(1).double().to(hessian.device)
        values.append(torch.dot(v, hessian @ v).item())
    return Estimate.of(values)


def top_eigenvalue(hessian: Hessian, tolerance: float = 1e-4, seed: int = 0) -> float:
    """The largest eigenvalue of H by Lanczos' method with restarts, ARPACK's as scipy has it.

    Args:
        hessian: H, with the sign of its eigenvalues: the largest is the most positive one.
        tolerance: Relative accuracy; H v in float32 does not reach much below 1e-6.
        seed: Of the vector it starts from.

    Returns:
        It, in units of the loss over weights squared.

    Raises:
        MissingExtraError: scipy is not installed.
        ArpackNoConvergence: It did not converge (scipy.sparse.linalg has the class): raise the tolerance.
    """
    require_extra("top_eigenvalue", "analysis", "scipy")
    from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(hessian.size, generator=generator, dtype=torch.float64)
    first = (hessian @ start.to(hessian.device)).cpu()
    if hessian.size == 1 or not first.any():  # ARPACK wants two dimensions, and H other than 0
        return (first / start)[0].item()
    operator = LinearOperator(
        (hessian.size, hessian.size),
        matvec=lambda v: (hessian @ torch.as_tensor(v, device=hessian.device).flatten()).cpu().numpy(),
        dtype="float64",
    )
    found = eigsh(operator, k=1, which="LA", v0=start.numpy(), tol=tolerance, return_eigenvectors=False)
    return float(found[0])
