"""What two processes do together, each a case; `test_distributed.py` starts them and reads what became of each.

Run as a script: rank, folder, and the names of cases if not all are wanted. What is sharded is compared with one
process that has all of the data and the parameters, which each of the two is beside.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import sharpkern
from sharpkern import SharpnessAware

TIMEOUT = timedelta(seconds=60)  # for one collective
CASES: list[Callable[[], None]] = []
BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01}),  # wrapped
}
Make = Callable[..., SharpnessAware]


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Adds a case."""
    CASES.append(function)
    return function


class Net(nn.Module):
    """Sizes that two processes cannot share evenly, a bias of one element, and no multiple of 8."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(5, 14), nn.Linear(14, 6), nn.Linear(6, 1)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """A number an example."""
        return self.out(torch.tanh(self.down(torch.tanh(self.up(x)))))


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> Net:
    """The same in every process."""
    torch.manual_seed(seed)
    return Net(dtype)


def batch(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Eight examples and what is wanted of them, the same in every process."""
    generator = torch.Generator().manual_seed(100 + number)
    return tuple(torch.randn(8, n, generator=generator).to(dtype) for n in (5, 1))  # type: ignore[return-value]


def own(x: Tensor) -> Tensor:
    """This process's half of a batch."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


# How a network is spread, and whether each process has its own part of the batch -------------------------------------


def fsdp(model: Net, mesh: DeviceMesh) -> bool:
    """Two groups of parameters, each cut along the first dimension."""
    fully_shard(model.down, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return True


def tensor_parallel(model: Net, mesh: DeviceMesh) -> bool:
    """One weight cut along each dimension, a replicated bias, and plain tensors beside them."""
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return False


def over(shape: tuple[int, int]) -> Callable[[Net, DeviceMesh], bool]:
    """Sharded over the first dimension of a mesh of two, tensor-parallel over the second."""

    def spread(model: Net, _: DeviceMesh) -> bool:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        tensor_parallel(model, mesh["tensor"])
        fully_shard(model, mesh=mesh["data"])
        return shape[0] == 2

    return spread


def hybrid(shape: tuple[int, int]) -> Callable[[Net, DeviceMesh], bool]:
    """Replicated over the first dimension of a mesh of two, sharded over the second."""

    def spread(model: Net, _: DeviceMesh) -> bool:
        fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))
        return True

    return spread


SPREADS = {
    "fsdp": fsdp,
    "tensor": tensor_parallel,
    "fsdp 2, tensor 1": over((2, 1)),
    "fsdp 1, tensor 2": over((1, 2)),
    "replicate 2, shard 1": hybrid((2, 1)),
    "replicate 1, shard 2": hybrid((1, 2)),
}

# Training ------------------------------------------------------------------------------------------------------------


def whole(x: Tensor) -> Tensor:
    """A tensor as one process has it."""
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def close(spread: Any, alone: Any, tolerance: float = 1e-9) -> None:
    """Two lists of tensors are the same but for rounding."""
    for x, y in zip(spread, alone, strict=True):
        torch.testing.assert_close(whole(x), whole(y), rtol=tolerance, atol=tolerance, equal_nan=True)


def train(model: nn.Module, optimizer: SharpnessAware, shared: bool, steps: range, **options: Any) -> list[Tensor]:
    """The losses of some steps; with `shared` each process has its half of the batch."""
    backward = optimizer.backward_passes() > 0
    losses = []
    for number in steps:
        x, y = (own(t) if shared else t for t in batch(number, next(model.parameters()).dtype))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            if backward:
                optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            if backward:
                loss.backward(**options)
            return loss

        losses.append(optimizer.step(closure).detach())
    return losses


def compare(
    method: Make, base: str, spread: str, steps: int = 4, tolerance: float = 1e-9, **options: Any
) -> tuple[SharpnessAware, SharpnessAware]:
    """Trains a spread network and one that is not; weights, state, s and figures are the same."""
    dtype = options.pop("dtype", torch.float64)
    kind, settings = BASES[base]
    optimizers = []
    nets = [network(dtype), network(dtype)]
    for model, spreads in zip(nets, (True, False), strict=True):
        shared = SPREADS[spread](model, world()) if spreads else False
        reshards = {"model": model} if method is sharpkern.EvolutionStrategies and spreads else {}
        optimizer = method(model.parameters(), kind, **settings, **options, **reshards)
        losses = train(model, optimizer, shared, range(steps))
        if spreads and method is sharpkern.EvolutionStrategies:
            assert_equal_on_both(losses[-1])
        optimizers.append(optimizer)
    close(nets[0].parameters(), nets[1].parameters(), tolerance)
    one, other = optimizers
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert one.state[p].keys() == other.state[q].keys()
        for name, value in one.state[p].items():
            assert isinstance(value, DTensor) == (isinstance(p, DTensor) and name != "step"), name
            close([value], [other.state[q][name]], tolerance)
    if method is not sharpkern.EvolutionStrategies:
        figures = [optimizer.diagnostics() for optimizer in optimizers]
        for name, value in figures[0].items():
            torch.testing.assert_close(value, figures[1][name], rtol=1e3 * tolerance, atol=1e-7, equal_nan=True)
        for s, p in zip(one.covariance(), nets[0].parameters(), strict=True):
            assert not isinstance(p, DTensor) or (isinstance(s, DTensor) and s.placements == p.placements)
        close(one.covariance(), other.covariance(), tolerance)
    return one, other


def world() -> DeviceMesh:
    """Both processes in a row."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def assert_equal_on_both(x: Tensor) -> None:
    """Both processes hold the same bits."""
    parts = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(parts, x.detach().contiguous())
    assert torch.equal(*parts)


def counted(run: Callable[[], object]) -> int:
    """How many all-reduces of one number a function calls: those of gradients have more."""
    calls, true = 0, dist.all_reduce

    def all_reduce(x: Tensor, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += x.numel() == 1
        return true(x, *args, **options)

    dist.all_reduce = all_reduce
    try:
        run()
    finally:
        dist.all_reduce = true
    return calls


def refused(run: Callable[[], object], kind: type[Exception], words: str) -> None:
    """A function raises an error that says this."""
    with pytest.raises(kind, match=re.escape(words)):
        run()


METHODS: dict[str, tuple[Make, dict[str, Any]]] = {
    "SAM": (sharpkern.SAM, {"rho": 0.5}),
    "ASAM": (sharpkern.ASAM, {"rho": 0.5}),
    "Fisher": (sharpkern.FisherSAM, {}),
    "Fisher average": (sharpkern.FisherSAM, {"fisher": "average", "natural_gradient": True}),
    "RandomSAM": (sharpkern.RandomSAM, {"rho": 1.0, "seed": 3}),
    "MixSAM": (sharpkern.MixSAM, {"rho": 1.0, "seed": 3}),
    "MFVI": (sharpkern.MFVI, {"rho": 1.0, "kl_weight": 0.01}),
    "VariationalSAM": (sharpkern.VariationalSAM, {"rho": 0.5, "kl_weight": 0.01}),
    "TRACER": (sharpkern.TRACER, {"rho": 0.01}),
    "EvolutionStrategies": (sharpkern.EvolutionStrategies, {"rho": 0.3, "pairs": 3, "learned": True}),
}


@case
def every_method_with_every_base_update_under_fsdp() -> None:
    for method, options in METHODS.values():
        for base in BASES:
            compare(method, base, "fsdp", **options)


@case
def every_method_is_the_same_in_the_reference() -> None:
    for method, options in METHODS.values():
        compare(method, "adamw", "fsdp", backend="reference", **options)


@case
def every_method_with_every_spread() -> None:
    for spread in SPREADS:
        for name in ("SAM", "ASAM", "Fisher average", "MixSAM", "MFVI", "TRACER", "EvolutionStrategies"):
            method, options = METHODS[name]
            compare(method, "momentum", spread, **options)
        compare(sharpkern.SAM, "rmsprop", spread, skip_nonfinite=True)


@case
def clipping_sees_the_whole_gradient() -> None:
    for spread in SPREADS:
        for base in ("momentum", "rmsprop"):
            compare(sharpkern.SAM, base, spread, max_norm=0.05, clip_value=0.03)


@case
def parts_of_a_step_with_a_scaler() -> None:
    """Two parts of a step, each with its own perturbation; one pass of one process overflows in the third step."""
    nets = [network(), network()]
    for model, spreads in zip(nets, (True, False), strict=True):
        shared = fsdp(model, world()) if spreads else False
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        optimizer = sharpkern.FisherSAM(model.parameters(), lr=0.1, momentum=0.9, scaler=scaler, max_norm=0.5)

        def closure(
            number: int, model: Any = model, optimizer: Any = optimizer, scaler: Any = scaler, shared: bool = shared
        ) -> Any:
            x, y = (own(t) if shared else t for t in batch(number))
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            overflows = number == 5 and (not shared or dist.get_rank() == 1)
            scaler.scale(loss * float("inf") if overflows else loss).backward()
            return loss.detach()

        for step in range(4):
            before = [whole(p).clone() for p in model.parameters()]
            sharpkern.m_sharpness(optimizer, [functools.partial(closure, 2 * step + part) for part in range(2)])
            scaler.update()
            moved = [not torch.equal(x, whole(p)) for x, p in zip(before, model.parameters(), strict=True)]
            assert moved == [step != 2] * len(moved)
        assert scaler.get_scale() == pytest.approx(32.0)
    close(nets[0].parameters(), nets[1].parameters())


@case
def in_float32_and_in_place() -> None:
    for spread in ("fsdp", "tensor"):
        compare(sharpkern.SAM, "momentum", spread, dtype=torch.float32, tolerance=1e-5)
        compare(sharpkern.EvolutionStrategies, "momentum", spread, in_place=True, pairs=2, rho=0.3)


@case
def sixteen_bits_with_masters_and_stochastic_rounding() -> None:
    """The random bits of a shard are those of the whole, so that weights differ where a last bit of g does."""
    for spread in ("fsdp", "tensor"):
        for options in ({"master_weights": True}, {"stochastic_rounding": True}):
            compare(sharpkern.RandomSAM, "momentum", spread, dtype=torch.bfloat16, tolerance=0.05, steps=2, **options)


@case
def noise_is_that_of_the_whole_bit_for_bit() -> None:
    """Whatever the spread and the backend, in pieces whose ends are no multiples of 8."""
    for backend in ("native", "reference"):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            alone = network(dtype)
            options = {"backend": backend, "rho": 3.0, "seed": 5, "stochastic_rounding": dtype == torch.bfloat16}
            sharpkern.RandomSAM(alone.parameters(), **options, lr=0.1).perturb()
            for spread in SPREADS.values():
                model = network(dtype)
                spread(model, world())
                optimizer = sharpkern.RandomSAM(model.parameters(), **options, lr=0.1)
                before = [whole(p).clone() for p in model.parameters()]
                optimizer.perturb()
                for p, q in zip(model.parameters(), alone.parameters(), strict=True):
                    assert torch.equal(whole(p), q.detach())
                optimizer.restore()
                for p, w in zip(model.parameters(), before, strict=True):
                    assert torch.equal(whole(p), w)


@case
def shards_of_any_dimension_and_layout_draw_their_noise() -> None:
    mesh = world()
    for shape in ((6, 5, 3), (3, 7, 9), (2, 3, 4, 5), (1, 17), (4, 1)):
        for dim in range(len(shape)):
            one = nn.Parameter(torch.zeros(shape))
            sharpkern.RandomSAM([nn.Parameter(torch.zeros(3)), one], rho=1.0, lr=0.1).perturb()
            spread = nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, [Shard(dim)]))
            sharpkern.RandomSAM([nn.Parameter(torch.zeros(3)), spread], rho=1.0, lr=0.1).perturb()
            scale = ((3 + one.numel()) / (3 + spread.numel())) ** 0.5
            assert scale == 1
            assert torch.equal(whole(spread), one.detach()), (shape, dim)


@case
def a_step_adds_one_all_reduce() -> None:
    for spread, wanted in (("fsdp", 1), ("tensor", 1), ("replicate 2, shard 1", 1), ("fsdp 1, tensor 2", 2)):
        for skip in (False, True):
            model = network()
            shared = SPREADS[spread](model, world())
            optimizer = sharpkern.SAM(model.parameters(), lr=0.1, skip_nonfinite=skip)
            train(model, optimizer, shared, range(1))
            calls = counted(functools.partial(train, model, optimizer, shared, range(1, 2)))
            assert calls == wanted * (1 + skip), (spread, skip, calls)
    model = network()
    fsdp(model, world())
    optimizer = sharpkern.RandomSAM(model.parameters(), lr=0.1)
    assert counted(lambda: train(model, optimizer, True, range(2))) == 0


@case
def a_step_communicates_nothing_else() -> None:
    for make, wanted in ((sharpkern.SAM, 1), (sharpkern.FisherSAM, 1), (sharpkern.RandomSAM, 0)):
        model = network()
        fsdp(model, world())
        optimizer = make(model.parameters(), lr=0.1)
        train(model, optimizer, True, range(1))
        with CommDebugMode() as communication:
            optimizer.first_step()
            optimizer.second_step()
        assert communication.get_total_counts() == wanted


@case
def a_gradient_that_is_spread_otherwise_is_redistributed() -> None:
    mesh = world()
    w, g = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), torch.arange(35.0).reshape(5, 7)
    alone = nn.Parameter(w.clone())
    alone.grad = g.clone()
    wanted = sharpkern.SAM([alone], lr=0.1)
    wanted.first_step()
    wanted.second_step()
    part = g / 2
    for given in (
        distribute_tensor(g, mesh, [Replicate()]),
        distribute_tensor(g, mesh, [Shard(1)]),
        DTensor.from_local(part, mesh, [Partial()], run_check=False),
    ):
        p = nn.Parameter(distribute_tensor(w, mesh, [Shard(0)]))
        p.grad = given
        optimizer = sharpkern.SAM([p], lr=0.1)
        optimizer.first_step()
        optimizer.second_step()
        close([p], [alone], 1e-6)


@case
def a_gradient_that_is_not_finite_skips_the_step_everywhere() -> None:
    for kind in (torch.optim.SGD, torch.optim.RMSprop):
        for second in (False, True):
            p = nn.Parameter(distribute_tensor(torch.ones(4, 3), world(), [Shard(0)]))
            optimizer = sharpkern.SAM([p], kind, lr=0.1, skip_nonfinite=True)
            for number in range(2):
                g = torch.ones(4, 3)
                if number == second:
                    g[0, 0] = float("inf")  # of the first rank
                p.grad = distribute_tensor(g, world(), [Shard(0)])
                (optimizer.second_step if number else optimizer.first_step)()
            assert torch.equal(whole(p), torch.ones(4, 3))


@case
def an_error_leaves_the_weights_restored() -> None:
    model = network()
    fsdp(model, world())
    for method in ("SAM", "RandomSAM", "EvolutionStrategies"):
        make, options = METHODS[method]
        optimizer = make(model.parameters(), lr=0.1, model=model, **options)
        before = [whole(p).clone() for p in model.parameters()]
        calls = 0

        def closure(optimizer: SharpnessAware = optimizer) -> Tensor:
            nonlocal calls
            calls += 1
            if optimizer._perturbed is not None or (optimizer.backward_passes() == 0 and calls == 2):
                raise ZeroDivisionError
            optimizer.zero_grad()
            loss = model(own(batch(0)[0])).square().mean()
            if torch.is_grad_enabled():
                loss.backward()
            return loss

        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        for p, w in zip(model.parameters(), before, strict=True):
            assert torch.equal(whole(p), w)


@case
def passes_without_backward_see_the_perturbed_weights() -> None:
    """fully_shard keeps whole parameters after a forward pass until a backward pass: with model= they are let go."""
    model, alone = network(), network()
    fsdp(model, world())
    x, y = (own(t) for t in batch(0))
    found, wanted = (sharpkern.RandomSAM(m.parameters(), rho=3.0, lr=0.1, model=m) for m in (model, alone))
    with torch.no_grad():
        for m, optimizer in ((model, found), (alone, wanted)):
            m.losses = [(m(x) - y).square().mean()]
            with optimizer.perturbed():
                m.losses.append((m(x) - y).square().mean())
            m.losses.append((m(x) - y).square().mean())
    close(model.losses, alone.losses)
    assert alone.losses[0] == alone.losses[2] != alone.losses[1]


@case
def tracer_with_exact_curvature() -> None:
    """Where autograd differentiates through the spread; fully_shard gives gradients without a graph, and it is said."""
    models = []
    for spreads in (True, False):
        w = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
        p = nn.Parameter(distribute_tensor(w, world(), [Shard(0)]) if spreads else w.clone())
        optimizer = sharpkern.TRACER([p], curvature="exact", rho=0.1, lr=0.1)
        for _ in range(3):

            def closure(p: nn.Parameter = p, optimizer: SharpnessAware = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = (p**4).sum()
                loss.backward(create_graph=True)
                return loss

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch's, of create_graph
                optimizer.step(closure)
        models.append(p)
    close(models[:1], models[1:])
    model = network()
    fsdp(model, world())
    optimizer = sharpkern.TRACER(model.parameters(), curvature="exact", lr=0.1)
    refused(lambda: train(model, optimizer, True, range(1)), RuntimeError, "differentiated again")


@case
def given_fisher_diagonals_and_plain_tensors_of_the_whole() -> None:
    diagonal = [
        torch.rand(p.shape, generator=torch.Generator().manual_seed(7)).double() for p in network().parameters()
    ]
    compare(sharpkern.FisherSAM, "momentum", "fsdp", fisher=lambda: diagonal, eta=10.0)


@case
def parameters_that_cannot_be_taken() -> None:
    partial = DTensor.from_local(torch.ones(3), world(), [Partial()], run_check=False)
    both_dims = init_device_mesh("cpu", (2, 1))
    odd = distribute_tensor(torch.zeros(4, 6, 6, 2), both_dims, [Shard(1), Shard(2)])
    spread = distribute_tensor(torch.zeros(4, 6), world(), [Shard(0)])
    ddp = DistributedDataParallel(nn.Linear(2, 1))
    refused(lambda: sharpkern.SAM([nn.Parameter(partial)], lr=0.1), ValueError, "redistribute it first")
    refused(lambda: sharpkern.EvolutionStrategies([nn.Parameter(spread)], lr=0.1), ValueError, "want model=")
    refused(
        lambda: sharpkern.SAM([nn.Parameter(spread)], per_rank=True, model=ddp, lr=0.1), ValueError, "no rank holds"
    )
    sharpkern.RandomSAM([nn.Parameter(odd)], lr=0.1).perturb()  # of a mesh (2, 1) the second dimension is not cut


def main(rank: int, folder: Path, only: list[str]) -> None:
    """Runs the cases, or only some, one after the other; after an error nothing is left to be run together."""
    for name in ("distributed_checkpoints", "distributed_data_parallel"):
        importlib.import_module(name)  # they add their cases

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=TIMEOUT)
    results = {}
    for function in CASES:
        if only and function.__name__ not in only:
            continue
        start = time.perf_counter()
        try:
            function()
            results[function.__name__] = ""
        except BaseException:
            results[function.__name__] = traceback.format_exc()
            break
        finally:
            print(f"{time.perf_counter() - start:6.1f} s  {function.__name__}", flush=True)
            (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.modules["distributed_cases"] = sys.modules["__main__"]
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
