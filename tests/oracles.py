"""The papers' steps and torch's documented base updates in float64, with nothing of sharpkern.

Symbols: w weights, g their gradient, s the diagonal covariance, f the Fisher diagonal, rho the radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Memory = dict[str, Any]
Params = list[torch.nn.Parameter]
Loss = Callable[[Sequence[Tensor]], Tensor]

# Where the tensors are that backends are tried on; pytest's option --device sets it. Oracles stay on the CPU.
DEVICE = torch.device("cpu")


class Base(Protocol):
    """A base update: the new weights from the old ones, a gradient and what is remembered."""

    def update(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return the updated weights."""


class Covariance(Protocol):
    """A diagonal covariance."""

    def s(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return s of one parameter."""


@dataclass(frozen=True)
class Sgd:
    """torch.optim.SGD as its documentation states it."""

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def update(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return w - lr d, with d the decayed gradient or its momentum."""
        d = (-g if self.maximize else g) + self.weight_decay * w
        if self.momentum:
            before = memory.get("momentum_buffer")
            buffer = d if before is None else self.momentum * before + (1 - self.dampening) * d
            memory["momentum_buffer"] = buffer
            d = d + self.momentum * buffer if self.nesterov else buffer
        return w - self.lr * d


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam, and AdamW with decoupled=True, as their documentation states them."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    maximize: bool = False
    decoupled: bool = False

    def update(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return w - lr m̂ / (sqrt(v̂) + eps)."""
        beta1, beta2 = self.betas
        g = -g if self.maximize else g
        if self.decoupled:
            w = w - self.lr * self.weight_decay * w
        else:
            g = g + self.weight_decay * w
        t = memory["step"] = memory.get("step", 0) + 1
        m = memory["exp_avg"] = beta1 * memory.get("exp_avg", 0.0) + (1 - beta1) * g
        v = memory["exp_avg_sq"] = beta2 * memory.get("exp_avg_sq", 0.0) + (1 - beta2) * g * g
        updated: Tensor = w - self.lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + self.eps)
        return updated


def AdamW(weight_decay: float = 1e-2, **options: Any) -> Adam:
    """Return Adam with decoupled weight decay and torch's default of it."""
    return Adam(weight_decay=weight_decay, decoupled=True, **options)


@dataclass(frozen=True)
class Isotropic:
    """SAM, [F] 2: s = 1."""

    def s(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return ones."""
        return torch.ones_like(w)


@dataclass(frozen=True)
class Adaptive:
    """ASAM, [F] 4 and 5: s = (|w| + eta)²."""

    eta: float = 0.0

    def s(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return (|w| + eta)²."""
        return (w.abs() + self.eta) ** 2


@dataclass(frozen=True)
class Fisher:
    """Fisher SAM, [F] 10 and 12: s = 1/(1 + eta f) or 1/(f + eta), f from g², its average, or given."""

    eta: float = 1.0
    additive: bool = False
    beta: float | None = None
    given: Callable[[Tensor], Tensor] | None = None

    def s(self, w: Tensor, g: Tensor, memory: Memory) -> Tensor:
        """Return the damped inverse of f; an average moves before it is used."""
        f = g * g if self.given is None else self.given(w)
        if self.beta is not None:
            f = memory["fisher"] = (1 - self.beta) * memory.get("fisher", 0.0) + self.beta * f
        return 1 / (f + self.eta) if self.additive else 1 / (1 + self.eta * f)


@dataclass
class Oracle:
    """Whole steps over a list of weights, one global norm; every option may be one value or one a parameter."""

    weights: Sequence[Tensor]
    base: Any = field(default_factory=Sgd)
    covariance: Any = field(default_factory=Isotropic)
    rho: Any = 0.05
    natural_gradient: bool = False
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        """Spread single values over the parameters."""
        n = len(self.weights)
        self.w = [w.detach().to("cpu", self.dtype, copy=True) for w in self.weights]
        self.bases: Sequence[Base] = self.base if isinstance(self.base, list) else [self.base] * n
        self.covariances: Sequence[Covariance] = (
            self.covariance if isinstance(self.covariance, list) else [self.covariance] * n
        )
        self.rhos: Sequence[float] = self.rho if isinstance(self.rho, list) else [self.rho] * n
        self.memory: list[Memory] = [{} for _ in range(n)]
        self.s: list[Tensor] = []
        self.epsilon: list[Tensor] = []

    def reset(self, weights: Sequence[Tensor]) -> None:
        """Take these weights, rounded by someone else, as the point of the next step."""
        self.w = [w.detach().to("cpu", self.dtype, copy=True) for w in weights]

    def ascend(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Return w + rho s g / sqrt(sum s g²); weights without a gradient stay."""
        g = [None if x is None else x.detach().to("cpu", self.dtype) for x in gradients]
        self.s = [
            torch.ones_like(w) if x is None else c.s(w, x, m)
            for c, w, x, m in zip(self.covariances, self.w, g, self.memory, strict=True)
        ]
        pairs = list(zip(self.s, g, strict=True))
        norm = math.sqrt(sum((s.double() * x.double() ** 2).sum().item() for s, x in pairs if x is not None))
        self.epsilon = [
            torch.zeros_like(s) if x is None or norm == 0 else (rho / norm) * s * x
            for rho, (s, x) in zip(self.rhos, pairs, strict=True)
        ]
        return [w + e for w, e in zip(self.w, self.epsilon, strict=True)]

    def descend(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Update w with the gradients at w + epsilon; weights without one stay."""
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                g2 = gradient.detach().to("cpu", self.dtype)
                g2 = self.s[i] * g2 if self.natural_gradient else g2
                self.w[i] = self.bases[i].update(self.w[i], g2, self.memory[i])
        return self.w

    def step(self, loss: Loss) -> float:
        """Take the whole step on this loss and return its value at w."""
        value, g = value_and_gradients(loss, self.w)
        _, g2 = value_and_gradients(loss, self.ascend(g))
        self.descend(g2)
        return value


def value_and_gradients(loss: Loss, weights: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """Return the loss and its gradients at copies of these weights."""
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    value = loss(leaves)
    return value.item(), list(torch.autograd.grad(value, leaves))


# What the optimizers are called with, and the oracle each must follow.


@dataclass(frozen=True)
class Variant:
    """A class of the package, by name, its options, and the covariance of the papers."""

    name: str
    covariance: Covariance
    options: dict[str, Any] = field(default_factory=dict)
    rho: float = 0.3

    def arguments(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the keyword arguments; a Fisher diagonal that is given reads these parameters."""
        given = getattr(self.covariance, "given", None)
        if given is None:
            return {"rho": self.rho, **self.options}
        wide = [torch.promote_types(p.dtype, torch.float32) for p in params]
        fisher = lambda: tuple(given(p.detach().to(d)) for p, d in zip(params, wide, strict=True))  # ruff: ignore[lambda-assignment]
        return {"rho": self.rho, **self.options, "fisher": fisher}

    def oracle(self, weights: Sequence[Tensor], base: Base, dtype: torch.dtype = torch.float64) -> Oracle:
        """Return the oracle that starts at these weights."""
        natural = self.options.get("natural_gradient", False)
        return Oracle(weights, base, self.covariance, self.rho, natural, dtype)


def some_fisher(w: Tensor) -> Tensor:
    """Return a positive diagonal that depends on the weights."""
    return w * w + 0.25


VARIANTS = {
    "sam": Variant("SAM", Isotropic()),
    "sam-adaptive": Variant("SAM", Adaptive(0.0), {"adaptive": True}),
    "asam": Variant("ASAM", Adaptive(0.1), {"eta": 0.1}),
    "fisher-inverse": Variant("FisherSAM", Fisher(5.0), {"eta": 5.0}),
    "fisher-additive": Variant("FisherSAM", Fisher(0.2, additive=True), {"eta": 0.2, "damping": "additive"}),
    "fisher-average": Variant("FisherSAM", Fisher(5.0, beta=0.8), {"eta": 5.0, "fisher": "average", "beta": 0.8}),
    "fisher-average-additive": Variant(
        "FisherSAM",
        Fisher(0.2, additive=True, beta=0.3),
        {"eta": 0.2, "damping": "additive", "fisher": "average", "beta": 0.3},
    ),
    "fisher-given": Variant("FisherSAM", Fisher(2.0, given=some_fisher), {"eta": 2.0}),
    "fisher-natural": Variant("FisherSAM", Fisher(3.0), {"eta": 3.0, "natural_gradient": True}),
    "fisher-average-natural": Variant(
        "FisherSAM", Fisher(3.0, beta=0.5), {"eta": 3.0, "fisher": "average", "beta": 0.5, "natural_gradient": True}
    ),
}

BASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, Sgd, {"lr": 0.05}),
    "sgd-momentum": (torch.optim.SGD, Sgd, {"lr": 0.05, "momentum": 0.9}),
    "sgd-dampening": (torch.optim.SGD, Sgd, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}),
    "sgd-nesterov": (torch.optim.SGD, Sgd, {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    "sgd-maximize": (torch.optim.SGD, Sgd, {"lr": 0.01, "momentum": 0.5, "maximize": True}),
    "adam": (torch.optim.Adam, Adam, {"lr": 0.01}),
    "adam-decay": (torch.optim.Adam, Adam, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.05}),
    "adamw": (torch.optim.AdamW, AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw-maximize": (torch.optim.AdamW, AdamW, {"lr": 0.005, "eps": 1e-6, "maximize": True}),
}


# Small problems with fresh random data every step.


def generator(*seeds: int) -> torch.Generator:
    """Return a generator seeded by these numbers."""
    seed = 0
    for s in seeds:
        seed = seed * 1_000_003 + s + 1
    return torch.Generator().manual_seed(seed % 2**63)


NETWORK = ((6, 5), (6,), (3, 6), (3,), ())


def network_weights(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the start of a small network: two layers and a scalar gain."""
    draw = generator(seed)
    return [(0.7 * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype) for shape in NETWORK]


def network_loss(seed: int, step: int) -> Loss:
    """Return the loss of that network on the batch of this step."""
    draw = generator(seed, step)
    inputs = torch.randn(16, 5, generator=draw, dtype=torch.float64)
    targets = torch.randn(16, 3, generator=draw, dtype=torch.float64)

    def loss(weights: Sequence[Tensor]) -> Tensor:
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        w1, b1, w2, b2, gain = (w.to(dtype) for w in weights)
        hidden = torch.tanh(torch.nn.functional.linear(inputs.to(w1), w1, b1))
        outputs = (1 + gain) * torch.nn.functional.linear(hidden, w2, b2)
        return (outputs - targets.to(outputs)).square().log1p().mean()  # of bounded slope: may be maximised

    return loss


def parameters(weights: Sequence[Tensor]) -> Params:
    """Make parameters of copies of these weights."""
    return [torch.nn.Parameter(w.detach().to(DEVICE, copy=True)) for w in weights]


def build(package: Any, variant: str, base: str, params: Params, backend: str, **more: Any) -> Any:
    """Make the optimizer of a row of VARIANTS and a row of BASES with the classes of this package."""
    row, (torch_class, _, options) = VARIANTS[variant], BASES[base]
    arguments = {**row.arguments(params), **options, **more}
    return getattr(package, row.name)(params, torch_class, backend=backend, **arguments)


def closure_of(optimizer: Any, params: Params, loss: Loss) -> Callable[[], Tensor]:
    """Make the closure that torch.optim's users write."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    return closure


def run(optimizer: Any, params: Params, seed: int, steps: range) -> list[Tensor]:
    """Train on the small network; the weights after the last step."""
    for step in steps:
        optimizer.step(closure_of(optimizer, params, network_loss(seed, step)))
    return [p.detach().clone() for p in params]


def give_gradients(params: Params, *seeds: int, scale: float = 1.0) -> list[Tensor]:
    """Give every parameter a fresh random gradient and return them."""
    draw = generator(*seeds)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=draw)).to(p)
    return [p.grad for p in params if p.grad is not None]


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Tell whether two lists of tensors are equal bit for bit, NaN and the sign of zero included."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b) for a, b in zip(left, right, strict=True)
    )


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def largest_gap(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of tensors."""
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(left, right, strict=True)]
    return max((a - b).abs().max().item() for a, b in pairs)


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance to the next number of this dtype at each |x|, in float64."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(x.double().abs().clamp_min(limits.smallest_normal))
    return torch.ldexp(torch.full_like(x, limits.eps, dtype=torch.float64), exponent - 1)
