"""The methods. Each is a row: a covariance, a perturbation, and the options that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sharpkern import covariance
from sharpkern.base import Adam, number, update
from sharpkern.compiled import eagerly
from sharpkern.correction import Correction, Drawn, Traced
from sharpkern.evolution import EvolutionStrategies
from sharpkern.modes import check_mode
from sharpkern.optimizer import SharpnessAware
from sharpkern.perturbation import Gaussian, Mixed, add_up
from sharpkern.sharded import spread_like


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

    covariance_of = staticmethod(covariance.sam)

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

    covariance_of = staticmethod(covariance.asam)

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

    covariance_of = staticmethod(covariance.fisher_sam)

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

    @staticmethod
    def covariance_of(group: dict[str, Any]) -> covariance.Covariance:
        """s = 1."""
        return covariance.Identity()


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

    covariance_of = staticmethod(covariance.unpacked)


class _Learned(SharpnessAware):
    """A covariance that is learned: what `VariationalSAM` and `MFVI` share."""

    def covariance_of(self, group: dict[str, Any]) -> covariance.Learned:  # type: ignore[override]
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


class TRACER(SharpnessAware):
    """SGD- and Adam-TRACER: the loss plus rho Σ g²/(f̄ + delta), f̄ the moving average of g² ([G] Alg. 1, 58).

    Its gradient is g_T = g + 2 rho H v with v = g/(f̄ + delta), f̄ held constant; then f̄ ← (1 - beta) f̄ + beta g².
    With Adam or AdamW f̄ is Adam's own second moment, which takes the raw g, with its bias correction, and beta is not
    used. The penalty does not change under a scaling of the coordinates when delta = 0 ([G] 55).

    [G] prints no values. The defaults are the best of a grid for SGD-TRACER on handwritten digits, judged on a quarter
    of the training images set aside, clean and with 40 % of the labels flipped: what counts is rho/delta, 0.01 there;
    from 0.1 on training diverged. beta from 0.01 to 0.5 and radius from 0.01 to 0.05 made no difference beyond noise.
    Adam-TRACER divides g_T, which may be large where g was always 0 (behind a ReLU), by eps there: 1e-4 trained where
    Adam's default of 1e-8 sometimes diverged.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        rho: Weight of the penalty, in units of the loss; may differ by group.
        beta: Weight of the new g² in f̄, from 0 to 1.
        delta: Damping, in units of f̄, > 0; may differ by group.
        curvature: "difference": H v = (g2 - g) ‖v‖ / radius, g2 taken at w + radius v/‖v‖, two ordinary passes.
            "exact": H v by double backward in one pass; the closure calls `backward(create_graph=True)`.
        radius: Length of the step of the difference, in units of the weights.
        precondition: Multiply g_T by 1/(f̄ + delta) before the base update ([G] 53).
        fisher: A callable that gives f̄ instead, one tensor a parameter in parameter order, as for `FisherSAM`.
        refresh: It is asked in the first of every `refresh` steps; in between f̄ stays.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = TRACER([weight], rho=0.5, delta=1.0, radius=0.01, lr=1.0)
        >>> def closure():  # L = w², H = 2; at first f̄ = 0, so g_T = 2 + 2 · 0.5 · 2 · 2 = 6
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> torch.round(weight.detach(), decimals=3)
        tensor([-5.])
    """

    _refused: ClassVar[dict[str, str]] = {
        "max_norm": "g and g2 have norms of their own; clip both in the closure, after backward"
    }

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 1e-3,
        beta: float = 0.1,
        delta: float = 0.1,
        curvature: str = "difference",
        radius: float = 0.01,
        precondition: bool = False,
        fisher: Callable[[], Sequence[Tensor]] | None = None,
        refresh: int = 1,
        **options: Any,
    ) -> None:
        own = {
            "rho": rho,
            "beta": beta,
            "delta": delta,
            "curvature": curvature,
            "radius": radius,
            "precondition": precondition,
        }
        super().__init__(params, base_optimizer, own, options, fisher, refresh=refresh)

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:  # type: ignore[override]
        """s = 1/(f̄ + delta)."""
        if self._fisher is not None:
            return covariance.Tracer(float(group["delta"]))
        base = update(group, self._base_class)
        adam = base.betas[1] if isinstance(base, Adam) else 0.0
        return covariance.Tracer(float(group["delta"]), float(group["beta"]), adam)

    def _radius_of(self, group: dict[str, Any]) -> Any:
        return group["radius"]

    def _correction_of(self, group: dict[str, Any], s: covariance.Covariance) -> Correction | None:
        if not isinstance(s, covariance.Tracer):
            return None
        factor = 0.0 if self._exact else 2 / float(group["radius"])
        return Traced(s, number(group["rho"]), factor, group["precondition"])

    @property
    def _exact(self) -> bool:
        chosen = {group["curvature"] for group in self.param_groups}
        if len(chosen) > 1:
            raise ValueError("curvature is 'exact' in one group and 'difference' in another: wanted one of them in all")
        return chosen == {"exact"}

    def first_step(self, zero_grad: bool = False) -> None:
        """As in the other methods; only with curvature="difference".

        Args:
            zero_grad: Whether to call `zero_grad()` afterwards.

        Raises:
            RuntimeError: The curvature is "exact".
        """
        if self._exact:
            raise RuntimeError(
                "curvature='exact' takes one pass and no perturbation: call step(closure), with a closure that calls "
                "backward(create_graph=True)"
            )
        super().first_step(zero_grad)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One whole step.

        Args:
            closure: Zeroes the gradients, computes the loss, calls backward and returns the loss. Called twice, or
                with curvature="exact" once; then it calls `backward(create_graph=True)`.

        Returns:
            What the closure returned at w.

        Raises:
            RuntimeError: There is no closure, the weights stand perturbed, or gradients without a graph.
        """
        if closure is None or not self._exact:
            return super().step(closure)
        if torch.compiler.is_dynamo_compiling():
            return eagerly(self.step, closure)
        self._wants(False, "step()")
        check_mode("step()")
        self._wants_no_scaler()
        with torch.enable_grad():
            loss = closure()
        self._step_exactly()
        return loss

    @torch.no_grad()
    def _step_exactly(self) -> None:
        plan, launches = self._prepare()
        self._taking.begin(plan.takes)
        params = [p for x in launches for p in x.tensors.params if p.grad is not None]
        raw = [cast(Tensor, p.grad) for p in params]
        if not any(g.requires_grad for g in raw):
            raise RuntimeError(
                "curvature='exact' wants gradients that can be differentiated again: the closure has to call "
                "backward(create_graph=True)"
            )
        add_up(plan.ops, [(x.tensors, x.covariance) for x in launches], [x.tensors.total for x in launches])
        scaled = {}
        for x in launches:
            t = x.tensors
            t.first, t.handle = [None if g is None else g.detach() for g in t.gradients], None
            t.source = t.weights
            for p, w, g, f, step in zip(t.params, t.weights, t.first, t.fisher, t.steps, strict=True):
                if g is not None:
                    g = t.taken(g)
                    s = x.covariance.s(w, x.covariance.fisher(g, f, float(step)))
                    scaled[p] = spread_like(2 * float(self.param_groups[t.group]["rho"]) * s * g, p)
        with torch.enable_grad():
            known = [(p, g) for p, g in zip(params, raw, strict=True) if g.requires_grad]
            products = torch.autograd.grad(
                [g for _, g in known], params, [scaled[p].to(g.dtype) for p, g in known], allow_unused=True
            )
        for p, g, product in zip(params, raw, products, strict=True):
            p.grad = g.detach() if product is None else g.detach() + product  # without the graph: it would live on
        self._record.first(launches, True)
        self._read_second(plan)
        sums = self._descend(plan)
        for x in launches:
            x.tensors.release()
        self._opt_called = True
        self._taking.tell(sums)


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
