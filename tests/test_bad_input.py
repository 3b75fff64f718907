"""Bad input gets an error that says what came, what was wanted and what to do, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import (
    Params,
    build,
    closure_of,
    give_gradients,
    network_loss,
    network_weights,
    parameters,
    same,
)
from torch import Tensor

import sharpkern

SEED = 60
CLASSES: dict[str, Any] = {"SAM": sharpkern.SAM, "ASAM": sharpkern.ASAM, "FisherSAM": sharpkern.FisherSAM}
BAD_NUMBERS = [-0.1, math.nan, math.inf, -math.inf]


def one() -> Params:
    """Return one parameter."""
    return parameters([torch.ones(3)])


# Options.


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("by_group", [False, True], ids=["default", "group"])
@pytest.mark.parametrize(
    ("name", "option"),
    [(n, "rho") for n in CLASSES] + [("ASAM", "eta"), ("FisherSAM", "eta")] + [(n, "lr") for n in CLASSES],
)
def test_numbers_out_of_range_are_refused(name: str, option: str, by_group: bool, value: float, backend: str) -> None:
    groups = [{"params": one(), option: value}] if by_group else one()
    more = {} if by_group else {option: value}
    with pytest.raises(ValueError, match=rf"(?s)(?i)({option}|learning rate).*{value}"):
        CLASSES[name](groups, torch.optim.SGD, backend=backend, **more)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("FisherSAM", {"damping": "reverse"}, r"damping.*reverse|reverse.*damping"),
        ("FisherSAM", {"damping": "reverse"}, "inverse.*additive|additive.*inverse"),
        ("FisherSAM", {"fisher": "mean"}, "mean"),
        ("FisherSAM", {"fisher": "callable"}, "callable"),
        ("FisherSAM", {"fisher": "mean"}, "batch.*average|average.*batch"),
        ("FisherSAM", {"fisher": "average", "beta": 1.5}, "beta.*1.5"),
        ("SAM", {"backend": "cublas"}, "cublas"),
        ("SAM", {"backend": "cublas"}, "reference.*native|native.*reference"),
        ("SAM", {"momentum": -1.0}, "momentum.*-1"),
        ("SAM", {"weight_decay": -1.0}, "weight_decay.*-1"),
    ],
)
def test_values_that_mean_nothing_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        CLASSES[name](one(), torch.optim.SGD, **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("name", "base", "option", "accepted"),
    [
        ("SAM", torch.optim.SGD, "roh", "rho"),
        ("SAM", torch.optim.SGD, "betas", "momentum"),
        ("SAM", torch.optim.Adam, "momentum", "betas"),
        ("SAM", torch.optim.SGD, "eta", "rho"),
        ("ASAM", torch.optim.AdamW, "damping", "eta"),
        ("FisherSAM", torch.optim.SGD, "adaptive", "fisher"),
        ("SAM", torch.optim.RMSprop, "momentun", "alpha"),
    ],
)
def test_unknown_options_are_named_with_those_that_exist(
    name: str, base: Any, option: str, accepted: str, backend: str
) -> None:
    with pytest.raises(TypeError, match=f"(?s){option}.*{accepted}"):
        CLASSES[name](one(), base, lr=0.1, backend=backend, **{option: 1.0})


def test_a_base_that_is_no_optimizer_class_is_refused(backend: str) -> None:
    params = one()
    for wrong in (torch.optim.SGD(params, lr=0.1), "SGD", torch.nn.Linear):
        with pytest.raises(TypeError, match=r"(?s)base_optimizer"):
            sharpkern.SAM(params, wrong, backend=backend)  # type: ignore[arg-type]


# Parameters.


def test_an_empty_list_of_parameters_is_refused(backend: str) -> None:
    for empty in (list[Tensor](), iter(list[Tensor]())):
        with pytest.raises(ValueError, match=r"(?i)empty"):
            sharpkern.SAM(empty, torch.optim.SGD, lr=0.1, backend=backend)


def test_a_parameter_in_two_groups_is_refused(backend: str) -> None:
    params = one()
    with pytest.raises(ValueError, match=r"(?i)more than one|two groups|twice"):
        sharpkern.SAM([{"params": params}, {"params": params}], torch.optim.SGD, lr=0.1, backend=backend)


def test_a_group_added_later_is_checked_and_refused_whole(backend: str) -> None:
    params, more = one(), one()
    optimizer = sharpkern.SAM(params, torch.optim.SGD, lr=0.1, backend=backend)
    for group in ({"params": more, "rho": -1.0}, {"params": params}, {"params": more, "lr": math.nan}):
        with pytest.raises(ValueError, match=r"rho|more than one|two groups|twice|lr|learning rate"):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    give_gradients(params, SEED)
    optimizer.first_step()
    optimizer.second_step()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_dtypes_without_arithmetic_are_refused(dtype: torch.dtype, backend: str) -> None:
    wrong = torch.ones(3, dtype=dtype)
    with pytest.raises(ValueError, match=f"(?s){dtype}"):
        sharpkern.SAM([*one(), wrong], torch.optim.SGD, lr=0.1, backend=backend)


def test_several_devices_are_refused(backend: str) -> None:
    elsewhere = torch.nn.Parameter(torch.ones(3, device="meta"))
    with pytest.raises((ValueError, RuntimeError), match=r"(?s)device.*meta|meta.*device"):
        sharpkern.SAM([*one(), elsewhere], torch.optim.SGD, lr=0.1, backend=backend)


# Calls in the wrong order. After each, the right calls end where they would have ended.


WRONG_CALLS: dict[str, tuple[bool, Callable[[Any], Any], str]] = {
    "first_step twice": (True, lambda o: o.first_step(), "second_step|restore"),
    "perturb after first_step": (True, lambda o: o.perturb(), "second_step|restore"),
    "perturbed after first_step": (True, lambda o: o.perturbed().__enter__(), "second_step|restore"),
    "step after first_step": (True, lambda o: o.step(lambda: torch.zeros(())), "second_step|restore"),
    "state_dict after first_step": (True, lambda o: o.state_dict(), "second_step|restore"),
    "load_state_dict after first_step": (True, lambda o: o.load_state_dict({}), "second_step|restore"),
    "second_step without first_step": (False, lambda o: o.second_step(), "first_step"),
    "restore without perturb": (False, lambda o: o.restore(), "perturb|first_step"),
    "step without a closure": (False, lambda o: o.step(), "closure"),
    "step with None": (False, lambda o: o.step(None), "closure"),
}


@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("name", WRONG_CALLS)
def test_calls_in_the_wrong_order_say_the_remedy_and_lose_nothing(name: str, base: str, backend: str) -> None:
    perturbed, call, remedy = WRONG_CALLS[name]
    runs = []
    for wrong in (False, True):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, "fisher-average", base, params, backend)
        for step in range(2):
            give_gradients(params, SEED, step, 1)
            if perturbed:
                optimizer.first_step()
            before = [p.detach().clone() for p in params]
            if wrong:
                with pytest.raises(RuntimeError, match=f"(?s){remedy}"):
                    call(optimizer)
            assert same(params, before)
            if not perturbed:
                optimizer.first_step()
            give_gradients(params, SEED, step, 2)
            optimizer.second_step()
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_perturb_and_restore_come_in_pairs(backend: str) -> None:
    params, before = parameters(network_weights(SEED)), network_weights(SEED)
    optimizer = build(sharpkern, "sam", "sgd", params, backend)
    give_gradients(params, SEED)
    optimizer.perturb()
    with pytest.raises(RuntimeError, match="restore"):
        optimizer.perturb()
    optimizer.restore()
    assert same(params, before)
    with pytest.raises(RuntimeError, match=r"perturb|first_step"):
        optimizer.restore()
    assert same(params, before)


# Closures that raise.


class BrokenError(Exception):
    """What a failing closure raises."""


@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("when", [1, 2])
def test_a_closure_that_raises_leaves_the_weights_and_a_usable_optimizer(when: int, base: str, backend: str) -> None:
    runs = []
    for broken in (False, True):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, "asam", base, params, backend)
        for step in range(3):
            good, calls = closure_of(optimizer, params, network_loss(SEED, step)), list[int]()
            before = [p.detach().clone() for p in params]

            def bad(good: Any = good, calls: list[int] = calls) -> Tensor:
                calls.append(1)
                value: Tensor = good()
                if len(calls) == when:
                    raise BrokenError("the disk is full")
                return value

            if broken:
                with pytest.raises(BrokenError, match="the disk is full"):
                    optimizer.step(bad)
                assert len(calls) == when
                assert same(params, before)
            optimizer.step(good)
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_a_given_fisher_that_raises_or_misfits_leaves_the_weights(backend: str) -> None:
    params, before = parameters(network_weights(SEED)), network_weights(SEED)
    answers: dict[str, Any] = {
        "few": lambda: [torch.ones(6, 5)],
        "shape": lambda: [torch.ones(2)] * 5,
        "raises": lambda: 1 / 0,
    }
    for name, fisher in answers.items():
        optimizer = sharpkern.FisherSAM(params, torch.optim.SGD, fisher=fisher, lr=0.1, backend=backend)
        give_gradients(params, SEED)
        with pytest.raises(ZeroDivisionError if name == "raises" else ValueError, match=r"(?i)zero|fisher"):
            optimizer.first_step()
        assert same(params, before)


def test_a_checkpoint_with_a_given_fisher_wants_it_given_again(backend: str) -> None:
    """A run that goes on without the callable would go on with the Fisher diagonal of the last step."""
    params, others = parameters(network_weights(SEED)), parameters(network_weights(SEED))
    donor = build(sharpkern, "fisher-given", "sgd", params, backend)
    donor.step(closure_of(donor, params, network_loss(SEED, 0)))
    optimizer = sharpkern.FisherSAM(others, torch.optim.SGD, lr=0.1, backend=backend)
    with pytest.raises((ValueError, RuntimeError), match=r"(?s)fisher.*callable|callable.*fisher"):  # ruff: ignore[pytest-raises-with-multiple-statements]
        optimizer.load_state_dict(donor.state_dict())
        optimizer.step(closure_of(optimizer, others, network_loss(SEED, 0)))
    assert same(others, network_weights(SEED))


# Sparse gradients.


def sparse(p: Tensor) -> Tensor:
    """Return a sparse gradient for this parameter."""
    return torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2, *p.shape[1:]), p.shape, check_invariants=True)


@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("when", [1, 2])
def test_sparse_gradients_are_refused_with_the_weights_restored(when: int, base: str, backend: str) -> None:
    runs = []
    for wrong in (False, True):
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, "sam", base, params, backend)
        before = [p.detach().clone() for p in params]
        give_gradients(params, SEED, 1)
        if wrong:
            if when == 2:
                optimizer.first_step()
            params[2].grad = sparse(params[2])
            with pytest.raises(RuntimeError, match=r"(?i)sparse"):
                optimizer.first_step() if when == 1 else optimizer.second_step()
            assert same(params, before)
        for step in range(2):
            optimizer.step(closure_of(optimizer, params, network_loss(SEED, step)))
        runs.append([p.detach() for p in params])
    assert same(*runs)


def test_a_sparse_embedding_is_refused_in_a_whole_step(backend: str) -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    before = [table.weight.detach().clone()]
    optimizer = sharpkern.SAM(table.parameters(), torch.optim.SGD, lr=0.1, backend=backend)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = table(torch.tensor([1, 4])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"(?i)sparse"):
        optimizer.step(closure)
    assert same([table.weight], before)


def test_a_group_is_not_added_to_perturbed_weights(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = sharpkern.SAM(params[:2], lr=0.1, backend=backend)
    give_gradients(params, SEED, 1)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="second_step"):
        optimizer.add_param_group({"params": params[2:]})
    optimizer.second_step()
    optimizer.add_param_group({"params": params[2:]})


def test_an_option_that_turns_bad_in_the_second_pass_leaves_the_weights(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend)
    before = [p.detach().clone() for p in params]
    loss, calls = network_loss(SEED, 0), []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.param_groups[0]["lr"] = 0.1 if len(calls) == 1 else -0.1
        value: Tensor = closure_of(optimizer, params, loss)()
        return value

    with pytest.raises(ValueError, match="lr"):
        optimizer.step(closure)
    assert same(params, before)


@pytest.mark.parametrize("grown", [False, True])
def test_a_parameter_of_another_size_at_its_old_place_is_not_taken_for_the_old(grown: bool, backend: str) -> None:
    """Nothing beyond it is written; torch's optimizers refuse its state, too."""
    room = torch.ones(4096)
    small, large = room[:10], room
    params = [torch.nn.Parameter(small if grown else large)]
    optimizer = sharpkern.SAM(params, lr=0.1, momentum=0.9, backend=backend)
    give_gradients(params, 1)
    optimizer.first_step()
    optimizer.second_step()
    params[0].data = large if grown else small
    params[0].grad = None
    before = room.clone()
    params[0].grad = torch.full_like(params[0], 5.0)
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step(lambda: None)
    assert same([room], [before])


def test_a_group_that_no_step_has_seen_has_no_covariance(backend: str) -> None:
    params = one()
    optimizer = sharpkern.ASAM(params, lr=0.1, backend=backend)
    give_gradients(params, 1)
    optimizer.first_step()
    optimizer.second_step()
    optimizer.add_param_group({"params": one()})
    with pytest.raises(RuntimeError, match="first pass"):
        optimizer.covariance()


def test_a_closure_that_returns_no_number_has_no_loss_gap(backend: str) -> None:
    params = one()
    optimizer = sharpkern.SAM(params, lr=0.1, backend=backend)

    def closure() -> tuple[Tensor, str]:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss, "more"

    assert optimizer.step(closure)[1] == "more"
    assert math.isnan(float(optimizer.diagnostics()["loss_gap"]))


def test_bases_that_want_matrices_get_them(backend: str) -> None:
    params = parameters([torch.ones(3, 4)])
    optimizer = sharpkern.SAM(params, torch.optim.Muon, lr=0.1, backend=backend)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        give_gradients(params, 1)
        optimizer.first_step()
        optimizer.second_step()
    assert not same(params, before)


def test_a_base_that_calls_its_closure_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="LBFGS calls its closure itself"):
        sharpkern.SAM(one(), torch.optim.LBFGS, lr=0.1)
