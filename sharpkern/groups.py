"""What an optimizer is made of and given: the parts of its method, parameter groups, options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import ParamsT

from sharpkern import ops, per_rank
from sharpkern.accumulation import Parts
from sharpkern.base import number, update
from sharpkern.construct import (
    COMMON,
    Common,
    base_defaults,
    check_count,
    check_options,
    check_parameters,
    check_scaler,
    check_seed,
)
from sharpkern.correction import Correction
from sharpkern.covariance import Covariance, Identity, packed
from sharpkern.gradients import Taking
from sharpkern.lowprecision import Watch
from sharpkern.perturbation import Launch, Perturbation, WorstCase
from sharpkern.plan import Plan
from sharpkern.record import Half, Record
from sharpkern.sharded import is_sharded
from sharpkern.statistics import Statistics
from sharpkern.tensors import Tensors


def _refuse_load(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """What a base optimizer says to a checkpoint: with it it would part from the groups and the state it shares."""
    raise RuntimeError(
        "base_optimizer.load_state_dict() would give the base optimizer groups and state of its own: call "
        "load_state_dict() of the sharpness-aware optimizer, which takes checkpoints of plain base optimizers too"
    )


class Groups(torch.optim.Optimizer):
    """Parameters in groups with options, what these come to for a launch, and the state; `SharpnessAware` says more."""

    perturbation: ClassVar[Perturbation] = WorstCase()
    _number: int | None = None  # by which compiled ops know the optimizer
    _opt_called: bool  # what torch.optim.lr_scheduler looks at
    _refused: ClassVar[dict[str, str]] = {}  # common options that a method cannot have, and why
    _synchronised = False  # whether `per_rank.synchronise` was called
    # what pickle and deepcopy take beside groups and state; all else is derived
    _constructed: ClassVar[tuple[str, ...]] = (
        "_base_class",
        "_own",
        "_common",
        "_taking",
        "_watch",
        "_draws",
        "_asked",
        "_refresh",
        "_seed",
        "_numel",
        "_fisher",
        "_hidden",
        "_several",
        "backend",
        "why_not",
        "base_optimizer",
    )

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[torch.optim.Optimizer],
        own: dict[str, Any],
        options: dict[str, Any],
        fisher: Callable[[], Sequence[Tensor]] | None = None,
        seed: int = 0,
        refresh: int = 1,
    ) -> None:
        self.base_optimizer: torch.optim.Optimizer | None = None
        self._common = common = Common.take(options)
        self._taking = Taking(common.scaler, common.max_norm, common.clip_value)
        for name, reason in self._refused.items():
            if getattr(common, name) is not None:
                raise ValueError(f"{type(self).__name__} has no {name}: {reason}")
        self._base_class = base_optimizer
        self._fisher = fisher
        self._own = ("scaled", *own)
        self._seed = check_seed(seed)
        self._draws: int | Tensor = 0  # before the plan there is
        self._asked, self._refresh = 0, check_count("refresh", refresh)
        self._watch = Watch()
        self._clear()
        ops.load("reference" if common.backend == "auto" else common.backend)
        defaults = base_defaults(base_optimizer, options, (*own, *COMMON))
        self._hidden = {name: defaults[name] for name in self._own if name in defaults}
        super().__init__(params, {**defaults, "scaled": True, **own, **self._counts()})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self._share()
        everything = [p for group in self.param_groups for p in group["params"]]
        self._numel = sum(p.numel() for p in everything)
        self.backend, self.why_not = ops.choose(common.backend, everything[0].device, {p.dtype for p in everything})
        per_rank.check(common, everything)
        self._several = common.per_rank or any(map(is_sharded, everything))  # processes take part in a step
        for group in self.param_groups:
            self._parts_of(group)

    def covariance_of(self, group: dict[str, Any]) -> Covariance:
        """The covariance of a group, from its options."""
        return Identity()

    @classmethod
    def backward_passes(cls) -> int:
        """How many backward passes a step takes."""
        return cls.perturbation.passes

    def _correction_of(self, group: dict[str, Any], s: Covariance) -> Correction | None:
        """What the method makes of g2 before the update."""
        return None

    def _penalty_of(self, group: dict[str, Any]) -> float:
        """What of w the method adds to the gradient."""
        return 0.0

    def _radius_of(self, group: dict[str, Any]) -> Any:
        """The radius of the perturbation."""
        return group["rho"]

    def _clear(self) -> None:
        """Sets all that is derived from groups and state, or lives only from one half of a step to the next."""
        self._plan: Plan | None = None
        self._launches: list[Launch] = []
        self._half = Half()
        self._statistics = Statistics(self._common.model)
        self._parts = Parts()
        self._record = Record()

    @property
    def _perturbed(self) -> str | None:
        """What took the weights to w + ε, where they stand now; None at w."""
        return self._half.perturbed

    def _share(self) -> None:
        """Groups and state are one with those of the torch optimizer below."""
        assert self.base_optimizer is not None
        for param, state in self.base_optimizer.state.items():
            self.state[param].update(state)
        self._join()

    def _join(self) -> None:
        """The torch optimizer below gets groups and state, and keeps them."""
        assert self.base_optimizer is not None
        self.base_optimizer.param_groups = self.param_groups
        self.base_optimizer.state = self.state
        self.base_optimizer.register_load_state_dict_pre_hook(_refuse_load)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with its own options, as in torch.

        Args:
            param_group: `params` and options.

        Raises:
            RuntimeError: The weights stand perturbed, or parts are accumulated.
            ValueError: An option is out of range, a parameter stands in two groups, or one cannot be taken.
        """
        self._wants_whole("add_param_group()")
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        if "covariance" in group:
            group["covariance"] = packed(group["covariance"])
        check_options(group, self._fisher is not None)
        check_parameters(group["params"], [p for other in self.param_groups for p in other["params"]])
        if self._common.master_weights and update(group, self._base_class) is None:
            raise ValueError(
                f"master_weights=True wants a fused update (SGD, Adam or AdamW), and {self._base_class.__name__} with "
                "these options is called itself: keep the weights in float32 and use autocast"
            )
        if self.base_optimizer is None:
            self.param_groups.append(group)
        else:
            self.base_optimizer.add_param_group(group)  # the same list of groups
        self._drop_plan()

    @property
    def scaler(self) -> GradScaler | None:
        """The GradScaler that the losses are scaled with, or None; may be set between two steps."""
        return self._taking.scaler

    @scaler.setter
    def scaler(self, scaler: GradScaler | None) -> None:
        self._wants_whole("setting scaler")
        check_scaler(scaler)
        if scaler is not None and "scaler" in self._refused:
            raise ValueError(f"{type(self).__name__} has no scaler: {self._refused['scaler']}")
        self._taking.scaler = scaler
        self._drop_plan()

    def _wants(self, perturbed: bool, what: str) -> None:
        """Raises RuntimeError unless the weights stand perturbed, or do not, as `what` wants it."""
        if perturbed and self._perturbed is None:
            before = "first_step()" if what == "second_step()" else "perturb() or first_step()"
            raise RuntimeError(f"{what} wants perturbed weights and these are not: call {before} before it")
        if not perturbed and self._perturbed is not None:
            after = "second_step() or restore()" if self._perturbed == "first_step()" else "restore()"
            raise RuntimeError(
                f"{what} wants the weights themselves and they stand perturbed since {self._perturbed}: "
                f"call {after} first"
            )

    def _wants_whole(self, what: str) -> None:
        """Raises RuntimeError if the weights stand perturbed or parts of a step are accumulated."""
        self._wants(False, what)
        if self._parts.count:
            raise RuntimeError(
                f"{what} wants a whole step and {self._parts.count} part(s) of one are accumulated: update with "
                "second_step() or step(closure) for the last part, or give the step up with restore()"
            )

    def _parts_of(self, group: dict[str, Any]) -> tuple[Covariance, Correction | None]:
        """The covariance of a group, and what the method makes of g2 there."""
        if not group["scaled"]:
            return Identity(), None
        covariance = self.covariance_of(group)
        correction = self._correction_of(group, covariance)
        per_rank.check_method(self._common, type(self).__name__, covariance, correction)
        return covariance, correction

    def _launch(self, t: Tensors, group: dict[str, Any], last: Launch | None) -> Launch:
        """What the options of a list's group come to; `last` if they are what they were."""
        if last is not None and last.tensors is t and last.options == group:
            return last
        check_options(group, self._fisher is not None)
        covariance, correction = self._parts_of(group)
        # a tensor among the options may change without becoming another: nothing is compared with it
        options = {} if any(isinstance(x, Tensor) for x in group.values()) else dict(group)
        worst, noise = self.perturbation.shares(group)
        return Launch(
            t,
            options,
            covariance,
            number(self._radius_of(group)),
            worst,
            noise / max(self._numel, 1) ** 0.5,
            update(group, self._base_class, self._penalty_of(group)),
            correction,
        )

    def _refresh_launches(self, plan: Plan) -> list[Launch]:
        last = self._launches if len(self._launches) == len(plan.tensors) else [None] * len(plan.tensors)
        groups = self.param_groups
        self._launches = [self._launch(t, groups[t.group], x) for t, x in zip(plan.tensors, last, strict=True)]
        return self._launches

    def _make_plan(self) -> Plan:
        common = self._common
        seed = (self._seed + per_rank.rank_of(common)) % (1 << 64)
        noise = (seed, self._count_draws()) if self._draws_noise else None
        plan = Plan(
            self.param_groups,
            self.state,
            common.backend,
            common.master_weights,
            noise,
            common.stochastic_rounding,
            self._taking.active,
        )
        self._numel = plan.numel
        return plan

    @property
    def _draws_noise(self) -> bool:
        """Whether a step takes random numbers."""
        return self._common.stochastic_rounding or not isinstance(self.perturbation, WorstCase)

    def _drop_plan(self) -> None:
        """The next half makes a new plan, whose noise goes on where this one's ended."""
        self._count_draws()
        self._plan = None

    def _count_draws(self) -> Tensor:
        """How often random numbers were drawn."""
        if self._plan is not None and self._plan.tensors[0].draw is not None:
            self._draws = self._plan.tensors[0].draw
        return torch.as_tensor(self._draws)

    def _counts(self) -> dict[str, int]:
        """What a checkpoint holds of noise and Fisher diagonals: in the groups, since torch keeps what these have."""
        counts = {"draws": int(self._count_draws())} if self._draws_noise else {}
        return {**counts, "asked": self._asked} if self._refresh > 1 else counts
