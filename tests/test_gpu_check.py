"""The GPU check itself, as far as a machine without a GPU can run it: the orchestrator and what it runs."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sharpkern
from sharpkern.bench import rivals

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """bench/gpu_check.py."""
    spec = importlib.util.spec_from_file_location("gpu_check", BENCH / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_every_part_runs_whatever_fails(check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sleeper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {'import time; time.sleep(60)'!r}])"
    plan = [
        [check.Part("first", (python("print('went wrong'); raise SystemExit(3)"), python("print('went on')")), 60)],
        [
            check.Part("slow", (python(sleeper), python("print('no time left')")), 1.5),
            check.Part("absent", (("no-such-program",),), 60, tool="no-such-program"),
            check.Part("broken", (("/no/such/program",),), 60),
        ],
        [check.Part("last", (python("print('fine')"),), 60)],
    ]
    begin = time.monotonic()
    results = check.run(plan, tmp_path, tmp_path, dict(os.environ))
    assert time.monotonic() - begin < 30
    assert [(r.name, r.status) for r in results] == [
        ("first", 3),
        ("slow", check.TIMED_OUT),
        ("absent", None),
        ("broken", 127),
        ("last", 0),
    ]
    assert results[0].said == "went wrong"
    assert "went on" in (tmp_path / "first.log").read_text()
    assert results[2].said == "skipped: there is no no-such-program"
    assert "no time left" not in (tmp_path / "slow.log").read_text().splitlines()
    assert check.report(results, tmp_path) == 1
    assert (tmp_path / "summary.txt").read_text().splitlines()[-1] == "3 of 5 parts failed"
    assert "--- where broken.log fails" in capsys.readouterr().out
    assert check.report(results[-1:], tmp_path) == 0


def test_the_parts_name_files_that_are_there(check: ModuleType, tmp_path: Path) -> None:
    plan = check.stages(tmp_path, tmp_path)
    assert [[part.name for part in stage] for stage in plan] == [
        ["build"],
        ["ops", "gpu", "sanitizer", "warm"],
        ["bench"],
    ]
    words = {word for stage in plan for part in stage for command in part.commands for word in command}
    named = [Path(word).relative_to(tmp_path / "source") for word in words if word.endswith(".py")]
    assert len(named) == 5
    assert all((BENCH.parent / path).exists() for path in named)
    assert sum(max(part.seconds for part in stage) for stage in plan) <= 480


def test_a_part_that_does_not_exist_is_refused(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check.main(["bnech"])
    assert "no part bnech" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("rival", ["Usual", "Foreach"])
def test_the_rivals_do_the_same_step(rival: str, base: str) -> None:
    start = [torch.randn(shape) for shape in ((33, 17), (5,), (2, 3, 4))]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    kind, options = rivals.BASES[base]
    optimizers = sharpkern.SAM(ours, kind, rho=rivals.RHO, **options), getattr(rivals, rival)(theirs, base)
    for half in ("first_step", "second_step") * 3:
        gradients = [torch.randn_like(x) for x in start]
        for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g.clone()
            getattr(optimizer, half)()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def small(*command: str) -> str:
    """What a program under bench/ prints on one thread."""
    done = subprocess.run(
        [sys.executable, BENCH / command[0], *command[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_benchmark_writes_all_tables(tmp_path: Path) -> None:
    small(*["gpu.py", "--device", "cpu", "--small", "--repeats", "2", "--compile-seconds", "0", "--out"], str(tmp_path))
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == {"ops", "host", "steps"}  # memory is that of a GPU
    ascend = [row for row in rows if row["candidate"] == "reference ascend"]
    sizes = {(row["dtype"], int(row["elements"])): int(row["bytes"]) for row in ascend}
    assert sizes["float32", 1024] == 16 * 1024
    assert sizes["bfloat16", 3000] == 8 * 3000
    ratios = [row["candidate"] for row in rows if row["unit"] == "ratio"]
    assert {"reference sgd / usual sgd", "reference adamw / foreach adamw"} <= set(ratios)
    assert all(float(row["p20"]) <= float(row["p50"]) <= float(row["p80"]) for row in rows)
    assert all(row["torch"] and row["date"] and row["sharpkern"] for row in rows)


def test_what_the_sanitizer_watches_runs() -> None:
    assert small("sanitize.py", "--device", "cpu", "reference") == "reference: 120 calls\n"
