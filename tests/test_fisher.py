"""Fisher diagonals against a loop over the examples, and against the Fisher matrices that are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import sharpkern
from sharpkern import fisher


def network() -> nn.Module:
    """Convolution, normalisation by example, a frozen layer, a tied one."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 5)
    )
    model.append(model[6])  # the same layer again
    model[1].requires_grad_(False)
    return model.double()


def loop(model: nn.Module, loss_fn: Callable[..., Tensor], inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """The definition: one backward pass an example."""
    params = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in params]
    for x, y in zip(inputs, targets, strict=True):
        for total, g in zip(sums, torch.autograd.grad(loss_fn(model(x[None]), y[None]), params), strict=True):
            total += g.square()
    return [total / len(inputs) for total in sums]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_per_example_is_the_loop(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = network(), torch.randn(7, 1, 6, 6).double(), torch.randint(5, (7,))
    size = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    monkeypatch.setattr(fisher, "CHUNK_BYTES", chunk * size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(fisher.per_example(model, cross_entropy, x, y), tuple(loop(model, cross_entropy, x, y)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of per-example gradients holds more examples than the chunk allows."""
    model = nn.Linear(50, 40)
    monkeypatch.setattr(fisher, "CHUNK_BYTES", 4 * sum(p.nbytes for p in model.parameters()))
    seen = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(len(target))
        return mse_loss(output, target)

    fisher.per_example(model, loss, torch.randn(11, 50), torch.randn(11, 40))
    assert len(seen) == 3  # 4, 4 and 3 examples
    assert set(seen) == {1}


def test_arguments_and_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a * b) @ self.weight

    model, a, b, y = Two(), torch.randn(5, 3), torch.randn(5, 3), torch.randn(5)
    by_hand = (2 * ((a * b) @ model.weight - y)[:, None] * a * b).square().mean(0).detach()
    for inputs in ((a, b), {"b": b, "a": a}):
        torch.testing.assert_close(fisher.per_example(model, mse_loss, inputs, y)[0], by_hand)


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(6, 3)
    for call in (lambda: fisher.per_example(model, mse_loss, x, x), lambda: fisher.sampled(model, x)):
        with pytest.raises(RuntimeError, match=r"BatchNorm1d '1' normalises with the statistics .* model\.eval\(\)"):
            call()
    model.eval()
    assert len(fisher.sampled(model, x)) == 4
    model[1] = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(RuntimeError, match="statistics of the batch"):
        fisher.sampled(model.eval(), x)


def test_bad_batches() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"first dimensions \[4, 5\]"):
        fisher.per_example(model, mse_loss, torch.randn(4, 3), torch.randn(5, 3))
    with pytest.raises(ValueError, match="the batch is empty"):
        fisher.per_example(model, mse_loss, torch.randn(0, 3), torch.randn(0, 3))
    with pytest.raises(ValueError, match="likelihood='poisson'"):
        fisher.sampled(model, torch.randn(4, 3), likelihood="poisson")
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        fisher.per_example(model.requires_grad_(False), mse_loss, torch.randn(4, 3), torch.randn(4, 3))


def test_sampled_labels_give_the_fisher_of_logistic_regression() -> None:
    """For logits W x the Fisher diagonal of W_kj is the mean of p_k (1 - p_k) x_j²."""
    torch.manual_seed(2)
    model, x = nn.Linear(3, 4, bias=False), torch.randn(6, 3)
    p = model(x).softmax(1).detach()
    exact = ((p * (1 - p))[:, :, None] * x.square()[:, None, :]).mean(0)
    draws = torch.stack([fisher.sampled(model, x, torch.Generator().manual_seed(i))[0] for i in range(400)])
    error = draws.std(0) / 400**0.5
    assert ((draws.mean(0) - exact).abs() < 5 * error).all()


def test_sampled_noise_gives_the_fisher_of_linear_regression() -> None:
    """For the mean W x the Fisher diagonal of W_kj is the mean of x_j²."""
    model, x = nn.Linear(3, 2, bias=False), torch.randn(6, 3)
    exact = x.square().mean(0).expand(2, 3)
    draws = torch.stack([
        fisher.sampled(model, x, torch.Generator().manual_seed(i), likelihood="gaussian")[0] for i in range(400)
    ])
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 400**0.5).all()


def test_labels_come_from_the_generator() -> None:
    model, x = nn.Linear(3, 4), torch.randn(50, 3)
    one, same, other = (fisher.sampled(model, x, torch.Generator().manual_seed(i))[0] for i in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_place_of_an_example_has_a_label() -> None:
    """Logits of shape (batch, classes, places): the likelihood of an example is the product over its places."""
    model = nn.Conv1d(2, 3, 1)
    assert [f.shape for f in fisher.sampled(model, torch.randn(4, 2, 6))] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("estimate", ["per_example", "sampled"])
def test_fisher_sam_takes_them(estimate: str, backend: str) -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
    calls: dict[str, Callable[[], Any]] = {
        "per_example": lambda: fisher.per_example(model, cross_entropy, x, y),
        "sampled": lambda: fisher.sampled(model, x, torch.Generator().manual_seed(1)),
    }
    optimizer = sharpkern.FisherSAM(model.parameters(), lr=0.1, eta=3.0, fisher=calls[estimate], backend=backend)
    wanted = calls[estimate]()
    cross_entropy(model(x), y).backward()
    optimizer.first_step()
    for s, f in zip(optimizer.covariance(), wanted, strict=True):
        torch.testing.assert_close(s, 1 / (1 + 3 * f))
    optimizer.restore()


@pytest.mark.parametrize("make", [sharpkern.FisherSAM, sharpkern.TRACER])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_a_fisher_diagonal_is_refreshed_every_k_steps(base: Any, make: Any, backend: str) -> None:
    """In between, in analysis and after a checkpoint it is not asked out of turn."""
    asked = 0

    def estimate() -> list[Tensor]:
        nonlocal asked
        asked += 1
        return [torch.full((3,), float(asked))]

    def build(p: nn.Parameter) -> Any:
        return make([p], base, lr=0.0, fisher=estimate, refresh=3, backend=backend)

    p = nn.Parameter(torch.randn(3))
    optimizer, seen = build(p), []
    for step in range(8):
        for half in (optimizer.first_step, optimizer.second_step):
            p.grad = torch.randn(3)
            half()
        seen.append(optimizer.state[p]["fisher"][0].item())
        if step % 3 == 0:
            p.grad = torch.randn(3)
            with optimizer.perturbed():
                pass
        if step == 4:
            saved = optimizer.state_dict()
            optimizer = build(p)
            optimizer.load_state_dict(saved)
    assert seen == [1, 1, 1, 2, 2, 2, 3, 3]
