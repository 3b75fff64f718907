"""The command `sharpkern sharpness`: its numbers, files and figures, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

import sharpkern
from sharpkern import train
from sharpkern.analysis import grid, measure
from sharpkern.analysis.checkpoint import Choice, load_subjects
from sharpkern.analysis.grid import Cell
from sharpkern.analysis.kinds import KINDS
from sharpkern.analysis.report import stages
from sharpkern.cli import main
from sharpkern.train.data import load_digits
from sharpkern.train.network import make_network

MODULE = """
import torch

def network():
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

def data():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(64, 5, generator=draw), torch.randint(3, (64,), generator=draw)

number = 3
"""
OWN = ("--network", "own_module:network", "--data", "own_module:data", "--batch-size", "16")


@pytest.fixture(autouse=True)
def small(threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of everything, in a folder that has a module of its own and a checkpoint."""
    torch.set_num_threads(1)
    for name, value in {"DRAWS": 2, "POINTS": 4, "SIDE": 5, "PROBES": 4}.items():
        monkeypatch.setattr(measure, name, value)
    monkeypatch.chdir(tmp_path)
    Path("own_module.py").write_text(MODULE)
    monkeypatch.delitem(__import__("sys").modules, "own_module", raising=False)
    for seed, name in enumerate(("one.pt", "two.pt")):
        torch.manual_seed(seed)
        namespace: dict[str, object] = {}
        exec(MODULE, namespace)
        model = namespace["network"]()  # type: ignore[operator]
        torch.save(model.state_dict() if seed else {"model": model.state_dict(), "epoch": 3}, name)


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_about_two_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--hessian", "--curves", "--surface", "--out", "out")
    assert main(["sharpness", "one.pt", "two.pt", *OWN, *options]) == 0
    printed = capsys.readouterr().out
    figures = {f"{stem}.{ending}" for stem in ("curves", "surface") for ending in ("csv", "png", "pdf", "svg")}
    assert {path.name for path in Path("out").iterdir()} == {*figures, "sharpness.csv"}
    assert all(f"out/{name}" in printed for name in figures)
    assert Path("out/curves.pdf").read_bytes().startswith(b"%PDF")
    numbers = {(row["checkpoint"], row["quantity"]): row for row in rows("out/sharpness.csv")}
    quantities = {quantity for _, quantity in numbers}
    assert {"loss", "accuracy (%)", "Hessian, trace", "tr(F F̄⁻¹), batches of 16"} < quantities
    assert len(numbers) == len(rows("out/sharpness.csv")) == 2 * len(quantities)
    curve = rows("out/curves.csv")
    assert len(curve) == 2 * (len(KINDS) - 1 + 2) * 5
    assert {row["perturbation"] for row in curve} == set(KINDS)
    for row in curve:
        if row["rho"] == "0.0":  # all curves begin at w
            assert float(row["loss"]) == pytest.approx(float(numbers[row["checkpoint"], "loss"]["value"]))
            assert row["accuracy"] == numbers[row["checkpoint"], "accuracy (%)"]["value"]
    middle = {row["checkpoint"]: row["loss"] for row in rows("out/surface.csv") if row["a"] == row["b"] == "0.0"}
    assert {name: float(loss) for name, loss in middle.items()} == pytest.approx({
        name: float(numbers[name, "loss"]["value"]) for name in ("one", "two")
    })


def test_the_table_has_the_numbers_of_the_functions() -> None:
    assert main(["sharpness", "one.pt", *OWN, "--out", "out"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"sharpness.csv"}
    found = {row["quantity"]: float(row["value"]) for row in rows("out/sharpness.csv")}
    [subject] = load_subjects({"one": Path("one.pt")}, Choice(OWN[1], OWN[3]))
    optimizer = sharpkern.ASAM(subject.parameters)
    expected = sharpkern.analysis.sharpness(optimizer, subject.loss).gap
    assert found["sharpness, ASAM, ρ = 0.5"] == pytest.approx(expected)
    hits = subject.model(subject.inputs).argmax(1) == subject.targets
    assert found["accuracy (%)"] == pytest.approx(100 * hits.double().mean().item())


def test_the_digits_are_the_default() -> None:
    torch.save(make_network(3).state_dict(), "digits.pt")
    assert main(["sharpness", "digits.pt", "--out", "out"]) == 0
    digits, model = load_digits(), make_network(3).eval()
    loss = cross_entropy(model(digits.test_images), digits.test_labels).item()
    assert float(rows("out/sharpness.csv")[0]["value"]) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "wanted a CHECKPOINT, or --grid"),
        (("none.pt", *OWN), "none.pt: torch.load cannot read it.*No such file"),
        (("own_module.py", *OWN), "own_module.py: torch.load cannot read it as weights"),
        (("one.pt",), "one.pt: weights of another network: .* names or shapes differ"),
        (("one.pt", "--network", "own_module"), "network 'own_module': wanted module:callable, or one of small, "),
        (("one.pt", "--network", "own_module:data"), "returned a tuple, wanted a torch.nn.Module"),
        (("one.pt", *OWN[:2], "--data", "own_module:missing"), "data 'own_module:missing': .*missing"),
        (("one.pt", *OWN[:2], "--data", "no_module:data"), "no_module"),
        (("one.pt", *OWN[:4], "--batch-size", "65"), "batch size 65: there are 64 examples"),
        (("one.pt", *OWN, "--curves", "--longest", "0"), "--longest 0.0: wanted a finite number > 0"),
        (("--grid", "--epochs", "0"), "wanted finite rho and eta >= 0"),
        (("one.pt", *OWN, "--device", "nowhere"), "device='nowhere'"),
        (("one.pt", *OWN, "--examples", "65"), "examples=65: there are 64"),
        (("one.pt", "--network", "own_module:number", *OWN[2:]), "'own_module:number': is a int, wanted a callable"),
        (("one.pt", *OWN, "--seed", "-1"), "--seed -1: wanted an integer >= 0"),
        (("one.pt", *OWN[:4], "--batch-size", "0"), "--batch-size 0: wanted at least 1"),
        (("--grid", "--rhos", "0.1,inf"), "wanted finite rho and eta >= 0"),
        (("one.pt", *OWN, "--longest", "1"), "--longest needs --curves"),
        (("one.pt", *OWN, "--rhos", "0.1"), "--rhos needs --grid"),
        (("one.pt", *OWN, "--etas", "0.1"), "--etas needs --grid"),
        (("one.pt", *OWN, "--noise", "0"), "--noise needs --grid"),
        (("--grid", "--curves"), "wanted a CHECKPOINT for --curves"),
        (("one.pt", "--network", "resnet20", *OWN[2:]), "network 'resnet20' is made for the data of a preset: digits"),
        (("one.pt", "--data", "mnist", *OWN[:2]), "data 'mnist': wanted module:callable, or one of digits, cifar10"),
        (("small.pt", "--data", "cifar10"), "cifar10 needs --data-dir FOLDER"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sharpness", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sharpkern sharpness: ")
    assert re.search(message, error)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in {"scipy", "sklearn"} else name)
    assert main(["sharpness", "one.pt"]) == 2
    assert "needs scipy, scikit-learn" in (error := capsys.readouterr().err)
    assert '"sharpkern[analysis]"' in error


# Grid


def test_a_grid_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Cell] = []

    def train_cell(cell: Cell, digits: object) -> float:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(cell)
        return 90 + cell.rho + cell.eta / 3

    monkeypatch.setattr(grid, "train_cell", train_cell)
    cells, path = grid.grid_cells((0.1, 0.5), (0.01, 1.0), epochs=2), Path("grid.csv")
    assert len(set(cells)) == 4
    with pytest.raises(KeyboardInterrupt):
        grid.run_grid(cells, path)
    assert [Path("grid.csv")] == sorted(Path().glob("grid.*"))
    assert list(grid.read_grid(path)) == cells[:3]
    trained.clear()
    found = grid.run_grid(cells, path)
    assert trained == cells[3:]
    assert found == {cell: 90 + cell.rho + cell.eta / 3 for cell in cells}
    other = [dataclasses.replace(cells[0], epochs=3)]
    assert list(grid.run_grid(other, path)) == other
    assert list(grid.read_grid(path)) == [*cells, *other]


@pytest.mark.parametrize("text", ["checkpoint,value\none,1\n", "rho,eta,seed,epochs,noise,test_accuracy\n0.1,1\n"])
def test_a_file_that_is_no_grid_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/grid.csv").write_text(text)
    assert main(["sharpness", "--grid", "--out", "out"]) == 2
    assert "out/grid.csv: wanted the columns rho, eta, seed, epochs, noise, test_accuracy" in capsys.readouterr().err
    assert Path("out/grid.csv").read_text() == text


def test_grid_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sharpness", "--grid", "--rhos", "0.05,0.1", "--etas", "1", "--epochs", "2", "--out", "out"]
    assert main(arguments) == 0
    assert {path.name for path in Path("out").iterdir()} == {"grid.csv", "grid.png", "grid.pdf", "grid.svg"}
    before = Path("out/grid.csv").read_text()
    found = grid.read_grid(Path("out/grid.csv"))
    assert list(found) == [Cell(0.05, 1.0, 0, 2, 0.0), Cell(0.1, 1.0, 0, 2, 0.0)]
    assert min(found.values()) > 50
    assert main(arguments) == 0  # nothing is left to train
    assert Path("out/grid.csv").read_text() == before


def test_a_cell_is_the_run_of_the_demo() -> None:
    """Same flips, weights, batches and options: the same accuracy as `sharpkern train` gets."""
    options = train.Options(
        methods=("fishersam",), conditions=("noisy",), noise=0.4, epochs=2, seeds=1, out=Path("demo")
    )
    (run,) = train.run(options).runs
    found = grid.train_cell(Cell(0.1, 0.001, epochs=2, noise=0.4), load_digits())
    assert found == pytest.approx(run.curve[-1].test_accuracy)


# Progress


def test_a_terminal_shows_a_bar_and_a_file_a_line() -> None:
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with stages(console) as stage:
            advance = stage("four of them", 4)
            for _ in range(4):
                advance()
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "four of them" in shown
        assert ("100%" in shown) is terminal
