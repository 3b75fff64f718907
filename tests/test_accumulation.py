"""One step of several micro-batches: one perturbation for all of them, and one a micro-batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles import (
    BASES,
    VARIANTS,
    build,
    closure_of,
    give_gradients,
    largest_gap,
    network_loss,
    network_weights,
    parameters,
    same,
    value_and_gradients,
)
from torch import Tensor

import sharpkern

SEED = 90
PARTS = 3
# Those whose second half is the base update alone.
TAKEN = [name for name in VARIANTS if "natural" not in name]
STYLES = ("halves", "m_sharpness", "passes")


def losses_of(step: int) -> list[Any]:
    """Return the losses of the parts of a step."""
    return [network_loss(SEED, PARTS * step + i) for i in range(PARTS)]


def take_step(optimizer: Any, params: Any, losses: Sequence[Any], style: str) -> None:
    """Take one step in one of the styles."""
    closures = [closure_of(optimizer, params, loss) for loss in losses]
    if style == "m_sharpness":
        sharpkern.m_sharpness(optimizer, closures)
    elif style == "halves":
        for i, closure in enumerate(closures):
            closure()
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step(zero_grad=True, accumulate=i < len(closures) - 1)
    else:
        optimizer.zero_grad()
        for loss in losses:
            sharpkern.passes(optimizer, backward_of(params, loss, len(losses)))
        optimizer.step()


def backward_of(params: Any, loss: Any, parts: int) -> Callable[[], Tensor]:
    """Return what trainers do for a micro-batch: they divide the loss, and zero nothing."""

    def backward() -> Tensor:
        value: Tensor = loss(params) / parts
        value.backward()
        return value.detach()

    return backward


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("base", ["sgd-dampening", "adamw"])
@pytest.mark.parametrize("variant", TAKEN)
def test_a_perturbation_for_each_part(variant: str, base: str, style: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, variant, base, params, backend)
    oracle = VARIANTS[variant].oracle(params, BASES[base][1](**BASES[base][2]))
    for step in range(4):
        sums = [torch.zeros_like(w) for w in oracle.w]
        for loss in losses_of(step):
            g = value_and_gradients(loss, oracle.w)[1]
            moved = oracle.ascend([x / PARTS for x in g] if style == "passes" else g)  # g² of the loss that there is
            sums = [x + g for x, g in zip(sums, value_and_gradients(loss, moved)[1], strict=True)]
        take_step(optimizer, params, losses_of(step), style)
        oracle.descend([x / PARTS for x in sums])
    assert largest_gap(params, oracle.w) < 2e-5


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_of_16_bits_are_added_up_in_float32(dtype: torch.dtype, style: str, backend: str) -> None:
    """With rho = 0 the step is that of the mean gradient, which here is a gradient in the dtype and so exact."""
    params, twins = (parameters([torch.ones(64, dtype=dtype)]) for _ in range(2))
    optimizer = sharpkern.SAM(params, lr=0.125, rho=0.0, master_weights=True, backend=backend)
    draw = torch.Generator().manual_seed(SEED)
    gradients = [torch.randn(64, generator=draw).to(dtype) for _ in range(4)]
    losses = [lambda w, g=g: (w[0].float() * g.float()).sum() for g in gradients]
    take_step(optimizer, params, losses, style)
    mean = sum(g.double() for g in gradients) / 4
    rounded = (
        torch.stack([g / 4 for g in gradients]).sum(0) if style == "passes" else mean.to(dtype)
    )  # autograd adds in the dtype
    with torch.no_grad():
        expected = twins[0].double() - 0.125 * rounded.double()
    tolerance = torch.finfo(dtype).eps if style == "passes" else 1e-6
    torch.testing.assert_close(optimizer.state[params[0]]["master"].double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("bad", range(PARTS))
def test_a_first_pass_that_is_not_finite_skips_the_whole_step(bad: int, base: str, style: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", base, params, backend)
    take_step(optimizer, params, losses_of(0), style)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    calls = [0] * PARTS

    def trouble(loss: Any, i: int) -> Any:
        def troubled(w: Any) -> Tensor:
            calls[i] += 1
            value: Tensor = loss(w)
            return value * math.inf if i == bad and calls[i] == 1 else value

        return troubled

    take_step(optimizer, params, [trouble(loss, i) for i, loss in enumerate(losses_of(1))], style)
    assert calls == [2] * PARTS
    assert same(params, before)
    after = optimizer.state_dict()
    for index, entries in state["state"].items():
        assert all(torch.equal(after["state"][index][name], value) for name, value in entries.items())
    take_step(optimizer, params, losses_of(2), style)
    assert not same(params, before)
    assert all(p.isfinite().all() for p in params)


def test_gradients_that_only_some_parts_have(backend: str) -> None:
    """The mean counts a missing gradient as 0, and without any the parameter is not touched."""
    params = parameters([torch.ones(3), torch.ones(2), torch.ones(4)])
    optimizer = sharpkern.SAM(params, lr=0.5, weight_decay=0.1, rho=0.1, backend=backend)
    for part in range(2):
        for half in (optimizer.first_step, lambda part=part: optimizer.second_step(accumulate=part == 0)):
            optimizer.zero_grad()
            params[0].grad = torch.full((3,), 1.0 + part)
            if part == 0:
                params[1].grad = torch.full((2,), 4.0)
            half()
    assert torch.allclose(params[0], torch.full((3,), 1 - 0.5 * (1.5 + 0.1)))
    assert torch.allclose(params[1], torch.full((2,), 1 - 0.5 * (2 + 0.1)))
    assert torch.equal(params[2], torch.ones(4))


def test_memory_of_the_sum_is_there_only_meanwhile(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "sgd", params, backend)
    give_gradients(params, SEED)
    optimizer.first_step()
    optimizer.second_step(accumulate=True)
    assert sum(x.nbytes for x in optimizer._parts._sums.values()) == 4 * sum(p.numel() for p in params)
    optimizer.step(closure_of(optimizer, params, network_loss(SEED, 0)))
    assert not optimizer._parts._sums


# Between the parts


def one_part(params: Any, optimizer: Any) -> None:
    """Accumulate one part."""
    give_gradients(params, SEED, 1)
    optimizer.first_step()
    give_gradients(params, SEED, 2)
    optimizer.second_step(accumulate=True)


BETWEEN: dict[str, Callable[[Any], Any]] = {
    "state_dict()": lambda optimizer: optimizer.state_dict(),
    "load_state_dict()": lambda optimizer: optimizer.load_state_dict({}),
    "add_param_group()": lambda optimizer: optimizer.add_param_group({"params": [torch.zeros(2)]}),
    "a copy of the optimizer": copy.deepcopy,
    "passes()": lambda optimizer: sharpkern.passes(optimizer, lambda: None),
    "setting scaler": lambda optimizer: setattr(optimizer, "scaler", None),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_wants_a_whole_step_says_so(what: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "sgd-momentum", params, backend)
    one_part(params, optimizer)
    with pytest.raises(RuntimeError, match="wants a whole step and 1 part") as error:
        BETWEEN[what](optimizer)
    assert str(error.value).startswith(what)


def test_restore_gives_up_the_step_and_perturb_does_not(backend: str) -> None:
    params = parameters(network_weights(SEED))
    before = [p.detach().clone() for p in params]
    optimizer = build(sharpkern, "sam", "sgd-momentum", params, backend)
    one_part(params, optimizer)
    with optimizer.perturbed():
        assert not same(params, before)
    assert same(params, before)
    with pytest.raises(RuntimeError, match="wants a whole step"):
        optimizer.state_dict()
    optimizer.restore()
    optimizer.state_dict()
    with pytest.raises(RuntimeError, match="wants perturbed weights"):
        optimizer.restore()
    one_part(params, optimizer)
    optimizer.first_step()
    optimizer.restore()
    optimizer.state_dict()
    assert same(params, before)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("call", range(2 * PARTS))
def test_an_exception_in_any_pass_restores_and_the_next_step_starts_anew(call: int, style: str, backend: str) -> None:
    params, twins = (parameters(network_weights(SEED)) for _ in range(2))
    optimizer, other = (build(sharpkern, "asam", "adamw", p, backend) for p in (params, twins))
    before, calls = [p.detach().clone() for p in params], 0

    def failing(loss: Any) -> Any:
        def fail(w: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 1:
                raise KeyError("of the user")
            return loss(w)

        return fail

    with pytest.raises(KeyError, match="of the user"):
        take_step(optimizer, params, [failing(loss) for loss in losses_of(0)], style)
    if style == "halves" and (optimizer._perturbed or optimizer._parts.count):
        optimizer.restore()  # nobody else can know there
    assert same(params, before)
    for p, steps in ((params, optimizer), (twins, other)):
        take_step(steps, p, losses_of(1), style)
    assert same(params, twins)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (sharpkern.MFVI, {}),
        (sharpkern.TRACER, {}),
        (sharpkern.FisherSAM, {"natural_gradient": True}),
        (sharpkern.EvolutionStrategies, {}),
    ],
)
def test_methods_whose_g2_cannot_be_averaged_refuse(make: Any, options: dict[str, Any], backend: str) -> None:
    params = parameters(network_weights(SEED))
    before = [p.detach().clone() for p in params]
    optimizer = make(params, lr=0.1, backend=backend, **options)
    closure = closure_of(optimizer, params, network_loss(SEED, 0))
    wanted = f"{make.__name__} wants each of them with its own perturbation"
    with pytest.raises(ValueError, match=wanted):
        sharpkern.m_sharpness(optimizer, [closure, closure])
    with pytest.raises(ValueError, match=wanted):
        sharpkern.passes(optimizer, closure)
    if make is not sharpkern.EvolutionStrategies:
        give_gradients(params, SEED)
        optimizer.first_step()
        with pytest.raises(ValueError, match=wanted):
            optimizer.second_step(accumulate=True)
    assert same(params, before)
    optimizer.state_dict()


def test_a_sparse_gradient_gives_up_the_parts(backend: str) -> None:
    params = parameters([torch.ones(4, 2)])
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend)
    one_part(params, optimizer)
    give_gradients(params, SEED, 3)
    optimizer.first_step()
    params[0].grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="is sparse"):
        optimizer.second_step(accumulate=True)
    assert torch.equal(params[0], torch.ones(4, 2))
    optimizer.state_dict()


# One perturbation a micro-batch and the rest of the options


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("base", ["SGD", "Adam", "RMSprop"])
def test_clipping_is_of_the_mean(base: str, style: str, backend: str) -> None:
    params, twins = (parameters(network_weights(SEED)) for _ in range(2))
    optimizer = sharpkern.SAM(params, getattr(torch.optim, base), lr=0.1, rho=0.1, max_norm=0.01, backend=backend)
    other = sharpkern.SAM(twins, getattr(torch.optim, base), lr=0.1, rho=0.1, backend=backend)
    for step in range(3):
        take_step(optimizer, params, losses_of(step), style)
        other.zero_grad()
        for loss in losses_of(step):
            sharpkern.passes(other, backward_of(twins, loss, PARTS))
        torch.nn.utils.clip_grad_norm_(twins, 0.01)
        other.step()
    assert largest_gap(params, twins) < 1e-5


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_passes_with_a_scaler_of_the_trainer_and_of_the_optimizer(own: bool, clipped: bool, backend: str) -> None:
    params, twins = (parameters(network_weights(SEED)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    optimizer = build(sharpkern, "asam", "adamw", params, backend, scaler=scaler if own else None)
    other = build(sharpkern, "asam", "adamw", twins, backend)

    def scaled(loss: Any) -> Callable[[], None]:
        return lambda: scaler.scale(loss(params) / PARTS).backward()

    for step in range(4):
        optimizer.zero_grad()
        for loss in losses_of(step):
            sharpkern.passes(optimizer, scaled(loss))
        if own:
            optimizer.step()
        else:
            if clipped:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
        take_step(other, twins, losses_of(step), "passes")
    assert round(scaler.get_scale()) == 4096
    assert largest_gap(params, twins) < 1e-5

    before = [p.detach().clone() for p in params]
    sharpkern.passes(optimizer, lambda: (scaler.scale(network_loss(SEED, 0)(params)) * math.inf).backward())
    if own:
        optimizer.step()
    else:
        scaler.step(optimizer)
    scaler.update()
    assert round(scaler.get_scale()) == 2048
    assert same(params, before)


def test_random_sam_draws_noise_for_each_part(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = sharpkern.RandomSAM(params, lr=0.1, rho=0.3, backend=backend)
    for style in STYLES:
        seen: list[list[Tensor]] = []

        def loss(w: Any, seen: list[list[Tensor]] = seen) -> Tensor:
            seen.append([x.detach().clone() for x in w])
            return network_loss(SEED, 0)(w)

        if style == "halves":
            for part in range(3):
                optimizer.first_step(zero_grad=True)
                loss(params).backward()
                optimizer.second_step(accumulate=part < 2)
        else:
            take_step(optimizer, params, [loss] * 3, style)
        assert len(seen) == 3
        assert len({float(x[0].sum()) for x in seen}) == 3


def test_a_step_without_closure_wants_passes_before_it(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "sgd", params, backend)
    sharpkern.passes(optimizer, backward_of(params, network_loss(SEED, 0), 1))
    with optimizer.perturbed():
        pass
    optimizer.step()
    with pytest.raises(RuntimeError, match="wants a closure"):
        optimizer.step()
    sharpkern.passes(optimizer, backward_of(params, network_loss(SEED, 0), 1))
    give_gradients(params, SEED)
    optimizer.first_step()
    optimizer.restore()
    with pytest.raises(RuntimeError, match="wants a closure"):
        optimizer.step()


def test_a_closure_after_passes_that_were_dropped_makes_a_whole_step(backend: str) -> None:
    params, twins = (parameters(network_weights(SEED)) for _ in range(2))
    optimizer, other = (build(sharpkern, "sam", "sgd", p, backend) for p in (params, twins))
    sharpkern.passes(optimizer, backward_of(params, network_loss(SEED, 0), 1))
    for p, steps in ((params, optimizer), (twins, other)):
        steps.step(closure_of(steps, p, network_loss(SEED, 1)))
    assert same(params, twins)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
def test_a_scaler_of_the_optimizer_in_every_style(base: str, style: str, backend: str) -> None:
    params, twins = (parameters(network_weights(SEED)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    optimizer = build(sharpkern, "fisher-inverse", base, params, backend, scaler=scaler, max_norm=0.5)
    other = build(sharpkern, "fisher-inverse", base, twins, backend, max_norm=0.5)
    for step in range(4):
        take_step(optimizer, params, [lambda w, x=x: scaler.scale(x(w)) for x in losses_of(step)], style)
        scaler.update()
        take_step(other, twins, losses_of(step), style)
    assert round(scaler.get_scale()) == 2048
    assert largest_gap(params, twins) < 1e-5
    before, calls = [p.detach().clone() for p in params], 0

    def bad(w: Any) -> Tensor:
        nonlocal calls
        calls += 1
        value: Tensor = scaler.scale(network_loss(SEED, 0)(w))
        return value * math.inf if calls == 1 else value

    take_step(optimizer, params, [bad, *losses_of(0)], style)
    scaler.update()
    assert round(scaler.get_scale()) == 1024
    assert same(params, before)


def test_passes_that_fail_in_a_later_part_are_no_step(backend: str) -> None:
    """What `.grad` holds then is of no use, and `step()` does not take it."""
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "sgd-momentum", params, backend)
    sharpkern.passes(optimizer, lambda: network_loss(SEED, 0)(params).backward())

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sharpkern.passes(optimizer, broken)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step()
    assert same(params, before)
