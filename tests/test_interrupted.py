"""Whatever stops a step, and wherever: w is w again, bit for bit, and the optimizer knows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import Params, give_gradients, parameters, same

import sharpkern
from sharpkern import ops

METHODS: dict[str, dict[str, Any]] = {"SAM": {}, "RandomSAM": {}, "FisherSAM": {"fisher": "average"}, "MFVI": {}}


def two_groups(method: str, backend: str, **options: Any) -> tuple[sharpkern.SharpnessAware, Params]:
    """Two lists of tensors, thus two launches an op."""
    params = parameters([torch.randn(37), torch.randn(5, 3)])
    groups = [{"params": [p]} for p in params]
    optimizer = getattr(sharpkern, method)(groups, backend=backend, lr=0.1, momentum=0.9, **options, **METHODS[method])
    return optimizer, params


def both_halves(optimizer: sharpkern.SharpnessAware) -> None:
    """A step with the gradients there are."""
    optimizer.first_step()
    optimizer.second_step()


def interrupting(function: Callable[..., Any], call: int, after: bool) -> Callable[..., Any]:
    """The function, but with Ctrl-C at one of its calls: before it did anything, or as it returns."""
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KeyboardInterrupt
        result = function(*args, **kwargs)
        if calls == call:
            raise KeyboardInterrupt
        return result

    return called


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("name", ["sq_norm", "ascend_", "descend_"])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_at_any_launch_gives_w_back(
    method: str, name: str, call: int, after: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first half the step is as if it had not begun; in the second the update of a list may be lost."""
    optimizer, params = two_groups(method, backend)
    twin, others = two_groups(method, backend)
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p)
    for o, ps in ((optimizer, params), (twin, others)):  # a step, so that w0 of it is at hand to be put back wrongly
        give_gradients(ps, 1)
        both_halves(o)
    before = [p.detach().clone() for p in params]
    give_gradients(params, 2)
    module = optimizer._plan.ops  # type: ignore[union-attr]
    monkeypatch.setattr(module, name, interrupting(getattr(module, name), call, after))
    passes = optimizer.perturbation.passes
    if name == "sq_norm" and passes == 1:
        pytest.skip("it has no norm")
    with pytest.raises(KeyboardInterrupt):
        both_halves(optimizer)
    monkeypatch.undo()
    assert optimizer._perturbed is None
    assert same(params, before)
    optimizer.state_dict()
    if name != "descend_" and method == "SAM":
        for o, ps in ((optimizer, params), (twin, others)):
            give_gradients(ps, 3)
            both_halves(o)
        assert same(params, others)


@pytest.mark.parametrize("method", ["SAM", "RandomSAM"])
def test_an_interrupt_that_the_kernel_returns_with(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python raises it before the call's next instruction; the C++ kernel has noted by then that w moved."""
    if reason := ops.load("native").why_not(torch.device("cpu")):
        pytest.skip(reason)
    optimizer, params = two_groups(method, "native")
    give_gradients(params, 1)
    optimizer.first_step()
    optimizer.second_step()
    before = [p.detach().clone() for p in params]

    class Table:
        """One whose kernel is interrupted."""

        def __init__(self, table: Any) -> None:
            self.table = table

        def __getattr__(self, name: str) -> Any:
            function = getattr(self.table, name)
            return interrupting(function, 1, True) if name == "ascend" else function

    handle: Any = optimizer._plan.tensors[1].handle  # type: ignore[union-attr]
    handle.table = Table(handle.table)
    give_gradients(params, 2)
    with pytest.raises(KeyboardInterrupt), optimizer.perturbed():
        pass
    assert optimizer._perturbed is None
    assert same(params, before)


def test_an_interrupt_of_evolution_strategies(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters([torch.randn(37)])
    optimizer = sharpkern.EvolutionStrategies(params, backend=backend, lr=0.1, in_place=False)
    optimizer.step(lambda: params[0].square().sum())
    before = [p.detach().clone() for p in params]
    module = optimizer._plan.ops  # type: ignore[union-attr]
    for call in (1, 2):
        monkeypatch.setattr(module, "ascend_", interrupting(module.ascend_, call, True))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(lambda: params[0].square().sum())
        monkeypatch.undo()
        assert same(params, before)


def test_a_warning_that_is_an_error_gives_w_back(backend: str) -> None:
    """That which says that weights of 16 bits swallow ε."""
    params = [torch.nn.Parameter((torch.randn(20000) * 0.05).bfloat16())]
    optimizer = sharpkern.SAM(params, backend=backend, rho=1e-3, lr=0.1)
    params[0].grad = torch.randn_like(params[0])
    before = [p.detach().clone() for p in params]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="swallow"):
            optimizer.first_step()
    assert optimizer._perturbed is None
    assert same(params, before)


def test_options_that_went_wrong_between_the_halves_give_w_back(backend: str) -> None:
    optimizer, params = two_groups("SAM", backend)
    before = [p.detach().clone() for p in params]
    give_gradients(params, 1)
    optimizer.first_step()
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.second_step()
    assert optimizer._perturbed is None
    assert same(params, before)
