"""What the commands print and the exit statuses they give."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import ON_CPU
from torch import Tensor

import sharpkern
from sharpkern import cli, ops, verify
from sharpkern.usage import MissingExtraError, UsageError

Arguments = dict[str, Any]


def test_info_names_versions_backends_and_the_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for expected in (sharpkern.__version__, platform.python_version(), torch.__version__, "triton", "threads"):
        assert expected in printed
    for status in sharpkern.backends():
        line = next(line for line in lines if f"{status.name} on {status.device}" in line)
        assert ("usable" if status.usable else str(status.why_not)) in line
    if ON_CPU["native"].usable:
        from sharpkern.backend import native

        line = next(line for line in lines if "native on cpu" in line)
        assert f"instruction set {native.instruction_sets()[0]}" in line


def test_info_says_why_a_backend_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops.load("native"), "why_not", lambda device, dtypes=(): "it is Sunday")
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("native on cpu: it is Sunday" in line for line in lines)
    assert any(line.startswith("auto      reference on cpu (native: it is Sunday; triton: ") for line in lines)


@pytest.mark.parametrize("seed", [1, 77])
def test_verify_finds_everything_in_bounds(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--seed", str(seed)]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert f"seed {seed}" in rows[0]
    assert "OUT OF BOUNDS" not in "".join(rows)
    checked = {tuple(row.split()[:3]) for row in rows[2:]}
    usable = [name for name, status in ON_CPU.items() if status.usable]
    assert checked == {(name, "cpu", op) for name in usable for op in OPS}
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert dtype in "".join(rows)
    assert last == f"{len(rows) - 2} of {len(rows) - 2} checks in bounds"


def off_by_a_thousandth(op: Callable[..., None], of: Callable[[Arguments], list[Tensor]]) -> Callable[..., None]:
    """The op, after which what it writes is off by one part in a thousand."""

    def wrong(*arguments: Any) -> None:
        op(*arguments)
        for x in of({"t": arguments[0], "arguments": arguments}):
            x.mul_(1.001)

    return wrong


OPS: dict[str, Callable[[Arguments], list[Tensor]]] = {
    "sq_norm": lambda a: [a["arguments"][2]],
    "ascend_": lambda a: a["t"].weights,
    "descend_": lambda a: a["t"].weights,
    "restore_": lambda a: a["t"].weights,
}


@pytest.mark.parametrize("op", OPS)
def test_verify_finds_a_wrong_kernel(
    op: str, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if backend == "reference" and op != "restore_" and not ON_CPU["native"].usable:
        pytest.skip("the reference is what all is measured by: only another backend shows that it is wrong")
    monkeypatch.setattr(verify, "DTYPES", (torch.float32,))  # one is enough, and quick
    module = ops.load(backend)
    monkeypatch.setattr(module, op, off_by_a_thousandth(getattr(module, op), OPS[op]))
    assert cli.main(["verify", "--seed", "3"]) == 1
    *rows, last = capsys.readouterr().out.splitlines()
    wrong = [row for row in rows if row.endswith("OUT OF BOUNDS")]
    assert wrong
    assert last.endswith(f", {len(wrong)} OUT OF BOUNDS")
    assert {row.split()[2] for row in wrong} == {op}


def test_verify_draws_a_new_seed_unless_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "DTYPES", ())
    seeds = set()
    for _ in range(3):
        assert cli.main(["verify"]) == 0
        seeds.add(capsys.readouterr().out.splitlines()[0].rpartition("seed ")[2])
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no-such-command"], "invalid choice: 'no-such-command'"), ([], "required"), (["verify", "--seed", "x"], "int")],
    ids=["unknown command", "no command", "bad option"],
)
def test_a_wrong_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [UsageError("wrong"), MissingExtraError("missing"), FileNotFoundError("no file")])
def test_what_a_command_cannot_do_is_said_in_a_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.verify, "run", Mock(side_effect=error))
    assert cli.main(["verify"]) == 2
    assert capsys.readouterr().err == f"sharpkern verify: {error}\n"


def test_an_interruption_is_said_in_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.verify, "run", Mock(side_effect=KeyboardInterrupt))
    assert cli.main(["verify"]) == 130
    assert capsys.readouterr().err == "sharpkern verify: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["train"], "sharpkern.train.experiment.train"),
        (["toy"], "sharpkern.toy.command.minima"),
        (["sharpness", "--grid"], "sharpkern.analysis.grid.train_cell"),
    ],
)
def test_an_interruption_leaves_no_empty_folder(
    arguments: list[str], called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(called, Mock(side_effect=KeyboardInterrupt))
    assert cli.main([*arguments, "--out", str(tmp_path / "new")]) == 130
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    assert cli.main([*arguments, "--out", str(tmp_path / "old")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.verify, "run", Mock(side_effect=ValueError("a fault")))
    with pytest.raises(ValueError, match="a fault"):
        cli.main(["verify"])


def test_help_and_version_name_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in ((["--help"], ("info", "verify", "train")), (["--version"], (sharpkern.__version__,))):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in expected)


def test_the_module_runs_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(sharpkern.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-m", "sharpkern"]
    done = subprocess.run([*command, "info"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"sharpkern {sharpkern.__version__}")
    assert not list(tmp_path.iterdir())
