"""The examples, each with --quick: that they run, and that what they print makes sense."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
FIGURES = re.compile(r"^(.*?\S) +((?:-?\d+\.\d+(?: ± \d+\.\d+)?%? *)+)$", re.MULTILINE)

Figures = dict[str, list[float]]


def figures(text: str) -> Figures:
    """The numbers at the end of a line by what stands before them, standard errors left out."""
    found = FIGURES.findall(text)
    assert len({title for title, _ in found}) == len(found)
    return {title: [float(x) for x in re.sub(r"± \S+", "", numbers).split()] for title, numbers in found}


@pytest.fixture
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints."""
    path = FOLDER / f"{request.param}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--quick"])
    runpy.run_path(str(path), run_name="__main__")
    text = capsys.readouterr().out
    (section,) = (part for part in PAGE.split("\n## ") if f"({request.param}.py)" in part)
    missing = figures(text).keys() ^ figures(section).keys()
    assert not missing, f"examples/README.md and the example differ in {missing}"
    assert all(math.isfinite(x) for values in figures(text).values() for x in values)
    return text


def test_every_example_is_listed_and_tested() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert {name for name in names if f"({name}.py)" in PAGE} == names
    here = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if f'["{name}"]' in here} == names


@pytest.mark.parametrize("printed", ["image_classification"], indirect=True)
def test_image_classification(printed: str) -> None:
    accuracy = figures(printed)
    assert len(accuracy) == 5
    assert all(70 < x <= 100 for (x,) in accuracy.values())  # chance is 10


@pytest.mark.parametrize("printed", ["finetune_transformer"], indirect=True)
def test_finetune_transformer(printed: str) -> None:
    loss = re.search(r"loss (\S+) nats", printed)
    assert loss
    assert float(loss[1]) < math.log(12)  # of a guess
    accuracy = figures(printed)
    assert len(accuracy) == 4
    assert all(25 < x <= 100 for (x,) in accuracy.values())  # chance is 12.5


@pytest.mark.parametrize("printed", ["regression_sampled_fisher"], indirect=True)
def test_regression_with_sampled_fisher(printed: str) -> None:
    found = figures(printed)
    errors = [values[0] for values in found.values() if len(values) == 1]
    assert len(errors) == 4
    assert all(0.3 < x < 0.95 for x in errors)  # 1 is the error of the mean
    correlation, ratio = zip(*(found[name] for name in ("g²", "per example", "sampled")), strict=True)
    assert correlation[2] > 0.8
    assert correlation[2] > correlation[0]
    assert 0.5 < ratio[2] < 2
    assert ratio[0] < ratio[1]


@pytest.mark.parametrize("printed", ["uncertainty_mfvi"], indirect=True)
def test_uncertainty_of_mfvi(printed: str) -> None:
    found = figures(printed)
    kept, moved = ([v for title, v in found.items() if title.endswith(kind)] for kind in ("as they are", "moved"))
    assert len(kept) == len(moved) == 3
    for (accuracy, nll, calibration), (worse, higher, _) in zip(kept, moved, strict=True):
        assert 80 < accuracy <= 100
        assert nll < math.log(10)
        assert 0 <= calibration < 50
        assert worse < accuracy
        assert higher > nll
