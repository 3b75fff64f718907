"""Checkpoints of spread parameters, with two processes: cases of `distributed_cases.py`."""

from __future__ import annotations

import io
import pickle
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_cases import BASES, METHODS, SPREADS, Net, case, network, refused, train, whole, world
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

import sharpkern
from sharpkern import SharpnessAware

KINDS = [(name, "adamw") for name in METHODS] + [("SAM", "momentum"), ("MFVI", "momentum"), ("ASAM", "rmsprop")]


def made(method: str, base: str, spread: str | None, seed: int = 0) -> tuple[Net, SharpnessAware, bool]:
    """A network, its optimizer, and whether each process has its half of the batch."""
    model = network(seed=seed)
    shared = False if spread is None else SPREADS[spread](model, world())
    make, options = METHODS[method]
    kind, settings = BASES[base]
    reshards = {"model": model} if method == "EvolutionStrategies" else {}
    return model, make(model.parameters(), kind, **settings, **options, **reshards), shared


def everything(model: Net, optimizer: SharpnessAware) -> dict[str, Any]:
    """Weights and state, whole, and what else a checkpoint holds."""
    found: dict[str, Any] = {}
    saved = optimizer.state_dict()["param_groups"]
    for name, p in model.named_parameters():
        found[name] = whole(p).clone()
        found |= {f"{name} {key}": whole(x).clone() for key, x in optimizer.state[p].items()}
    return found | {f"draws {i}": group.get("draws") for i, group in enumerate(saved)}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x, other[name]) if isinstance(x, torch.Tensor) else x == other[name], name


def shared_folder() -> Path:
    """A new folder that both processes know."""
    names = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(names)
    return Path(str(names[0]))


@contextmanager
def quiet() -> Generator[None]:
    """torch warns that it takes one process to be alone, which is what it was told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def load(folder: Path, model: Net, optimizer: SharpnessAware, alone: bool) -> None:
    """Reads a checkpoint into a fresh optimizer; alone without the other process."""
    weights, state = get_state_dict(model, optimizer)
    with quiet():
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=alone)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def save(folder: Path, model: Net, optimizer: SharpnessAware, alone: bool) -> None:
    """Writes one."""
    weights, state = get_state_dict(model, optimizer)
    with quiet():
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=alone)


@case
def a_checkpoint_goes_from_two_processes_to_one_and_back() -> None:
    for method, base in KINDS:
        for spread in ("fsdp", "tensor") if method in {"SAM", "RandomSAM"} else ("fsdp",):
            folder = shared_folder()
            model, optimizer, shared = made(method, base, spread)
            train(model, optimizer, shared, range(2))
            wanted = everything(model, optimizer)
            save(folder / "two", model, optimizer, alone=False)
            if dist.get_rank() == 0:
                one, alone, _ = made(method, base, None, seed=1)
                load(folder / "two", one, alone, alone=True)
                assert_same(everything(one, alone), wanted)
                save(folder / "one", one, alone, alone=True)
            dist.barrier()
            back, resumed, _ = made(method, base, spread, seed=2)
            load(folder / "one", back, resumed, alone=False)
            assert_same(everything(back, resumed), wanted)
            for m, o in ((model, optimizer), (back, resumed)):
                train(m, o, shared, range(2, 4))
            assert_same(everything(model, optimizer), everything(back, resumed))


@case
def a_whole_state_dict_is_made_and_sent_and_a_flat_one_loads() -> None:
    for name in ("MFVI", "SAM", "Fisher average"):
        model, optimizer, shared = made(name, "adamw", "fsdp")
        train(model, optimizer, shared, range(2))
        whole_one = StateDictOptions(full_state_dict=True, cpu_offload=True)
        sent, flat = (
            StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
            StateDictOptions(flatten_optimizer_state_dict=True),
        )
        for out, back in ((whole_one, sent), (flat, flat)):
            saved = get_optimizer_state_dict(model, optimizer, options=out)
            assert bool(saved) == (dist.get_rank() == 0 or out is flat)
            other, resumed, _ = made(name, "adamw", "fsdp", seed=1)
            other.load_state_dict(model.state_dict())
            set_optimizer_state_dict(other, resumed, saved, options=back)
            assert_same(everything(model, optimizer), everything(other, resumed))


@case
def a_state_dict_pickles_and_a_resumed_run_is_the_uninterrupted_one() -> None:
    for method, base in KINDS:
        model, optimizer, shared = made(method, base, "fsdp")
        train(model, optimizer, shared, range(2))
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        weights, state = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        other, resumed, _ = made(method, base, "fsdp", seed=1)
        other.load_state_dict(weights)
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert_same(everything(model, optimizer), everything(other, resumed))
        for m, o in ((model, optimizer), (other, resumed)):
            train(m, o, shared, range(2, 4))
        assert_same(everything(model, optimizer), everything(other, resumed))


@case
def a_checkpoint_of_one_process_loads_into_shards() -> None:
    for method, base in KINDS:
        one, alone, _ = made(method, base, None)
        train(one, alone, False, range(2))
        model, optimizer, _ = made(method, base, "fsdp", seed=1)
        optimizer.load_state_dict(alone.state_dict())
        for p, q in zip(one.parameters(), model.parameters(), strict=True):
            for name, x in alone.state[p].items():
                assert isinstance(optimizer.state[q][name], DTensor) == (name != "step")
                assert torch.equal(whole(optimizer.state[q][name]), whole(x)), name


@case
def a_step_without_closure_makes_the_state_only_where_nothing_could_move() -> None:
    model = network()
    SPREADS["fsdp"](model, world())
    optimizer = sharpkern.SAM(model.parameters(), torch.optim.AdamW, lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for lr, fine in ((0.1, False), (0.0, True), (0.0, False)):  # at last there is state
        optimizer.param_groups[0]["lr"] = lr
        if fine:
            assert optimizer.step() is None
        else:
            refused(optimizer.step, RuntimeError, "wants a closure")
    assert all(not whole(x).any() for state in optimizer.state.values() for x in state.values())
