"""The methods that learn the covariance along with the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from sharpkern import covariance
from sharpkern.correction import Correction, Drawn
from sharpkern.optimizer import SharpnessAware
from sharpkern.perturbation import Gaussian


class _Learned(SharpnessAware):
    """A covariance that is learned: what `VariationalSAM` and `MFVI` share."""

    def covariance_of(self, group: dict[str, Any]) -> covariance.Learned:
        """The learned covariance; its prior compares rho²/p with prior_std²."""
        prior = float(group["rho"]) ** 2 / (self._numel * float(group["prior_std"]) ** 2)
        log = group["parametrization"] == "log"
        return covariance.Learned(float(group["lr_covariance"]), float(group["kl_weight"]) / 2, prior, log)

    def _penalty_of(self, group: dict[str, Any]) -> float:
        return float(group["kl_weight"]) / float(group["prior_std"]) ** 2


class VariationalSAM(_Learned):
    """Learned covariance, worst case: ε = rho · s g / sqrt(Σ s g²), s learned with w ([V] Alg. 3, 36-42).

    s starts at 1, so the first step is SAM's. Then log s goes down ∂/∂log s = rho s g² / (2 sqrt(Σ s g²)) +
    kl_weight/2 (s rho²/(p prior_std²) - 1), and the gradient of w gains the prior's kl_weight w / prior_std².

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Radius, in units of the weights at s = 1; may differ by group.
        lr_covariance: Learning rate of log s, or of s; may differ by group.
        kl_weight: Weight κ of the KL divergence from the prior, 1/N for N examples ([V]); 0 leaves it out.
        prior_std: Standard deviation σ0 of the prior N(0, σ0²), in units of the weights.
        parametrization: "log": steps on log s; "direct": on s, with [V]'s gradient, clamped to [1e-8, 1e8].
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = VariationalSAM([weight], rho=1.0, lr_covariance=1.0, lr=0.1)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.first_step()
        >>> optimizer.covariance()[0]  # exp(-9/10), exp(-16/10)
        tensor([0.4066, 0.2019])
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.05,
        lr_covariance: float = 0.01,
        kl_weight: float = 0.0,
        prior_std: float = 0.1,
        parametrization: str = "log",
        **options: Any,
    ) -> None:
        own = {
            "rho": rho,
            "lr_covariance": lr_covariance,
            "kl_weight": kl_weight,
            "prior_std": prior_std,
            "parametrization": parametrization,
        }
        super().__init__(params, base_optimizer, own, options)


class MFVI(_Learned):
    """Mean-field variational inference: ε = rho/sqrt(p) · sqrt(s) η, s learned with w, one pass ([V] Alg. 2, 5-7).

    s starts at 1, so the first step is RandomSAM's. Then log s goes down ∂/∂log s = g2 ε / 2 +
    kl_weight/2 (s rho²/(p prior_std²) - 1), the reparametrised gradient, and the gradient of w gains the prior's
    kl_weight w / prior_std². ε is the perturbation as the weights took it.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Root mean square length of the perturbation at s = 1, in units of the weights; may differ by group.
        lr_covariance: Learning rate of log s, or of s; may differ by group.
        kl_weight: Weight κ of the KL divergence from the prior, 1/N for N examples ([V]); 0 leaves it out.
        prior_std: Standard deviation σ0 of the prior N(0, σ0²), in units of the weights.
        parametrization: "log": steps on log s; "direct": on s, with [V]'s gradient, clamped to [1e-8, 1e8].
        seed: Of the noise, from 0 to 2^64 - 1.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(1000))
        >>> optimizer = MFVI([weight], rho=1.0, lr_covariance=0.5, lr=0.0)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: ((100 * weight.square()).sum().backward(), weight.sum())[1])
        >>> bool(optimizer.covariance()[0].mean() < 0.9)  # curvature narrows the distribution
        True
    """

    perturbation = Gaussian()

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.05,
        lr_covariance: float = 0.01,
        kl_weight: float = 0.0,
        prior_std: float = 0.1,
        parametrization: str = "log",
        seed: int = 0,
        **options: Any,
    ) -> None:
        own = {
            "rho": rho,
            "lr_covariance": lr_covariance,
            "kl_weight": kl_weight,
            "prior_std": prior_std,
            "parametrization": parametrization,
        }
        super().__init__(params, base_optimizer, own, options, seed=seed)

    def _correction_of(self, group: dict[str, Any], s: covariance.Covariance) -> Correction | None:
        return Drawn(s) if isinstance(s, covariance.Learned) else None
