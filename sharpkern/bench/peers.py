"""Published sharpness-aware optimizers, each as one step on gradients that are given; they need not be installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from sharpkern.bench.measure import Step, two_passes
from sharpkern.bench.rivals import BASES, RHO


def missing(*packages: str) -> str | None:
    """Why a peer cannot be measured, or None."""
    names = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(names)} not installed" if names else None


def sam(params: Sequence[torch.nn.Parameter], base: str, adaptive: bool, **how: Any) -> Any:
    """The SAM of pytorch_optimizer, with `adaptive` ASAM with eta = 0; `how` goes to it and to torch's optimizer."""
    from pytorch_optimizer import SAM

    kind, options = BASES[base]
    return SAM(list(params), kind, rho=RHO, adaptive=adaptive, **options, **how)


def pytorch_optimizer(params: Sequence[torch.nn.Parameter], base: str, adaptive: bool, **how: Any) -> Step:
    """One step of `sam`."""
    return two_passes(sam(params, base, adaptive, **how))


class Optax:
    """optax.contrib.sam: one function, jitted, called twice, with parameters and state in donated buffers.

    A call ends when its results are there. Every call of the function does the work of both halves and picks one.

    Args:
        params: Parameters with gradients, which are copied: buffers that are shared with torch cannot be donated.
        base: Of the update.
    """

    climbs = 1.0  # sam turns the sign of the updates itself

    def __init__(self, params: Sequence[torch.nn.Parameter], base: str) -> None:
        import jax
        import optax

        self.jax = jax
        self.update = _optax_base(base)
        self.climb = optax.chain(optax.contrib.normalize(), optax.sgd(self.climbs * RHO))
        self.weights = [_array(p) for p in params]
        self.gradients = [_array(p.grad) for p in params if p.grad is not None]
        self.prepare()

    def prepare(self) -> None:
        """Makes the state and what is called."""
        from optax.contrib import sam

        both = sam(self.update, self.climb, sync_period=2)
        self.state = self.jax.tree.map(lambda x: x.copy(), both.init(self.weights))  # it holds the weights themselves
        self.half = self.jax.jit(_applied(both), donate_argnums=(0, 1))

    def __call__(self) -> None:
        """One step."""
        for _ in range(2):
            self.weights, self.state = self.half(self.weights, self.state, self.gradients)
        self.jax.block_until_ready((self.weights, self.state))


class OptaxHalves(Optax):
    """The optimizers that optax.contrib.sam is made of, each half a jitted function of its own.

    This is the work of its opaque mode, with the boundary where the backward pass would be; w + ε goes into the buffer
    of the step before.
    """

    climbs = -1.0

    def prepare(self) -> None:
        """Makes the state and what is called."""
        started = self.climb.init(self.weights)
        self.state = self.update.init(self.weights)
        self.perturbed = [x.copy() for x in self.weights]
        first = _applied(self.climb)
        self.first = self.jax.jit(lambda old, w, g: first(w, started, g)[0], donate_argnums=0, keep_unused=True)
        self.second = self.jax.jit(_applied(self.update), donate_argnums=(0, 1))

    def __call__(self) -> None:
        """One step."""
        self.perturbed = self.first(self.perturbed, self.weights, self.gradients)
        self.weights, self.state = self.second(self.weights, self.state, self.gradients)
        self.jax.block_until_ready((self.perturbed, self.weights, self.state))


def _applied(kind: Any) -> Any:
    """The update of an optimizer of optax, applied: parameters, state, gradients → parameters, state."""
    from optax import apply_updates

    def run(weights: Any, state: Any, gradients: Any) -> Any:
        updates, state = kind.update(gradients, state, weights)
        return apply_updates(weights, updates), state

    return run


def _optax_base(base: str) -> Any:
    """torch's optimizer of that name with the same options."""
    import optax

    options = BASES[base][1]
    if base == "sgd":
        decayed = optax.add_decayed_weights(options["weight_decay"])
        return optax.chain(decayed, optax.sgd(options["lr"], momentum=options["momentum"]))
    return optax.adamw(options["lr"], weight_decay=0.01)


def _array(x: torch.Tensor) -> Any:
    """A copy for JAX."""
    import jax

    return jax.numpy.array(x.detach().numpy(), copy=True)
