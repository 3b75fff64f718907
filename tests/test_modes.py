"""torch.no_grad, torch.inference_mode and torch.func: what works with them, and clear errors where nothing can."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sharpkern


def network() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(4, 3)


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    return closure


def same(a: nn.Module, b: dict[str, Tensor]) -> bool:
    return all(torch.equal(x, b[name]) for name, x in a.state_dict().items())


def test_a_step_under_no_grad_is_a_step() -> None:
    x, weights = torch.randn(8, 4), []
    for mode in (torch.enable_grad, torch.no_grad):
        model = network()
        optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
        with mode():
            optimizer.step(closure_of(model, optimizer, x))
        weights.append(copy.deepcopy(model.state_dict()))
    assert same(model, weights[0])


@pytest.mark.parametrize("method", [sharpkern.SAM, sharpkern.RandomSAM, sharpkern.EvolutionStrategies])
def test_inference_mode_is_refused(method: Any) -> None:
    model = network()
    optimizer = method(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"step\(\) stands inside torch.inference_mode"):
        optimizer.step(closure_of(model, optimizer, torch.randn(2, 4)))
    assert same(model, before)
    assert not optimizer.state


def test_halves_in_inference_mode_are_refused() -> None:
    model = network()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
    closure = closure_of(model, optimizer, torch.randn(2, 4))
    before = copy.deepcopy(model.state_dict())
    closure()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        optimizer.first_step()
    assert same(model, before)
    optimizer.first_step()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        optimizer.second_step()
    optimizer.restore()
    assert same(model, before)


def test_evaluation_at_the_perturbed_weights_in_inference_mode() -> None:
    model = network()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
    x = torch.randn(2, 4)
    closure_of(model, optimizer, x)()
    before = copy.deepcopy(model.state_dict())
    with optimizer.perturbed(), torch.inference_mode():
        loss = model(x).square().mean()
    assert loss > model(x).square().mean()
    assert same(model, before)


def test_a_compiled_step_in_inference_mode_is_refused() -> None:
    model = network()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    closure_of(model, optimizer, torch.randn(2, 4))()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        torch.compile(optimizer.first_step, backend="eager", fullgraph=True)()
    assert same(model, before)


def test_parameters_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3,\) was made in torch.inference_mode"):
        sharpkern.SAM([p])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
def test_a_step_inside_a_transform_is_refused(transform: Any) -> None:
    model = network()
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())

    def f(x: Tensor) -> Tensor:
        optimizer.step(closure_of(model, optimizer, x))
        return model(x).square().mean()

    with pytest.raises(RuntimeError, match=r"step\(\) stands inside a transform of torch.func"):
        transform(f)(torch.randn(2, 4))
    assert same(model, before)


def test_parameters_of_a_transform_are_refused() -> None:
    def f(w: Tensor) -> Tensor:
        sharpkern.SAM([w], lr=0.1)
        return w.sum()

    with pytest.raises(ValueError, match=r"shape \(3,\) is a tensor inside a transform of torch.func"):
        torch.func.grad(f)(torch.ones(3))


def test_gradients_from_torch_func() -> None:
    """The loss is transformed, the step stands outside."""
    x, weights = torch.randn(8, 4), []
    for functional in (False, True):
        model = network()
        optimizer = sharpkern.ASAM(model.parameters(), lr=0.1, momentum=0.9)

        def loss(params: dict[str, Tensor], model: nn.Module = model) -> Tensor:
            return torch.func.functional_call(model, params, (x,)).square().mean()

        def gradients(model: nn.Module = model, functional: bool = functional, loss: Any = loss) -> None:
            named = dict(model.named_parameters())
            if not functional:
                loss(named).backward()
                return
            for name, g in torch.func.grad(loss)({n: p.detach() for n, p in named.items()}).items():
                named[name].grad = g

        for _ in range(3):
            gradients()
            optimizer.first_step(zero_grad=True)
            gradients()
            optimizer.second_step(zero_grad=True)
        weights.append(copy.deepcopy(model.state_dict()))
    assert same(model, weights[0])
