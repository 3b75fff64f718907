"""The methods. Each is a row: a covariance, a perturbation, and the options that they take.

Those that do more have a file of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sharpkern import covariance
from sharpkern.correction import Correction, Natural
from sharpkern.evolution import EvolutionStrategies
from sharpkern.learned import MFVI, VariationalSAM
from sharpkern.optimizer import SharpnessAware
from sharpkern.perturbation import Gaussian, Mixed
from sharpkern.tracer import TRACER


class SAM(SharpnessAware):
    """Sharpness-aware minimisation: ε = rho · g / ‖g‖ ([F] 2, 3; Foret et al. 2021), s = 1.

    One step takes the gradient g at w, goes to w + ε, takes the gradient g2 there, returns to w bit for bit and lets
    the base optimizer update w with g2. The norm runs over all parameters of all groups.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Radius of the perturbation, in units of the weights; may differ by group.
        adaptive: ASAM with eta = 0: s = w².
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> model = torch.nn.Linear(2, 1)
        >>> x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [2.0]])
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> bool(optimizer.step(closure) > 0)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho, "adaptive": adaptive}, options)

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:
        """s = 1, or w² if adaptive."""
        return covariance.Adaptive(0.0) if group["adaptive"] else covariance.Identity()


class ASAM(SharpnessAware):
    """Adaptive SAM: ε = rho · s g / sqrt(Σ s g²) with s = (|w| + eta)² ([F] 4, 5; Kwon et al. 2021).

    Every parameter is scaled. The ASAM authors scale only weights: `sharpkern.param_groups(model)` makes such groups.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Radius of the perturbation, dimensionless: relative to the size of each weight; may differ by group.
        eta: Added to |w|, in units of the weights; 0 means that zero weights never move; may differ by group.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
        >>> optimizer = ASAM([weight], rho=0.5, eta=0.0, lr=0.1)
        >>> weight.grad = torch.tensor([0.0, 1.0])
        >>> with optimizer.perturbed():
        ...     weight.tolist()
        [3.0, -2.0]
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho, "eta": eta}, options)

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:
        """s = (|w| + eta)²."""
        return covariance.Adaptive(float(group["eta"]))


class FisherSAM(SharpnessAware):
    """Fisher SAM: ε = rho · s g / sqrt(Σ s g²) with s = 1/(1 + eta f), f the Fisher diagonal ([F] 10, 12, section 5).

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Radius of the perturbation, in units of sqrt(s); may differ by group.
        eta: With "inverse" how much the Fisher diagonal counts (0 is SAM), in units of 1/f; with "additive" the
            damping, in units of f and > 0. It depends on the estimator of f: the square of a mean gradient is up to
            the batch size smaller than the mean of squares. May differ by group.
        damping: "inverse": s = 1/(1 + eta f), what [F] ran; "additive": s = 1/(f + eta), what [F] 10 says.
        fisher: "batch": f = g² ([F] 12), computed in the kernel and never stored. "average": f ← (1 - beta) f +
            beta g², from 0 ([G] 52), 4 B/param of state. A callable: called without arguments in every first pass, it
            returns f, one tensor a parameter in parameter order.
        beta: Weight of the new g² in the average, from 0 to 1.
        refresh: A callable is asked in the first of every `refresh` steps; in between f stays.
        natural_gradient: Multiply g2 by the s of the first pass before the base update ([F] footnote 3). With
            "batch" this stores f, 4 B/param.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = FisherSAM([weight], rho=0.1, eta=1.0, lr=0.1)
        >>> weight.grad = torch.tensor([1.0, 0.0])
        >>> optimizer.first_step()
        >>> optimizer.covariance()
        (tensor([0.5000, 1.0000]),)
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.1,
        eta: float = 1.0,
        damping: str = "inverse",
        fisher: str | Callable[[], Sequence[Tensor]] = "batch",
        beta: float = 0.9,
        refresh: int = 1,
        natural_gradient: bool = False,
        **options: Any,
    ) -> None:
        own = {
            "rho": rho,
            "eta": eta,
            "damping": damping,
            "fisher": "callable" if callable(fisher) else fisher,
            "beta": beta,
            "natural_gradient": natural_gradient,
        }
        given = fisher if callable(fisher) else None
        super().__init__(params, base_optimizer, own, options, given, refresh=refresh)

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:
        """s = 1/(1 + eta f) or 1/(f + eta)."""
        # a natural gradient needs in the second pass the f of the first: f = g² is stored then
        stored = {"batch": 1.0 if group["natural_gradient"] else None, "average": group["beta"], "callable": 0.0}
        return covariance.Fisher(float(group["eta"]), group["damping"], stored[group["fisher"]])

    def _correction_of(self, group: dict[str, Any], s: covariance.Covariance) -> Correction | None:
        return Natural(s) if group["natural_gradient"] and isinstance(s, covariance.Fisher) else None


class RandomSAM(SharpnessAware):
    """Gaussian perturbation, one backward pass: ε = rho/sqrt(p) · η, η standard normal ([V] Alg. 1), s = 1.

    p counts the elements of all parameters, so E ‖ε‖² = rho² as with SAM; [V]'s σ is rho/sqrt(p). The noise is drawn in
    the kernel from a counter, never stored, and differs from step to step.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Root mean square length of the perturbation, in units of the weights; may differ by group.
        seed: Of the noise, from 0 to 2^64 - 1; the state_dict holds how often was drawn.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = RandomSAM([weight], rho=0.1, seed=1, lr=0.5)
        >>> loss = optimizer.step(lambda: ((weight - 1).square().sum().backward(), weight.square().sum())[1])
        >>> bool(loss > 0)  # at w + ε
        True
    """

    perturbation = Gaussian()

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.05,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho}, options, seed=seed)


class MixSAM(SharpnessAware):
    """Mixed perturbation: ε = (1 - mix) · rho s g / sqrt(Σ s g²) + mix · rho/sqrt(p) sqrt(s) η ([V] section 4).

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Radius, in units of sqrt(s); may differ by group.
        mix: From 0, the worst case, to 1, the Gaussian; may differ by group.
        covariance: The covariance s: None for s = 1, or one of `sharpkern.covariance`, such as `Adaptive(eta=0.01)` or
            `Fisher(eta=1.0)`; may differ by group.
        seed: Of the noise, from 0 to 2^64 - 1.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = MixSAM([weight], rho=0.1, mix=0.0, lr=0.5)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> with optimizer.perturbed():  # mix = 0 is SAM
        ...     torch.round(weight.detach(), decimals=4)
        tensor([3.0600, 4.0800])
    """

    perturbation = Mixed()

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 0.05,
        mix: float = 0.5,
        covariance: covariance.Covariance | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho, "mix": mix, "covariance": covariance}, options, seed=seed)

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:
        """What was given."""
        return covariance.unpacked(group)


VARIANTS: tuple[type[SharpnessAware], ...] = (
    SAM,
    ASAM,
    FisherSAM,
    RandomSAM,
    MixSAM,
    VariationalSAM,
    MFVI,
    TRACER,
    EvolutionStrategies,
)
