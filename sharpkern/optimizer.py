"""What users call: a step as a whole, in halves, and for analysis."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sharpkern import compiled, per_rank
from sharpkern.checkpoint import asks_for_state
from sharpkern.halves import Halves
from sharpkern.modes import check_mode
from sharpkern.sharded import spread_like


class SharpnessAware(Halves):
    """A sharpness-aware optimizer: covariance × perturbation × base update.

    One step: ε from the gradient g at w, g2 = ∇L(w + ε), w restored bit for bit into the same storage, then the base
    update with g2. Subclasses choose the parts. The arguments that all of them take:

    Args:
        params: Tensors, named tensors or groups, as for torch.optim; on one device, or on several CUDA devices.
        base_optimizer: A class of torch.optim. SGD, Adam and AdamW are fused; any other is called after the restore.
        **options: Options of the base optimizer (`lr`, `momentum`, ...), which may differ by group, and these:

            - `backend` ("auto"): "native" (C++ on the CPU, CUDA), "triton" (CUDA) or "reference" (PyTorch on any
              device); "auto" takes the first of them that runs on the device. `optimizer.backend` and
              `optimizer.why_not` tell.
            - `model` (None): If given, its running statistics, of custom layers too, are touched by the first pass
              only; by a method of one pass in that one.
            - `master_weights` (False): Keep float32 weights for bfloat16 and float16 parameters. w + ε and the
              updated w are rounded from them, and no copy of w is made: 4 B/param, as state.
            - `stochastic_rounding` (False): Round w + ε of bfloat16 and float16 parameters up or down at random, so
              that ε arrives on average; to the nearest most of a small ε is lost.
            - `skip_nonfinite` (False): An infinity or NaN in g2 skips the update, as one in g always does.
            - `scaler` (None): The `torch.amp.GradScaler` that the losses are scaled with. Gradients are unscaled as
              they are read, one that is not finite in either pass skips the step, and after it `scaler.update()` is
              called, never `scaler.step` or `scaler.unscale_`. Also the attribute `optimizer.scaler`.
            - `max_norm` (None): Makes the norm of the g2 that the update takes, over all parameters, at most this.
            - `clip_value` (None): Clips every element of g and of g2 to ± this, before norms. With any of these three
              what is not finite in g2 skips the update too.
            - `per_rank` (False): Each rank of `model`, a DistributedDataParallel module, perturbs from the gradient
              of its own part of the batch; the update takes the mean of the ranks' g2.
    """

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

    def second_step(self, zero_grad: bool = False, accumulate: bool = False) -> None:
        """Goes back to w and updates it. The gradients at w + ε have to be there.

        Args:
            zero_grad: Whether to call `zero_grad()` afterwards.
            accumulate: Whether to go back to w without an update and to add g2 to a sum (4 B/param). The next
                `second_step()` or `step(closure)` without it updates with the mean of all these g2 and its own. A first
                pass that is not finite in one part skips the whole step, and `restore()` gives it up.

        Raises:
            RuntimeError: `first_step` was not called before, or a gradient is sparse (w is restored then).
            ValueError: To accumulate, a method wants each g2 with its own perturbation (w is restored then).
        """
        self._wants(True, "second_step()")
        check_mode("second_step()")
        if self._perturbed != "first_step()":
            raise RuntimeError(
                f"second_step() wants first_step() before it, not {self._perturbed}: call restore() first"
            )
        if torch.compiler.is_dynamo_compiling():
            compiled.descend(self, accumulate)
        else:
            self._descend_eagerly(accumulate)
        self._opt_called = True  # what torch's schedulers look at; they see step() only
        if zero_grad:
            self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.

        Args:
            set_to_none: Whether gradients are dropped; else they become zero.
        """
        if torch.compiler.is_dynamo_compiling():
            compiled.zero_grad(self, set_to_none)
        else:
            super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One whole step: both passes and the update.

        Args:
            closure: Zeroes the gradients, computes the loss, calls backward and returns the loss. Called twice, or
                once by a method of one pass. Left out after `sharpkern.passes`.

        Returns:
            What the closure returned at w; by a method of one pass, at w + ε.

        Raises:
            RuntimeError: There is no closure, or the weights stand perturbed.
        """
        self._wants(False, "step()")
        check_mode("step()")
        if self._parts.ready and (closure is None or self._parts.hooked):
            with torch.enable_grad():
                loss = None if closure is None else closure()
            self._update_ready()
            return loss
        self._wants_no_scaler()
        if closure is None and asks_for_state(self.param_groups, self.state):
            return self._make_state()
        if closure is None:
            raise RuntimeError(
                "step() wants a closure that zeroes the gradients, computes the loss, calls backward and returns the "
                "loss, since w is perturbed on the way. Without one call first_step() and second_step()"
            )
        return self._passes(closure)

    def _passes(self, closure: Callable[[], Any], accumulate: bool = False) -> Any:
        """First pass, first half, second pass and second half; an exception gives up the step."""
        try:
            loss = self._first_pass(closure)
            self.first_step()
            with torch.enable_grad():
                perturbed_loss = closure()
            self.second_step(accumulate=accumulate)
        except BaseException:
            if self._perturbed is not None or self._parts.count:
                self.restore()
            raise
        self._record.losses(loss, perturbed_loss)
        return perturbed_loss if self.perturbation.passes == 1 else loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler.step leaves the gradients alone, so that step() can complain; not after `passes`."""
        return not self._parts.ready

    def _wants_no_scaler(self) -> None:
        """Raises RuntimeError within `GradScaler.step`, which has left two attributes here."""
        if "found_inf" in self.__dict__:
            del self.__dict__["found_inf"], self.__dict__["grad_scale"]
            raise RuntimeError(
                "scaler.step(optimizer) checks the gradients of one pass: give the scaler to the optimizer, as "
                "scaler=scaler or optimizer.scaler = scaler, and call optimizer.step(closure) and scaler.update()"
            )

    def _first_pass(self, closure: Callable[[], Any]) -> Any:
        """The loss and the gradients at w, where the method wants them."""
        if self.perturbation.passes != 2:
            return None
        with torch.enable_grad():
            if not self._synchronised:
                per_rank.synchronise(self._common, closure)
                self._synchronised = True
            with per_rank.own_gradients(self._common):
                return closure()

    def perturb(self) -> None:
        """Goes from w to w + ε for analysis; state does not move on.

        Raises:
            RuntimeError: The weights stand perturbed already, or a gradient is sparse.
        """
        self._perturb("perturb()", False)

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
        if any(p not in values for group in self.param_groups for p in group["params"]):
            raise RuntimeError(
                "covariance() wants a first pass before it: call first_step(), step(closure) or perturb()"
            )
        return tuple(spread_like(values[p], p) for group in self.param_groups for p in group["params"])

    def diagnostics(self) -> dict[str, Tensor]:
        """What the last step did. Computed when asked for.

        Where the gradients of both passes are larger than 64 MiB they are kept only from the first call on: that
        call then gives NaN for the figures that need them.

        Returns:
            0-d float64 tensors on the device, `grad_norm` ‖g‖, `perturbation_norm` ‖ε‖, `loss_gap` L(w + ε) - L(w)
            (NaN unless `step(closure)` made the step), `gradient_cosine` cos(g, g2). Methods of one pass have NaN for
            all that wants g; where s has moved on with the step, learned or by TRACER, ‖ε‖ is NaN.

        Raises:
            RuntimeError: There was no whole step yet.
        """
        return self._record.diagnostics(self._launches, None if self._plan is None else self._plan.total)
