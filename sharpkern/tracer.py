"""TRACER: a penalty on the trace of F F̄⁻¹, by two passes or by double backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sharpkern import covariance
from sharpkern.base import Adam, number, update
from sharpkern.compiled import eagerly
from sharpkern.correction import Correction, Traced
from sharpkern.modes import check_mode
from sharpkern.optimizer import SharpnessAware
from sharpkern.perturbation import add_up
from sharpkern.sharded import spread_like


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

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:
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
