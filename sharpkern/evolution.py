"""Evolution strategies: the gradient from forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import ParamsT

from sharpkern import covariance
from sharpkern.base import number
from sharpkern.checkpoint import asks_for_state
from sharpkern.compiled import eagerly
from sharpkern.construct import check_count
from sharpkern.correction import Correction, Estimated
from sharpkern.modes import check_mode
from sharpkern.optimizer import SharpnessAware
from sharpkern.per_rank import average_
from sharpkern.perturbation import Gaussian, Launch
from sharpkern.plan import Plan
from sharpkern.sharded import mean_over_, mesh_of


def utilities(losses: Tensor) -> Tensor:
    """Rank utilities (Wierstra et al. 2014): max(0, ln(n/2 + 1) - ln i) for the i-th smallest of n losses.

    Args:
        losses: 1-d.

    Returns:
        They, made to add up to 1, less 1/n: in the order of the losses, adding up to 0.
    """
    n = len(losses)
    table = torch.tensor([max(0.0, math.log(n / 2 + 1) - math.log(i + 1)) for i in range(n)], dtype=torch.float64)
    table = table / table.sum() - 1 / n
    return table.to(losses.device, non_blocking=True)[losses.argsort().argsort()].to(losses.dtype)


class EvolutionStrategies(SharpnessAware):
    """Evolution strategies, forward passes only: ε = rho/sqrt(p) · sqrt(s) η, antithetic pairs ([V] Table 1).

    The gradient of E L(w + ε) is estimated by the mean over pairs of (L(w + ε) - L(w - ε))/2 · ε p/(rho² s) and goes to
    the base optimizer. With `learned` log s moves by separable natural evolution strategies. The noise is drawn again
    from its counter for the update, never stored: memory is that of the weights, their copy and the base optimizer.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; for any other a gradient is stored.
        rho: Root mean square length of ε, in units of the weights; rho/sqrt(p) is the standard deviation of each.
        pairs: How many pairs of losses a step takes.
        learned: Whether s is learned: log s ← log s + lr_covariance/2 Σ u_k (η_k² - 1), u_k rank utilities.
        lr_covariance: Its learning rate.
        in_place: Undo the noise by adding it again instead of keeping a copy of w: no memory beyond the weights and the
            base optimizer's. Rounding makes w drift: by 6e-8 sqrt(n) of its size after n pairs in float32 (measured,
            weights of size 0.05 and noise of 0.001), but by 0.4 % sqrt(n) in bfloat16, which wants the copy.
        seed: Of the noise, from 0 to 2^64 - 1.
        **options: Options of the base optimizer and those that every class takes; see `SharpnessAware`.

    Raises:
        TypeError: An option that neither this class nor the base optimizer has.
        ValueError: An option out of range, no parameters, a parameter twice, a dtype or device that does not fit.
        RuntimeError: The backend asked for cannot run there.

    Examples:
        >>> weight = torch.nn.Parameter(torch.full((4,), 3.0))
        >>> optimizer = EvolutionStrategies([weight], rho=0.1, pairs=16, lr=0.1)
        >>> for _ in range(50):
        ...     loss = optimizer.step(lambda: (weight - 1).square().sum())
        >>> bool(loss < 0.1)
        True
    """

    perturbation = Gaussian()
    _refused = dict.fromkeys(("scaler", "max_norm", "clip_value"), "it takes no gradients, only losses")
    _constructed = (*SharpnessAware._constructed, "_pairs", "_in_place")

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        rho: float = 1.0,
        pairs: int = 8,
        learned: bool = False,
        lr_covariance: float = 0.1,
        in_place: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if in_place not in (True, False):
            raise ValueError(f"in_place={in_place!r}: wanted True or False")
        self._pairs, self._in_place = check_count("pairs", pairs), in_place
        super().__init__(
            params,
            base_optimizer,
            {"rho": rho, "learned": learned, "lr_covariance": lr_covariance},
            options,
            seed=seed,
        )
        if self._common.model is None and mesh_of([p for group in self.param_groups for p in group["params"]]):
            raise ValueError(
                "evolution strategies with sharded parameters (DTensor) want model=: without backward passes "
                "fully_shard would not gather the weights anew after they have moved, and the model can be told to"
            )

    def covariance_of(self, group: dict[str, Any]) -> covariance.Covariance:
        """s = 1, or what is learned."""
        return covariance.Learned(0.0) if group["learned"] else covariance.Identity()

    @classmethod
    def backward_passes(cls) -> int:
        """None."""
        return 0

    def _correction_of(self, group: dict[str, Any], s: covariance.Covariance) -> Correction | None:
        return Estimated(number(group["rho"]), 1 / max(self._numel, 1) ** 0.5, float(group["lr_covariance"]))

    def first_step(self, zero_grad: bool = False) -> None:
        """There are no halves of this step.

        Args:
            zero_grad: Not looked at.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("evolution strategies take many forward passes a step: call step(closure)")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One whole step.

        Args:
            closure: Computes the loss and returns it, without backward; called 2 · pairs times, without gradients.

        Returns:
            The mean of the losses; over processes too, where parameters are sharded or `model` is
            DistributedDataParallel.

        Raises:
            RuntimeError: There is no closure, or the weights stand perturbed.
        """
        if torch.compiler.is_dynamo_compiling():
            return eagerly(self.step, closure)
        self._wants(False, "step()")
        check_mode("step()")
        if closure is None and asks_for_state(self.param_groups, self.state):
            return self._make_state()
        if closure is None:
            raise RuntimeError("step() wants a closure that computes the loss and returns it, without backward")
        plan, launches = self._prepare()
        for launch in launches:
            t = launch.tensors
            t.gather()
            t.moved.value = False
            if self._in_place and not t.master:
                if t.source is not t.weights:
                    t.source, t.handle = t.weights, None
            else:
                plan.attach_saved(t)
                t.set_source(everything=True)
        losses = self._evaluate(plan, launches, closure)
        self._average(plan, losses)
        differences = (losses[0::2] - losses[1::2]) / (2 * self._pairs)
        ranks = utilities(losses)
        pairs = torch.stack([differences, ranks[0::2] + ranks[1::2]]).float()
        for t in plan.tensors:
            t.pairs = pairs.to(t.device, non_blocking=True)
        finite = losses.sum()
        self._descend(plan, {t.device: finite.to(t.device, non_blocking=True) for t in plan.tensors})
        plan.reshard(self._common.model)
        for launch in launches:
            launch.tensors.release()
        self._opt_called = True
        return losses.mean()

    def _average(self, plan: Plan, losses: Tensor) -> None:
        """The losses of a batch that is spread over processes are the means over them."""
        if plan.mesh is None:
            average_(losses, self._common.model)
        else:
            mean_over_(losses, plan.mesh)

    def _evaluate(self, plan: Plan, launches: list[Launch], closure: Callable[[], Any]) -> Tensor:
        """The losses at w + ε_1, w - ε_1, w + ε_2, ...; afterwards w stands at w0 in place, else perturbed."""
        losses: list[Tensor] = []
        at = (0, 0.0)  # the pair whose noise is in the weights, and how much of it

        def move(pair: int, sign: float) -> None:
            nonlocal at
            copy = not self._in_place and not losses and at[1] == 0
            for x in launches:
                t = x.tensors
                increment_version(t.written)
                own = sign - (at[1] if t.source is t.weights else 0.0)
                plan.ops.ascend_(t, x.covariance, x.rho, None, False, 0.0, own * x.noise, None if copy else pair)
                t.moved.value = True
                t.scatter()
            plan.reshard(self._common.model)
            torch.clear_autocast_cache()  # casts of the weights as they stood before
            at = (pair, sign)

        try:
            for pair in range(self._pairs):
                for sign in (1.0, -1.0):
                    move(pair, sign)
                    loss = closure()
                    losses.append(
                        torch.as_tensor(loss).detach().to(plan.total.device, torch.float64, non_blocking=True)
                    )
                    if len(losses) == 1:
                        self._statistics.keep()
                if self._in_place:
                    move(pair, 0.0)
        except BaseException:
            if self._in_place:
                move(at[0], 0.0)
            else:  # not by `at`: Ctrl-C may come before it is written
                self._restore(plan, [x for x in launches if x.tensors.moved.value])
            raise
        finally:
            self._statistics.put_back()
            plan.reshard(self._common.model)
        return torch.stack(losses)
