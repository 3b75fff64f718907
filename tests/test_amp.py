"""GradScaler and autocast: the same steps as without, and skipped steps that change nothing but the scale."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.functional import cross_entropy

import sharpkern
from sharpkern.optimizer import SharpnessAware

METHODS: dict[str, dict[str, Any]] = {
    "SAM": {"momentum": 0.9},
    "ASAM": {"momentum": 0.9},
    "FisherSAM": {"eta": 100.0, "momentum": 0.9, "nesterov": True},
    "FisherSAM average": {"fisher": "average", "base_optimizer": torch.optim.AdamW},
    "FisherSAM natural": {"natural_gradient": True},
    "RandomSAM": {"base_optimizer": torch.optim.Adam},
    "MixSAM": {"momentum": 0.9},
    "VariationalSAM": {"base_optimizer": torch.optim.AdamW},
    "MFVI": {"momentum": 0.9},
    "TRACER": {"rho": 0.01},
    "TRACER adam": {"rho": 0.01, "base_optimizer": torch.optim.Adam, "eps": 1e-4},
    "TRACER exact": {"rho": 0.01, "curvature": "exact"},
    "SAM wrapped": {"base_optimizer": torch.optim.RMSprop, "eps": 1e-3},
    "SAM amsgrad": {"base_optimizer": torch.optim.Adam, "amsgrad": True},
}
HALVES = [name for name in METHODS if "exact" not in name]
methods = pytest.mark.parametrize("method", METHODS)


def make(method: str, model: nn.Module, **options: Any) -> SharpnessAware:
    """The optimizer of a row of the table."""
    cls: type[SharpnessAware] = getattr(sharpkern, method.split()[0])
    return cls(model.parameters(), **{"lr": 0.05, **METHODS[method], **options})  # type: ignore[arg-type]


class Task:
    """A network, data, and the loss, all from one seed."""

    def __init__(self, autocast: torch.dtype | None = None, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(9, 33), nn.Tanh(), nn.Linear(33, 4))
        self.inputs, self.labels = torch.randn(64, 9), torch.randint(4, (64,))
        self.autocast = autocast

    def loss(self) -> Tensor:
        """The mean loss over the data."""
        with torch.autocast("cpu", dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            outputs = self.model(self.inputs)
        return cross_entropy(outputs.float(), self.labels)

    def weights(self) -> list[Tensor]:
        """Copies."""
        return [p.detach().clone() for p in self.model.parameters()]


def closure(
    task: Task, optimizer: SharpnessAware, scaler: GradScaler | None, exact: bool = False
) -> Callable[[], Tensor]:
    """As users write it."""

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss()
        (loss if scaler is None else scaler.scale(loss)).backward(create_graph=exact)
        return loss.detach()

    return run


def halves(task: Task, optimizer: SharpnessAware, scaler: GradScaler | None) -> None:
    """One step in two halves."""
    for half in (optimizer.first_step, optimizer.second_step):
        loss = task.loss()
        (loss if scaler is None else scaler.scale(loss)).backward()
        half(zero_grad=True)


def train(task: Task, optimizer: SharpnessAware, scaler: GradScaler | None, steps: int, style: str) -> list[float]:
    """Some steps, with the losses of the closure style."""
    exact = optimizer.param_groups[0].get("curvature") == "exact"
    losses = []
    for _ in range(steps):
        if style == "closure":
            losses.append(float(optimizer.step(closure(task, optimizer, scaler, exact))))
        else:
            halves(task, optimizer, scaler)
        if scaler is not None:
            scaler.update()
    return losses


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """The backends of the CPU."""
    return str(request.param)


@pytest.mark.filterwarnings("ignore:Using backward.* with create_graph=True:UserWarning")
@pytest.mark.parametrize(
    ("method", "style"), [*((m, "closure") for m in METHODS), *((m, "halves") for m in HALVES)], ids=str
)
def test_scaled_losses_give_the_same_bits(method: str, style: str, backend: str) -> None:
    # a power of two changes no bit of a float32 that stays normal, and grows and shrinks on the way
    one, two = Task(), Task()
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    train(one, make(method, one.model, backend=backend), None, 50, style)
    train(two, make(method, two.model, backend=backend, scaler=scaler), scaler, 50, style)
    assert scaler.get_scale() > 2.0**10
    assert all(map(torch.equal, one.weights(), two.weights()))


@pytest.mark.parametrize("style", ["closure", "halves"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["SAM", "ASAM", "FisherSAM", "MixSAM", "VariationalSAM"])
def test_autocast_is_near_float32(method: str, dtype: torch.dtype, style: str) -> None:
    one, two = Task(), Task(dtype)
    scaler = GradScaler("cpu") if dtype == torch.float16 else None
    before = float(one.loss().detach())
    train(one, make(method, one.model), None, 50, style)
    train(two, make(method, two.model, scaler=scaler), scaler, 50, style)
    wanted = torch.cat([w.flatten() for w in one.weights()])
    moved = (wanted - torch.cat([w.flatten() for w in Task().weights()])).norm()
    error = (torch.cat([w.flatten() for w in two.weights()]) - wanted).norm()
    assert float(one.loss().detach()) < before - 0.1  # it trains
    bound = 0.002 if dtype == torch.float16 else 0.015
    assert error < bound * moved * (15 if method == "VariationalSAM" else 1)  # it moves with AdamW, ten times as far


class Overflow(torch.autograd.Function):
    """Passes values on, and makes a gradient infinite in the backward passes with these numbers."""

    passes: tuple[int, ...] = ()
    count = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A copy."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """The gradient, or infinity."""
        Overflow.count += 1
        return torch.full_like(g, float("inf")) if Overflow.count in Overflow.passes else g


class Overflowing(Task):
    """A task whose gradients overflow in some passes."""

    def __init__(self, passes: tuple[int, ...]) -> None:
        super().__init__()
        Overflow.passes, Overflow.count = passes, 0

    def loss(self) -> Tensor:
        """As there."""
        return Overflow.apply(super().loss())  # type: ignore[no-any-return]


def base_state(optimizer: SharpnessAware) -> dict[int, dict[str, Tensor]]:
    """That of the base update, copied. What a covariance keeps moves in the first pass, if that was finite."""
    saved = copy.deepcopy(optimizer.state_dict())["state"]
    return {i: {k: x for k, x in s.items() if k not in {"fisher", "covariance"}} for i, s in saved.items()}


def same(x: Any, y: Any) -> bool:
    """Whether two nested structures are equal bit for bit."""
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(map(same, x, y))
    return torch.equal(x, y) if isinstance(x, Tensor) else x == y


@pytest.mark.parametrize("style", ["closure", "halves"])
@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("method", HALVES)
def test_an_infinity_skips_the_step_and_backs_the_scale_off(method: str, which: str, style: str, backend: str) -> None:
    one_pass = getattr(sharpkern, method.split()[0]).backward_passes() == 1
    if one_pass and which == "first":
        pytest.skip("there is no first pass")
    passes = 1 if one_pass and style == "closure" else 2
    bad = 3 * passes + (1 if which == "first" or passes == 1 else 2)
    task, scaler = Overflowing((bad,)), GradScaler("cpu", init_scale=4.0)
    optimizer = make(method, task.model, backend=backend, scaler=scaler)
    train(task, optimizer, scaler, 3, style)
    weights, state = task.weights(), base_state(optimizer)
    train(task, optimizer, scaler, 1, style)
    assert Overflow.count >= bad
    assert all(map(torch.equal, weights, task.weights()))
    assert scaler.get_scale() == pytest.approx(2.0)
    assert same(state, base_state(optimizer))
    train(task, optimizer, scaler, 2, style)
    assert not any(map(torch.equal, weights, task.weights()))
    assert scaler.get_scale() == pytest.approx(2.0)


def test_every_overflow_backs_off_once() -> None:
    task, scaler = Overflowing((1, 2, 5, 8)), GradScaler("cpu", init_scale=64.0)
    optimizer = make("SAM", task.model, scaler=scaler)
    scales = []
    for _ in range(5):  # passes 1 and 2, 3 and 4, 5 and 6, 7 and 8, 9 and 10
        train(task, optimizer, scaler, 1, "closure")
        scales.append(scaler.get_scale())
    assert scales == [32.0, 32.0, 16.0, 8.0, 8.0]


def test_gradients_that_overflow_float16_find_their_scale() -> None:
    task = Task(torch.float16)
    scaler = GradScaler("cpu", init_scale=2.0**40)
    optimizer = make("FisherSAM", task.model, scaler=scaler)
    before = task.weights()
    train(task, optimizer, scaler, 40, "closure")
    assert scaler.get_scale() < 2.0**30
    assert not any(map(torch.equal, before, task.weights()))
    assert all(bool(w.isfinite().all()) for w in task.weights())


def test_float16_weights_with_masters() -> None:
    # torch's GradScaler refuses float16 gradients; here they are unscaled in float32
    one, two = Task(), Task()
    one.model.half()
    two.model.half()
    one.inputs, two.inputs = one.inputs.half(), two.inputs.half()
    scaler = GradScaler("cpu", init_scale=8.0)
    train(one, make("SAM", one.model, master_weights=True), None, 20, "closure")
    train(two, make("SAM", two.model, master_weights=True, scaler=scaler), scaler, 20, "closure")
    for x, y in zip(one.weights(), two.weights(), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)


def test_a_scaler_that_is_off_does_nothing() -> None:
    one, two = Task(), Task()
    scaler = GradScaler("cpu", enabled=False)
    train(one, make("FisherSAM", one.model), None, 5, "closure")
    train(two, make("FisherSAM", two.model, scaler=scaler), scaler, 5, "closure")
    assert all(map(torch.equal, one.weights(), two.weights()))


def test_the_scaler_may_come_later_and_go() -> None:
    one, two = Task(), Task()
    plain, scaled = make("SAM", one.model), make("SAM", two.model)
    scaler = GradScaler("cpu")
    for chosen in (None, scaler, None):
        train(one, plain, None, 3, "halves")
        scaled.scaler = chosen
        train(two, scaled, chosen, 3, "halves")
    assert all(map(torch.equal, one.weights(), two.weights()))
    with pytest.raises(TypeError, match=r"wanted a torch\.amp\.GradScaler"):
        scaled.scaler = 1024.0  # type: ignore[assignment]
    two.loss().backward()
    scaled.first_step()
    with pytest.raises(RuntimeError, match="setting scaler wants the weights themselves"):
        scaled.scaler = scaler
    scaled.restore()


def test_diagnostics_are_unscaled() -> None:
    one, two = Task(), Task()
    scaler = GradScaler("cpu", init_scale=2.0**12)
    plain, scaled = make("FisherSAM", one.model), make("FisherSAM", two.model, scaler=scaler)
    train(one, plain, None, 1, "closure")
    train(two, scaled, scaler, 1, "closure")
    for name, wanted in plain.diagnostics().items():
        torch.testing.assert_close(scaled.diagnostics()[name], wanted, msg=name)
    for x, y in zip(plain.covariance(), scaled.covariance(), strict=True):
        assert torch.equal(x, y)


def test_m_sharpness_with_a_scaler() -> None:
    one, two = Task(), Task()
    scaler = GradScaler("cpu", init_scale=2.0**12)
    plain, scaled = make("SAM", one.model), make("SAM", two.model, scaler=scaler)
    for _ in range(3):
        sharpkern.m_sharpness(plain, [closure(one, plain, None)] * 3)
        sharpkern.m_sharpness(scaled, [closure(two, scaled, scaler)] * 3)
        scaler.update()
    assert all(map(torch.equal, one.weights(), two.weights()))


# Misuse -----------------------------------------------------------------------------------------------------------


def test_a_forgotten_update_is_told() -> None:
    task, scaler = Task(), GradScaler("cpu")
    optimizer = make("SAM", task.model, scaler=scaler)
    train(task, optimizer, scaler, 1, "closure")
    run = closure(task, optimizer, scaler)
    optimizer.step(run)
    with pytest.raises(RuntimeError, match=r"call scaler.update\(\) after every step"):
        optimizer.step(run)
    optimizer.zero_grad()
    scaler.update()
    train(task, optimizer, scaler, 1, "halves")  # and all goes on


@pytest.mark.parametrize("given", [True, False])
def test_scaler_step_says_what_to_do(given: bool) -> None:
    task, scaler = Task(), GradScaler("cpu")
    optimizer = make("SAM", task.model, scaler=scaler if given else None)
    before = task.weights()
    for _ in range(2):
        scaler.scale(task.loss()).backward()
        with pytest.raises(RuntimeError, match=r"call optimizer.step\(closure\) and scaler.update\(\)"):
            scaler.step(optimizer, closure(task, optimizer, scaler))
    assert all(map(torch.equal, before, task.weights()))


@pytest.mark.parametrize("failing", [1, 2])
def test_an_exception_in_the_closure_restores(failing: int) -> None:
    task, scaler = Task(), GradScaler("cpu")
    optimizer = make("SAM", task.model, scaler=scaler)
    run, calls = closure(task, optimizer, scaler), 0

    def fails() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyError("mine")
        return run()

    before = task.weights()
    with pytest.raises(KeyError, match="mine"):
        optimizer.step(fails)
    assert all(map(torch.equal, before, task.weights()))
    train(task, optimizer, scaler, 1, "closure")


def test_evolution_strategies_and_others_refuse() -> None:
    task, scaler = Task(), GradScaler("cpu")
    with pytest.raises(ValueError, match="EvolutionStrategies has no scaler"):
        sharpkern.EvolutionStrategies(task.model.parameters(), scaler=scaler, lr=0.1)
    with pytest.raises(TypeError, match=r"wanted a torch\.amp\.GradScaler"):
        sharpkern.SAM(task.model.parameters(), scaler=2.0, lr=0.1)


def test_pickle_and_deepcopy_take_the_scaler_along() -> None:
    task, scaler = Task(), GradScaler("cpu", init_scale=2.0**5)
    optimizer = make("SAM", task.model, scaler=scaler, max_norm=0.5)
    train(task, optimizer, scaler, 2, "closure")
    for taken in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert taken.scaler is not None
        assert taken.scaler is not scaler
        assert taken.scaler.get_scale() == scaler.get_scale()


@pytest.mark.parametrize("style", ["step", "halves", "perturbed", "passes", "strategies"])
def test_autocast_around_both_passes_does_not_reuse_the_casts_of_w(style: str) -> None:
    """autocast keeps the weights that it has cast for as long as it lasts; those of w are none of w + ε."""
    losses: dict[bool, list[Tensor]] = {}
    for outside in (False, True):
        torch.manual_seed(0)
        model, inputs, seen = nn.Linear(20, 3), torch.randn(8, 20), losses.setdefault(outside, [])
        kind = sharpkern.EvolutionStrategies if style == "strategies" else sharpkern.SAM
        optimizer = kind(model.parameters(), rho=1.0, lr=0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            for _ in range(2):
                one_step(optimizer, style, model, inputs, seen, inside=not outside)
    torch.testing.assert_close(losses[True], losses[False])
    assert len(set(map(float, losses[True]))) == len(losses[True])


def one_step(
    optimizer: SharpnessAware, style: str, model: nn.Module, inputs: Tensor, seen: list[Tensor], inside: bool
) -> None:
    """A step in one of the styles; the forward passes have a region of autocast of their own, or none."""

    def backward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=True) if inside else contextlib.nullcontext():
            loss: Tensor = model(inputs).square().mean()
        if torch.is_grad_enabled():
            loss.backward()
        seen.append(loss.detach())
        return loss

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward()

    if style in {"step", "strategies"}:
        optimizer.step(closure)
    elif style == "halves":
        closure()
        optimizer.first_step(zero_grad=True)
        backward()
        optimizer.second_step()
    elif style == "passes":
        optimizer.zero_grad()
        sharpkern.passes(optimizer, backward)
        optimizer.step()
    else:
        closure()
        with optimizer.perturbed():
            backward()
        inputs *= 0.5


def test_gradients_that_somebody_else_unscales_are_refused() -> None:
    task, scaler = Task(), GradScaler("cpu", init_scale=1024.0)
    optimizer = make("SAM", task.model, scaler=scaler)
    before = task.weights()
    scaler.scale(task.loss()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscaled twice"):
        optimizer.first_step()
    scaler.update()
    optimizer.zero_grad()
    scaler.scale(task.loss()).backward()
    optimizer.first_step(zero_grad=True)
    scaler.scale(task.loss()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscaled twice"):
        optimizer.second_step()
    assert all(torch.equal(a, b) for a, b in zip(task.weights(), before, strict=True))
    assert optimizer._perturbed is None


def test_a_scaler_that_was_not_updated_is_refused_before_the_weights_move() -> None:
    task, scaler = Task(), GradScaler("cpu", init_scale=1024.0)
    optimizer = make("SAM", task.model, scaler=scaler)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = scaler.scale(task.loss())
        loss.backward()
        return loss

    optimizer.step(closure)
    before = task.weights()
    with pytest.raises(RuntimeError, match=r"scaler\.update\(\)"):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(task.weights(), before, strict=True))
    scaler.update()
    optimizer.step(closure)
