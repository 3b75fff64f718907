"""Two processes on the CPU: sharded parameters, DistributedDataParallel, checkpoints. All cases share one start."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SCRIPT = TESTS / "distributed_cases.py"
PAGE = TESTS.parent / "docs" / "distributed.md"
SECONDS = 300  # for all cases together


def cases() -> list[str]:
    """The names of all functions that are decorated as cases, read without importing anything."""
    paths = (SCRIPT, TESTS / "distributed_checkpoints.py", TESTS / "distributed_data_parallel.py")
    found = [node for path in paths for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [node.name for node in found if "case" in map(ast.unparse, node.decorator_list)]


def environment() -> dict[str, str]:
    """That of this process, with the package and the tests to be found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path[1:], str(TESTS)]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What became of every case in each process: the name, and the traceback of an error or nothing."""
    folder = tmp_path_factory.mktemp("distributed")
    commands = [[sys.executable, str(SCRIPT), str(rank), str(folder)] for rank in range(2)]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{rank}.log").open("w")) for rank in range(2)]
        running = [
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
            for command, log in zip(commands, logs, strict=True)
        ]
        for process in running:
            stack.callback(process.wait)
            stack.callback(process.kill)
        for process in running:
            process.wait(timeout=SECONDS)
    found = []
    for rank in range(2):
        written = folder / f"{rank}.json"
        assert written.exists(), (folder / f"{rank}.log").read_text()
        found.append(json.loads(written.read_text()))
    return found


@pytest.mark.parametrize("name", cases())
def test_two_processes(name: str, results: list[dict[str, str]]) -> None:
    for rank, found in enumerate(results):
        assert name in found, f"rank {rank} did not come so far: an earlier case failed"
        assert not found[name], f"rank {rank}: {found[name]}"


def test_the_example_of_the_page_runs_under_torchrun(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    script = tmp_path / "train.py"
    # torch can abort in Python's own end, where threads of gloo outlive it (pytorch/pytorch#190489): it is left out
    script.write_text("\n".join([*blocks, "import os, sys", "sys.stdout.flush()", "os._exit(0)"]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("resumed") == 2  # their lines may come out as one
