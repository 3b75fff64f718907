"""Runs that are killed within a step, and weights that are saved at the wrong time."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sharpkern

SCRIPT = Path(__file__).with_name("resumable.py")


def train(folder: Path, style: str, *stop: int) -> None:
    """Run the script to its end, or to the middle of a pass, where it is killed."""
    command = [sys.executable, str(SCRIPT), str(folder), style, *map(str, stop)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if stop:
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=120) == (-signal.SIGKILL if stop else 0)


def tensors(x: Any) -> list[torch.Tensor]:
    """Every tensor of a checkpoint, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    values = x.values() if isinstance(x, dict) else x if isinstance(x, list) else []
    return [t for value in values for t in tensors(value)]


@pytest.mark.parametrize(("style", "passes"), [("step", 2), ("halves", 2), ("parts", 4)])
def test_a_run_that_is_killed_in_any_pass_resumes_bit_for_bit(style: str, passes: int, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    train(whole, style)
    for number in range(1, passes + 1):
        train(killed, style, 1 + number, number)
    train(killed, style)
    expected, got = (torch.load(folder / "checkpoint.pt") for folder in (whole, killed))
    assert got["step"] == expected["step"] == 7
    assert len(tensors(expected)) > 20
    assert same(tensors(got), tensors(expected))


# A guard of the model


def perturbed() -> tuple[nn.Module, sharpkern.SAM, Any]:
    """A guarded model that stands perturbed."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
    handle = sharpkern.guard(model, optimizer)
    model(torch.randn(8, 3)).sum().backward()
    optimizer.first_step()
    return model, optimizer, handle


SAVES: dict[str, Callable[[nn.Module], Any]] = {
    "model": lambda model: model.state_dict(),
    "part": lambda model: model[0].state_dict(),  # type: ignore[index]
    "compiled": lambda model: torch.compile(model, backend="eager").state_dict(),
    "within": lambda model: nn.ModuleDict({"student": model}).state_dict(),
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("what", SAVES)
def test_a_guarded_model_is_not_saved_while_it_stands_perturbed(what: str) -> None:
    model, optimizer, handle = perturbed()
    with pytest.raises(RuntimeError, match="stand perturbed since first_step"):
        SAVES[what](model)
    optimizer.restore()
    SAVES[what](model)
    optimizer.perturb()
    handle.remove()
    handle.remove()
    if what not in {"averaged", "deepcopy", "pickle"}:
        SAVES[what](model)
    optimizer.restore()


def test_a_guarded_model_within_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, optimizer, _ = perturbed()
        optimizer.restore()
        wrapped = DistributedDataParallel(model)
        wrapped(torch.randn(8, 3)).sum().backward()
        with optimizer.perturbed(), pytest.raises(RuntimeError, match="stand perturbed"):
            wrapped.state_dict()
        assert len(wrapped.state_dict()) == 9
        del wrapped
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_guarded_pair_goes_on_alike_and_is_not_guarded(how: Callable[[Any], Any]) -> None:
    model, optimizer, _ = perturbed()
    with pytest.raises(RuntimeError, match="stand perturbed"):
        how(optimizer)
    optimizer.restore()
    twin, other = how((model, optimizer))
    x = torch.randn(8, 3)
    for net, steps in ((model, optimizer), (twin, other)):
        for _ in range(3):
            steps.step(lambda net=net, steps=steps: [steps.zero_grad(), net(x).cos().sum().backward()][1])
    assert same(list(twin.parameters()), list(model.parameters()))
    with other.perturbed():
        twin.state_dict()
    sharpkern.guard(twin, other)
    with other.perturbed(), pytest.raises(RuntimeError, match="stand perturbed"):
        twin.state_dict()


def test_a_guard_does_not_keep_the_optimizer() -> None:
    model, optimizer, _ = perturbed()
    optimizer.restore()
    there = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert there() is None
    model.state_dict()
