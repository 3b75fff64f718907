"""DistributedDataParallel with two processes: cases of `distributed_cases.py`."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_cases import (
    BASES,
    METHODS,
    assert_equal_on_both,
    batch,
    case,
    close,
    counted,
    network,
    own,
    refused,
    train,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sharpkern
from sharpkern import SharpnessAware

KINDS: tuple[dict[str, bool], ...] = ({}, {"gradient_as_bucket_view": True}, {"static_graph": True})


def loss_of(model: nn.Module, part: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss of a part of the batch."""
    return (model(part[0]) - part[1]).square().mean()


def closure_of(optimizer: SharpnessAware, model: nn.Module, part: tuple[Tensor, Tensor]) -> Any:
    """What a step takes."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, part)
        loss.backward()
        return loss

    return closure


@case
def every_method_is_that_of_one_process_and_ranks_stay_equal() -> None:
    for name, (method, options) in METHODS.items():
        for kind in KINDS:
            base, settings = BASES["adamw"]
            model, alone = DistributedDataParallel(network(), **kind), network()
            optimizer = method(model.parameters(), base, **settings, **options, model=model)
            wanted = method(alone.parameters(), base, **settings, **options)
            for trained, o, shared in ((model, optimizer, True), (alone, wanted, False)):
                train(trained, o, shared, range(1))
                if name != "EvolutionStrategies":
                    o.diagnostics()  # from here on gradients are copied: views of a bucket are written over
                train(trained, o, shared, range(1, 3))
            close(model.parameters(), alone.parameters())
            for p in model.parameters():
                assert_equal_on_both(p)
            if name != "EvolutionStrategies":
                figures, others = optimizer.diagnostics(), wanted.diagnostics()
                close([figures["grad_norm"]], [others["grad_norm"]], 1e-6)


def by_hand(method: str, base: str, number: int, nets: list[nn.Module], optimizers: list[Any]) -> None:
    """One step of m-sharpness over the halves of a batch, ε_i from the gradient of half i alone, in plain torch."""
    x, y = batch(number)
    net, plain = nets[0], optimizers[0]
    rho = {"SAM": 0.5, "ASAM": 0.5}[method]
    sums = [torch.zeros_like(p) for p in net.parameters()]
    for half in range(2):
        part = x.chunk(2)[half], y.chunk(2)[half]
        w = [p.detach().clone() for p in net.parameters()]
        s = [(p.abs() + 0.01) ** 2 if method == "ASAM" else torch.ones_like(p) for p in w]
        g = torch.autograd.grad(loss_of(net, part), list(net.parameters()))
        norm = sum((a * b * b).sum() for a, b in zip(s, g, strict=True)) ** 0.5
        with torch.no_grad():
            for p, a, b in zip(net.parameters(), s, g, strict=True):
                p += rho * a * b / norm
        g2 = torch.autograd.grad(loss_of(net, part), list(net.parameters()))
        with torch.no_grad():
            for p, before, total, b in zip(net.parameters(), w, sums, g2, strict=True):
                p.copy_(before)
                total += b / 2
    for p, total in zip(net.parameters(), sums, strict=True):
        p.grad = total
    plain.step()


@case
def per_rank_is_m_sharpness_with_a_part_a_rank() -> None:
    for method in ("SAM", "ASAM"):
        for base in BASES:
            for kind in KINDS:
                make, options = METHODS[method]
                torch_base, settings = BASES[base]
                model, alone = DistributedDataParallel(network(), **kind), network()
                optimizer = make(model.parameters(), torch_base, **settings, **options, per_rank=True, model=model)
                plain = torch_base(alone.parameters(), **settings)
                train(model, optimizer, True, range(3))
                for number in range(3):
                    by_hand(method, base, number, [alone], [plain])
                close(model.parameters(), alone.parameters())
                for p in model.parameters():
                    assert_equal_on_both(p)


@case
def per_rank_in_two_halves() -> None:
    one, other = (DistributedDataParallel(network()) for _ in range(2))
    whole_step, halves = (
        sharpkern.SAM(m.parameters(), rho=0.5, lr=0.1, momentum=0.9, per_rank=True, model=m) for m in (one, other)
    )
    for number in range(3):
        part = own(batch(number)[0]), own(batch(number)[1])
        whole_step.step(closure_of(whole_step, one, part))
        with other.no_sync():
            loss_of(other, part).backward()
        halves.first_step(zero_grad=True)
        loss_of(other, part).backward()
        halves.second_step(zero_grad=True)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert_equal_on_both(p)


@case
def per_rank_noise_differs_by_rank_and_follows_seed_and_rank() -> None:
    model = DistributedDataParallel(network())
    rank = dist.get_rank()
    optimizer = sharpkern.RandomSAM(model.parameters(), rho=1.0, seed=2**64 - 1, lr=0.1, per_rank=True, model=model)
    alone = network()
    wanted = sharpkern.RandomSAM(alone.parameters(), rho=1.0, seed=0 if rank else 2**64 - 1, lr=0.1)
    for o in (optimizer, wanted):
        o.perturb()
    close(model.parameters(), alone.parameters(), 0.0)
    optimizer.restore()
    mixed = sharpkern.MixSAM(model.parameters(), rho=1.0, lr=0.1, per_rank=True, model=model)
    for o in (optimizer, mixed):
        train(model, o, True, range(2))
        for p in model.parameters():
            assert_equal_on_both(p)
    assert optimizer.state_dict()["param_groups"][0]["draws"] == 2


@case
def per_rank_with_m_sharpness_takes_parts_of_parts() -> None:
    model = DistributedDataParallel(network())
    optimizer = sharpkern.SAM(model.parameters(), rho=0.5, lr=0.1, per_rank=True, model=model)
    x, y = (own(t) for t in batch(0))
    parts = [closure_of(optimizer, model, (x[i : i + 2], y[i : i + 2])) for i in (0, 2)]
    sharpkern.m_sharpness(optimizer, parts)
    for p in model.parameters():
        assert_equal_on_both(p)


@case
def a_first_pass_that_is_not_finite_on_one_rank_skips_the_step_on_all() -> None:
    for base in ("momentum", "rmsprop"):
        model = DistributedDataParallel(network())
        kind, settings = BASES[base]
        optimizer = sharpkern.SAM(model.parameters(), kind, **settings, per_rank=True, model=model)
        before = copy.deepcopy(model.module)
        x, y = (own(t).clone() for t in batch(0))
        broken = x.clone()
        if dist.get_rank() == 1:
            broken[0, 0] = float("nan")
        passes = iter([closure_of(optimizer, model, part) for part in ((broken, y), (x, y))])
        optimizer.step(lambda passes=passes: next(passes)())
        close(model.parameters(), before.parameters(), 0.0)
        train(model, optimizer, True, range(1))
        assert not torch.equal(next(model.parameters()), next(before.parameters()))


@case
def per_rank_adds_one_all_reduce_of_one_number() -> None:
    for per_rank in (False, True):
        model = DistributedDataParallel(network())
        optimizer = sharpkern.SAM(model.parameters(), lr=0.1, per_rank=per_rank, model=model)
        assert counted(functools.partial(train, model, optimizer, True, range(1))) == per_rank


@case
def per_rank_is_refused_where_ranks_would_part() -> None:
    model = DistributedDataParallel(network())
    params = list(model.parameters())
    for method, options in (
        (sharpkern.VariationalSAM, {}),
        (sharpkern.MFVI, {}),
        (sharpkern.TRACER, {}),
        (sharpkern.EvolutionStrategies, {}),
        (sharpkern.FisherSAM, {"fisher": "average"}),
        (sharpkern.FisherSAM, {"natural_gradient": True}),
        (sharpkern.MixSAM, {"covariance": sharpkern.covariance.Fisher(eta=1.0, beta=0.1)}),
    ):

        def make(method: Any = method, options: Any = options) -> object:
            return method(params, lr=0.1, per_rank=True, model=model, **options)

        refused(make, ValueError, "no longer have the same weights")
    refused(lambda: sharpkern.SAM(params, lr=0.1, per_rank=True), ValueError, "model is None")
    refused(lambda: sharpkern.SAM(params, lr=0.1, per_rank=True, model=network()), ValueError, "model is Net")
    refused(lambda: sharpkern.SAM(params, lr=0.1, per_rank=1.5, model=model), ValueError, "True or False")
    optimizer = sharpkern.MixSAM(params[:2], lr=0.1, per_rank=True, model=model)
    kept = sharpkern.covariance.Fisher(eta=1.0, beta=0.1)
    optimizer.add_param_group({"params": params[2:], "covariance": kept})
    refused(lambda: train(model, optimizer, True, range(1)), ValueError, "no longer have the same weights")
    sharpkern.FisherSAM(params, lr=0.1, per_rank=True, model=model)


@case
def an_error_in_the_second_pass_of_one_rank_leaves_its_weights_restored() -> None:
    model = DistributedDataParallel(network())
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1, per_rank=True, model=model)
    before = copy.deepcopy(model.module)

    def closure() -> Tensor:
        if optimizer._perturbed is not None:
            raise ZeroDivisionError
        return closure_of(optimizer, model, (own(batch(0)[0]), own(batch(0)[1])))()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    close(model.parameters(), before.parameters(), 0.0)
    train(model, optimizer, True, range(1))


@case
def statistics_of_each_rank_are_those_without_sam() -> None:
    """With rho = 0 weights are too. DDP may write the statistics, or leave each rank its own."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    for broadcast in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option has another name from torch 2.13 on
            model, twin = (DistributedDataParallel(copy.deepcopy(base), broadcast_buffers=broadcast) for _ in range(2))
        optimizer = sharpkern.SAM(model.parameters(), rho=0.0, lr=0.1, model=model)
        plain = torch.optim.SGD(twin.parameters(), lr=0.1)
        for number in range(4):
            part = tuple(own(t).float() for t in batch(number))
            optimizer.step(closure_of(optimizer, model, part))
            plain.zero_grad()
            loss_of(twin, part).backward()
            plain.step()
            close(model.state_dict().values(), twin.state_dict().values(), 1e-6)


def accumulated_by_hand(net: nn.Module, plain: torch.optim.Optimizer, parts: list[tuple[Tensor, Tensor]]) -> None:
    """One step with the mean of the gradients of all parts, each taken at its own perturbation of radius 0.5."""
    params = list(net.parameters())
    sums = [torch.zeros_like(p) for p in params]
    for part in parts:
        g = torch.autograd.grad(loss_of(net, part), params)
        norm = sum(t.square().sum() for t in g) ** 0.5
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, t in zip(params, g, strict=True):
                p += 0.5 * t / norm
        for total, t in zip(sums, torch.autograd.grad(loss_of(net, part), params), strict=True):
            total += t / len(parts)
        with torch.no_grad():
            for p, t in zip(params, kept, strict=True):
                p.copy_(t)
    for p, total in zip(params, sums, strict=True):
        p.grad = total
    plain.step()


@case
def passes_of_accumulated_parts_make_one_gradient() -> None:
    """As trainers accumulate: ranks meet in the last second pass alone. Each part of each rank has its perturbation.

    A part that is not finite on one rank skips the step on both.
    """
    rank = dist.get_rank()
    for view in (False, True):
        model = DistributedDataParallel(network(), gradient_as_bucket_view=view)
        alone = network()
        optimizer = sharpkern.SAM(model.parameters(), rho=0.5, lr=0.1, momentum=0.9)
        plain = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)

        def step(
            parts: list[tuple[Tensor, Tensor]],
            bad: tuple[int, int] | None,
            model: nn.Module = model,
            optimizer: SharpnessAware = optimizer,
        ) -> None:
            optimizer.zero_grad()
            for i, part in enumerate(parts):
                scales = iter([math.inf if bad == (rank, i) else 0.5, 0.5])  # first and second pass, of two parts

                def backward(part: Any = part, scales: Any = scales) -> None:
                    (next(scales) * loss_of(model, part)).backward()

                with model.no_sync() if i == 0 else contextlib.nullcontext():
                    sharpkern.passes(optimizer, backward, model.no_sync)
            optimizer.step()

        for k in range(4):
            x, y = batch(k)
            parts = list(zip(x.chunk(4), y.chunk(4), strict=True))  # the same on both ranks, two for each
            step(parts[2 * rank : 2 * rank + 2], None)
            accumulated_by_hand(alone, plain, parts)
            close(model.parameters(), alone.parameters())
            before = [p.detach().clone() for p in model.parameters()]
            step(parts[2 * rank : 2 * rank + 2], (k // 2, k % 2))
            close(model.parameters(), before, 0.0)
