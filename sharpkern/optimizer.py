"""The algorithm, once: groups, state, the two halves of a step. A method is a row of `sharpkern.variants`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import ParamsT

from sharpkern import ops
from sharpkern.base import Update, number, update
from sharpkern.checkpoint import check_state, restore_state
from sharpkern.construct import COMMON, Common, base_defaults, check_count, check_options, check_parameters, check_seed
from sharpkern.correction import Correction, Estimated, Natural
from sharpkern.covariance import Covariance, Fisher, Identity, packed, sam
from sharpkern.lowprecision import Watch
from sharpkern.model import Snapshot
from sharpkern.perturbation import Launch, Perturbation, WorstCase, add_up, perturb_
from sharpkern.plan import Plan, read_gradients
from sharpkern.record import Record
from sharpkern.tensors import Stale, Tensors
from sharpkern.wrapped import correct_, lent


class SharpnessAware(torch.optim.Optimizer):
    """A sharpness-aware optimizer: covariance × perturbation × base update.

    One step: ε from the gradient g at w, g2 = ∇L(w + ε), w restored bit for bit into the same storage, then the base
    update with g2. Subclasses choose the parts. The arguments that all of them take:

    Args:
        params: Tensors, named tensors or groups, as for torch.optim; on one device, or on several CUDA devices.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        **options: Options of the base optimizer (`lr`, `momentum`, ...), which may differ by group, and these:
            backend ("auto"): "native" (C++ on the CPU, CUDA), "triton" (CUDA) or "reference" (PyTorch on any device);
            "auto" takes the first of them that runs on the device. `optimizer.backend` and `optimizer.why_not` tell.
            model (None): If given, the running statistics of its normalisation layers are touched by the first pass
            only.
            master_weights (False): Keep float32 weights for bfloat16 and float16 parameters. w + ε and the updated w
            are rounded from them, and no copy of w is made: 4 B/param, as state.
            stochastic_rounding (False): Round w + ε of bfloat16 and float16 parameters up or down at random, so that ε
            arrives on average; to the nearest most of a small ε is lost.
            skip_nonfinite (False): An infinity or NaN in g2 skips the update, as one in g always does.
    """

    perturbation: ClassVar[Perturbation] = WorstCase()
    # what pickle and deepcopy take beside groups and state; all else is derived
    _constructed: ClassVar[tuple[str, ...]] = (
        "_base_class",
        "_own",
        "_common",
        "_watch",
        "_draws",
        "_asked",
        "_refresh",
        "_seed",
        "_numel",
        "_fisher",
        "_hidden",
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
        super().__init__(params, {**defaults, "scaled": True, **own})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self._share()
        everything = [p for group in self.param_groups for p in group["params"]]
        self._numel = sum(p.numel() for p in everything)
        self.backend, self.why_not = ops.choose(common.backend, everything[0].device, {p.dtype for p in everything})

    @staticmethod
    def covariance_of(group: dict[str, Any]) -> Covariance:
        """The covariance of a group, from its options."""
        return sam(group)

    @classmethod
    def backward_passes(cls) -> int:
        """How many backward passes a step takes."""
        return cls.perturbation.passes

    def _correction_of(self, group: dict[str, Any], covariance: Covariance) -> Correction | None:
        """What the method makes of g2 before the update."""
        return Natural(covariance) if group.get("natural_gradient") and isinstance(covariance, Fisher) else None

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
        self._perturbed: str | None = None
        self._statistics: Snapshot | None = None
        self._record = Record()

    def _share(self) -> None:
        """Groups and state are one with those of the torch optimizer below."""
        assert self.base_optimizer is not None
        for param, state in self.base_optimizer.state.items():
            self.state[param].update(state)
        self.base_optimizer.param_groups = self.param_groups
        self.base_optimizer.state = self.state

    # Groups and lists of tensors -------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with its own options, as in torch.

        Args:
            param_group: `params` and options.

        Raises:
            RuntimeError: The weights stand perturbed.
            ValueError: An option is out of range, a parameter stands in two groups, or one cannot be taken.
        """
        self._wants(False, "add_param_group()")
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
        self._plan = None

    # The two halves of a step ----------------------------------------------------------------------------------------

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

    def _launch(self, t: Tensors, last: Launch | None) -> Launch:
        """What the options of a list's group come to; `last` if they are what they were."""
        group = self.param_groups[t.group]
        if last is not None and last.tensors is t and last.options == group:
            return last
        check_options(group, self._fisher is not None)
        covariance = self.covariance_of(group) if group["scaled"] else Identity()
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
            self._correction_of(group, covariance) if group["scaled"] else None,
        )

    def _refresh_launches(self, plan: Plan) -> list[Launch]:
        last = self._launches if len(self._launches) == len(plan.tensors) else [None] * len(plan.tensors)
        self._launches = [self._launch(t, x) for t, x in zip(plan.tensors, last, strict=True)]
        return self._launches

    def _prepare(self, track: bool = True) -> tuple[Plan, list[Launch]]:
        """The gradients as they stand, the options of the groups, and what is kept of the covariances."""
        plan = self._plan = read_gradients(self._plan, self.state, self._make_plan)
        self.backend, self.why_not = plan.backend, plan.why_not
        launches = self._refresh_launches(plan)
        for launch in launches:
            plan.attach_covariance(launch.tensors, launch.covariance)
        self._set_fisher(track)
        return plan, launches

    @torch.no_grad()
    def _perturb(self, what: str, track: bool) -> None:
        self._wants(False, what)
        plan, launches = self._prepare(track)
        passes = self.perturbation.passes
        for launch in launches:
            t = launch.tensors
            t.gather()
            plan.attach_saved(t)
            t.set_source(everything=passes == 1)
            if launch.correction is not None and launch.correction.first:
                t.allocate_first()
            increment_version(t.params)
        perturb_(plan.ops, launches, passes, track)
        self._perturbed = what
        for t in plan.tensors:
            t.scatter()
        self._watch.look(launches)
        if passes == 2:
            self._record.first(launches, track)
        else:
            self._record.none()
        for t in plan.tensors:
            t.release()
        if self._common.model is not None:
            self._statistics = Snapshot(self._common.model)

    def _make_plan(self) -> Plan:
        common = self._common
        noise = (self._seed, self._count_draws()) if self._draws_noise else None
        plan = Plan(
            self.param_groups, self.state, common.backend, common.master_weights, noise, common.stochastic_rounding
        )
        self._numel = plan.numel
        return plan

    @property
    def _draws_noise(self) -> bool:
        """Whether a step takes random numbers."""
        return self._common.stochastic_rounding or not isinstance(self.perturbation, WorstCase)

    def _count_draws(self) -> Tensor:
        """How often random numbers were drawn."""
        if self._plan is not None and self._plan.tensors[0].draw is not None:
            self._draws = self._plan.tensors[0].draw
        return torch.as_tensor(self._draws)

    def _set_fisher(self, track: bool) -> None:
        """Asks the callable for the Fisher diagonal, where there is one and its turn has come."""
        if self._fisher is None:
            return
        due = self._asked % self._refresh == 0
        self._asked += track
        if not due:
            return
        params = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            given = list(self._fisher())
        if [x.shape for x in given] != [p.shape for p in params]:
            raise ValueError(
                f"the callable fisher returned {len(given)} tensors whose shapes are not those of the {len(params)} "
                "parameters: it has to return one tensor a parameter, in parameter order"
            )
        for p, f in zip(params, given, strict=True):
            stored = self.state[p].get("fisher")
            if stored is not None:
                stored.copy_(f)

    def _read_second(self, plan: Plan) -> None:
        """Takes up the gradients at w + ε.

        Raises:
            RuntimeError: A gradient is sparse (w is restored then), or the weights were moved to other storage.
        """
        try:
            plan.read_gradients()
        except Stale:
            for launch in self._launches:
                launch.tensors.rescue()
            self._end()
            self._plan = None
            raise RuntimeError(
                "the parameters were moved to other storage, or the dtype of a gradient changed, while the weights "
                "stood perturbed; w is restored and not updated. Call second_step() or restore() before model.to() "
                "and the like"
            ) from None
        except RuntimeError:
            self.restore()
            raise

    @torch.no_grad()
    def _descend(self, plan: Plan, finite: dict[torch.device, Tensor] | None = None) -> None:
        launches = self._refresh_launches(plan)
        second = finite or (self._second_totals(plan) if self._common.skip_nonfinite else {})
        if any(x.update is None for x in launches):
            self._descend_wrapped(plan, second.get(plan.total.device))
            return
        for launch in launches:
            t, u = launch.tensors, cast(Update, launch.update)
            increment_version(t.params)
            plan.attach_base(t, u, everywhere=isinstance(launch.correction, Estimated))
            plan.ops.descend_(t, u, launch.correction, t.total, second.get(t.device))
            t.scatter()
            t.note()

    def _second_totals(self, plan: Plan) -> dict[torch.device, Tensor]:
        """Σ g2² on every device: not finite where g2 is not."""
        totals = {t.device: torch.empty_like(t.total) for t in plan.tensors}
        add_up(plan.ops, [(t, Identity()) for t in plan.tensors], [totals[t.device] for t in plan.tensors])
        return totals

    def _descend_wrapped(self, plan: Plan, second: Tensor | None) -> None:
        """Restores, then calls the torch optimizer, which reads `.grad` itself. Waits for the device."""
        assert self.base_optimizer is not None
        if not bool(plan.total.isfinite()) or not (second is None or bool(second.isfinite())):
            self._restore(plan)
            return
        changed: dict[Tensor, Tensor] = {}
        for x in self._launches:
            changed.update(correct_(x, self._penalty_of(self.param_groups[x.tensors.group])))
        self._restore(plan)
        with lent(self.param_groups, self.state, self._hidden, changed):
            self.base_optimizer.step()
        for launch in self._launches:
            launch.tensors.gather()
        plan.counted()

    # What users call -------------------------------------------------------------------------------------------------

    def first_step(self, zero_grad: bool = False) -> None:
        """Goes from w to w + ε. The gradients at w have to be there.

        Args:
            zero_grad: Whether to call `zero_grad()` afterwards, so that the second backward pass starts at zero.

        Raises:
            RuntimeError: The weights stand perturbed already, or a gradient is sparse.
        """
        self._perturb("first_step()", True)
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Goes back to w and updates it. The gradients at w + ε have to be there.

        Args:
            zero_grad: Whether to call `zero_grad()` afterwards.

        Raises:
            RuntimeError: `first_step` was not called before, or a gradient is sparse (w is restored then).
        """
        self._wants(True, "second_step()")
        if self._perturbed != "first_step()":
            raise RuntimeError(
                f"second_step() wants first_step() before it, not {self._perturbed}: call restore() first"
            )
        plan = cast(Plan, self._plan)
        self._read_second(plan)
        self._descend(plan)
        self._record.second(self._launches)
        for launch in self._launches:
            launch.tensors.release()
        self._end()
        self._opt_called = True  # what torch's schedulers look at; they see step() only
        if zero_grad:
            self.zero_grad()

    def _end(self) -> None:
        self._perturbed = None
        if self._statistics is not None:
            self._statistics.put_back()
            self._statistics = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One whole step: both passes and the update.

        Args:
            closure: Zeroes the gradients, computes the loss, calls backward and returns the loss. Called twice, or
                once by a method of one pass.

        Returns:
            What the closure returned at w; by a method of one pass, at w + ε.

        Raises:
            RuntimeError: There is no closure, or the weights stand perturbed.
        """
        self._wants(False, "step()")
        if closure is None:
            raise RuntimeError(
                "step() wants a closure that zeroes the gradients, computes the loss, calls backward and returns the "
                "loss, since w is perturbed on the way. Without one call first_step() and second_step()"
            )
        loss = None
        if self.perturbation.passes == 2:
            with torch.enable_grad():
                loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                perturbed_loss = closure()
            self.second_step()
        except BaseException:
            if self._perturbed is not None:
                self.restore()
            raise
        self._record.losses(loss, perturbed_loss)
        return perturbed_loss if self.perturbation.passes == 1 else loss

    def _part(self, closure: Callable[[], Any]) -> Any:
        """The passes of one part of `m_sharpness`: w comes back, and the gradients at w + ε stay."""
        if any(self._correction_of(g, self.covariance_of(g)) is not None for g in self.param_groups):
            raise ValueError(
                f"m_sharpness averages the gradients at w + ε, and {type(self).__name__} wants each of them with its "
                "own perturbation: give it the whole batch"
            )
        loss = None
        if self.perturbation.passes == 2:
            with torch.enable_grad():
                loss = closure()
        self._perturb("m_sharpness()", False)
        try:
            with torch.enable_grad():
                perturbed_loss = closure()
        finally:
            self.restore()
        for t in cast(Plan, self._plan).tensors:
            if t.draw is not None:
                t.draw += 1
        return perturbed_loss if loss is None else loss

    def perturb(self) -> None:
        """Goes from w to w + ε for analysis; state does not move on.

        Raises:
            RuntimeError: The weights stand perturbed already, or a gradient is sparse.
        """
        self._perturb("perturb()", False)

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to w, bit for bit, without an update.

        Raises:
            RuntimeError: The weights do not stand perturbed.
        """
        self._wants(True, "restore()")
        plan = cast(Plan, self._plan)
        self._restore(plan)
        self._end()

    def _restore(self, plan: Plan) -> None:
        for launch in self._launches:
            increment_version(launch.tensors.params)
            plan.ops.restore_(launch.tensors, launch.tensors.total)
            launch.tensors.scatter()
            launch.tensors.note()

    @contextmanager
    def perturbed(self) -> Generator[None]:
        """`perturb()` before the block and `restore()` after it, exceptions included."""
        self.perturb()
        try:
            yield
        finally:
            self.restore()

    def covariance(self) -> tuple[Tensor, ...]:
        """The covariance s of every parameter as it stands, in parameter order.

        With f = g² the gradients of the last first pass are wanted. They are there until they are zeroed, and stay
        afterwards where they are small (64 MiB) or once this method or `diagnostics` was called.

        Returns:
            One tensor a parameter, in the shape of the parameter and float32 (float64 for float64 weights).

        Raises:
            RuntimeError: The gradients of the last first pass are gone, or there was no first pass yet.
        """
        values: dict[Tensor, Tensor] = {}
        for i, launch in enumerate(self._launches):
            values.update(self._record.covariance(i, launch, self._perturbed is not None))
        if not values:
            raise RuntimeError(
                "covariance() wants a first pass before it: call first_step(), step(closure) or perturb()"
            )
        return tuple(values[p] for group in self.param_groups for p in group["params"])

    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step did. Computed when asked for.

        Where the gradients of both passes are larger than 64 MiB they are kept only from the first call on: that
        call then gives NaN for the figures that need them.

        Returns:
            0-d float64 tensors on the device: `grad_norm` ‖g‖, `perturbation_norm` ‖ε‖, `loss_gap` L(w + ε) - L(w)
            (NaN unless `step(closure)` made the step), `gradient_cosine` cos(g, g2). Methods of one pass have NaN for
            all that wants g; where s has moved on with the step, learned or by TRACER, ‖ε‖ is NaN.

        Raises:
            RuntimeError: There was no whole step yet.
        """
        return self._record.diagnostics(self._launches, None if self._plan is None else self._plan.total)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to equal an uninterrupted one bit for bit, in torch's format.

        Returns:
            `state` (also the base update's) and `param_groups`.

        Raises:
            RuntimeError: The weights stand perturbed: a checkpoint of the model would hold w + ε.
        """
        self._wants(False, "state_dict()")
        saved: dict[str, Any] = super().state_dict()
        counts = {"draws": int(self._count_draws())} if self._draws_noise else {}
        if self._refresh > 1:
            counts["asked"] = self._asked
        saved["param_groups"] = [{**group, **counts} for group in saved["param_groups"]]
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this optimizer, or of the plain base optimizer.

        Args:
            state_dict: As `state_dict()` gave it; tensors are copied.

        Raises:
            RuntimeError: The weights stand perturbed.
            ValueError: Groups, parameters or shapes are others than here; nothing is changed then.
        """
        self._wants(False, "load_state_dict()")
        check_state(state_dict, self.param_groups)
        own = [{name: group[name] for name in self._own} for group in self.param_groups]
        groups = [{**kept, **saved} for kept, saved in zip(own, state_dict["param_groups"], strict=True)]
        draws, asked = ([group.pop(name, 0) for group in groups] for name in ("draws", "asked"))
        for group in groups:
            check_options(group, self._fisher is not None)
        super().load_state_dict({**state_dict, "param_groups": groups})
        fused = all(update(group, self._base_class) is not None for group in self.param_groups)
        restore_state(self.state, state_dict["param_groups"], self.param_groups, state_dict["state"], fused)
        self._clear()
        self._draws, self._asked = draws[0], asked[0]

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy take: not the caches."""
        self._count_draws()
        kept = {name: getattr(self, name) for name in self._constructed}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_perturbed" not in self.__dict__:
            self._clear()
        self._plan = None
        if self.base_optimizer is not None:
            self.base_optimizer.param_groups = self.param_groups
            self.base_optimizer.state = self.state
