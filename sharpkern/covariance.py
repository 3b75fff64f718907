"""The covariance s of one group: its definition, and what is kept of it from step to step.

Each class is one row of the table of methods. `s` and `fisher` are the definition in PyTorch; `kernel` and `scalars`
name the same formula in `csrc/covariance.h`. Tensors are of one parameter's shape, all of one dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, ones_like, where, zeros_like


class Covariance(Protocol):
    """What the ops know of a covariance."""

    @property
    def kernel(self) -> str:
        """Name of the formula in the backends' kernels."""

    @property
    def scalars(self) -> tuple[float, ...]:
        """What the kernel's formula takes."""

    @property
    def state(self) -> str | None:
        """Name of what is kept for every parameter, a Fisher diagonal or s itself; None where nothing is."""

    @property
    def initial(self) -> float:
        """What it is at first."""

    @property
    def batch(self) -> bool:
        """Whether s depends on the gradient itself, through f = g²."""

    @property
    def direction(self) -> bool:
        """Whether the perturbation has the length rho itself: ε = rho s g / ‖s g‖, so the norm sums (s g)²."""

    def fisher(self, g: Tensor, f: Tensor | None, step: float = 0.0) -> Tensor | None:
        """The Fisher diagonal once the gradient `g` is seen, from its stored value `f` after `step` updates."""

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        """The covariance at the weight `w` and the Fisher diagonal `f`."""

    def after(self, g: Tensor, f: Tensor | None, scale: float) -> Tensor | None:
        """What is kept once w + scale s g is reached, from what `fisher` gave; None where what is kept stays."""


@dataclass(frozen=True)
class Identity:
    """SAM: s = 1 ([F] 2, 3)."""

    kernel: ClassVar[str] = "identity"
    scalars: ClassVar[tuple[float, ...]] = ()
    state: ClassVar[str | None] = None
    initial: ClassVar[float] = 0.0
    batch: ClassVar[bool] = False
    direction: ClassVar[bool] = False

    def fisher(self, g: Tensor, f: Tensor | None, step: float = 0.0) -> Tensor | None:
        return None

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        return ones_like(w)

    def after(self, g: Tensor, f: Tensor | None, scale: float) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Adaptive:
    """ASAM: s = (|w| + eta)² ([F] 4, 5)."""

    eta: float

    kernel: ClassVar[str] = "adaptive"
    state: ClassVar[str | None] = None
    initial: ClassVar[float] = 0.0
    batch: ClassVar[bool] = False
    direction: ClassVar[bool] = False

    @property
    def scalars(self) -> tuple[float, ...]:
        return (self.eta,)

    def fisher(self, g: Tensor, f: Tensor | None, step: float = 0.0) -> Tensor | None:
        return None

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        return (w.abs() + self.eta).square()

    def after(self, g: Tensor, f: Tensor | None, scale: float) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Fisher:
    """Fisher SAM: s = 1/(1 + eta f) ("inverse") or 1/(f + eta) ("additive") ([F] 10, 12).

    With `beta` None, f = g² and is not stored. Otherwise f ← (1 - beta) f + beta g² ([G] 52): beta = 1 stores the g²
    of the first pass for the second, beta = 0 takes a Fisher diagonal that was given.
    """

    eta: float
    damping: str = "inverse"
    beta: float | None = None

    initial: ClassVar[float] = 0.0
    direction: ClassVar[bool] = False

    @property
    def kernel(self) -> str:
        return "fisher" if self.batch else "fisher_average"

    @property
    def scalars(self) -> tuple[float, ...]:
        damping = (1.0, self.eta) if self.damping == "inverse" else (self.eta, 1.0)  # a, b of s = 1/(a + b f)
        return damping if self.beta is None else (*damping, self.beta)

    @property
    def state(self) -> str | None:
        return None if self.batch else "fisher"

    @property
    def batch(self) -> bool:
        return self.beta is None

    def fisher(self, g: Tensor, f: Tensor | None, step: float = 0.0) -> Tensor | None:
        if self.beta is None or f is None:
            return g.square()
        return (1 - self.beta) * f + self.beta * g.square()

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        assert f is not None
        return 1 / (1 + self.eta * f) if self.damping == "inverse" else 1 / (f + self.eta)

    def after(self, g: Tensor, f: Tensor | None, scale: float) -> Tensor | None:
        return None if self.batch else f


S_MIN, S_MAX = 1e-8, 1e8  # what a learned s stays within


@dataclass(frozen=True)
class Learned:
    """s is state, 1 at first, and moves down the gradient of the loss in log s, or in s itself ([V] 42, Alg. 2 and 3).

    ∂/∂log s = slope + penalty (prior s - 1): the slope is ½ scale s g² at the worst case, scale = ρ / sqrt(Σ s g²), and
    ½ g2 ε at a draw ε; penalty = κ/2 and prior = ρ²/(p σ0²). s stays between S_MIN and S_MAX, and where it is if the
    slope is not finite.

    Args:
        lr: Of log s, or of s.
        penalty: Half the weight of the KL divergence from the prior.
        prior: The variance of the perturbation at s = 1 over that of the prior.
        log: Whether log s moves by -lr ∂/∂log s; else s by -lr ∂/∂s.
    """

    lr: float
    penalty: float = 0.0
    prior: float = 0.0
    log: bool = True

    kernel: ClassVar[str] = "learned"
    state: ClassVar[str | None] = "covariance"
    initial: ClassVar[float] = 1.0
    batch: ClassVar[bool] = False
    direction: ClassVar[bool] = False

    @property
    def scalars(self) -> tuple[float, ...]:
        return (self.lr, self.penalty, self.prior, float(self.log))

    def fisher(self, g: Tensor, f: Tensor | None, step: float = 0.0) -> Tensor | None:
        return f

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        assert f is not None
        return f

    def after(self, g: Tensor, f: Tensor | None, scale: float) -> Tensor | None:
        assert f is not None
        return self.moved(f, 0.5 * scale * f * g.square())

    def moved(self, s: Tensor, slope: Tensor) -> Tensor:
        """The next s, from the slope of the loss in log s."""
        slope = slope + self.penalty * (self.prior * s - 1)
        new = s * (-self.lr * slope).exp() if self.log else s - self.lr * slope / s
        return where(slope.isfinite(), new.clamp(S_MIN, S_MAX), s)


@dataclass(frozen=True)
class Tracer:
    """TRACER: s = 1/(f̄ + delta), along which the penalty Σ g²/(f̄ + delta) is differentiated ([G] Alg. 1, 58).

    f̄ moves at the end of the step, after its use: (1 - beta) f̄ + beta g². With Adam it is Adam's second moment v, which
    moves by itself, with its bias correction: f̄ = v / (1 - adam^t) after t updates, adam its β2; 0 before the first.
    """

    delta: float
    beta: float = 0.0
    adam: float = 0.0

    kernel: ClassVar[str] = "tracer"
    initial: ClassVar[float] = 0.0
    batch: ClassVar[bool] = False
    direction: ClassVar[bool] = True

    @property
    def scalars(self) -> tuple[float, ...]:
        return (self.delta, self.adam, self.beta)

    @property
    def state(self) -> str | None:
        return "exp_avg_sq" if self.adam else "fisher"

    def fisher(self, g: Tensor, f: Tensor | None, step: float = 0.0) -> Tensor | None:
        if self.adam and f is not None:
            return f / (1 - self.adam**step) if step else zeros_like(f)
        return f

    def s(self, w: Tensor, f: Tensor | None) -> Tensor:
        assert f is not None
        return 1 / (f + self.delta)

    def after(self, g: Tensor, f: Tensor | None, scale: float) -> Tensor | None:
        return None

    def moved(self, f: Tensor, g: Tensor) -> Tensor:
        """The next f̄; Adam's moves by itself."""
        return f if self.adam else (1 - self.beta) * f + self.beta * g.square()


def packed(covariance: Any) -> Any:
    """A covariance as plain data, which a checkpoint can hold: its class's name and its fields.

    Args:
        covariance: None, `Identity`, `Adaptive` or `Fisher`, or what this function gave.

    Returns:
        A dictionary, or None.

    Raises:
        ValueError: It is something else.
    """
    if covariance is None or (isinstance(covariance, dict) and "name" in covariance):
        return covariance
    if not isinstance(covariance, (Identity, Adaptive, Fisher)):
        raise ValueError(
            f"covariance={covariance!r}: wanted None or one of sharpkern.covariance.Identity(), Adaptive(eta) and "
            "Fisher(eta, damping, beta)"
        )
    return {"name": type(covariance).__name__, **asdict(covariance)}


def unpacked(group: dict[str, Any]) -> Covariance:
    """The covariance that a group holds as plain data."""
    fields = dict(group["covariance"] or {"name": "Identity"})
    classes: dict[str, Callable[..., Covariance]] = {"Identity": Identity, "Adaptive": Adaptive, "Fisher": Fisher}
    return classes[fields.pop("name")](**fields)
