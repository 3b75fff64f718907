"""Rows of the benchmark and what is made of them: CSV files, comparisons, the model of the cost, figures, tables."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sharpkern.bench import figure, overhead, results

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a program under bench/ by its name."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    yield importlib.import_module
    for name in ("bars", "compare", "scaling", "tables"):
        sys.modules.pop(name, None)


def row(candidate: str, p50: float, against: str = "", **others: Any) -> dict[str, Any]:
    """A row as it is read from a CSV."""
    fields = dict.fromkeys(results.FIELDS, "") | dict.fromkeys((*results.NUMBERS, "bytes"))
    fields |= {"cpu": "a", "commit": "b", "table": "steps", "group": "sgd", "shapes": "wrn28_10", "dtype": "float32"}
    fields |= {"elements": 1000, "tensors": 1, "threads": 2, "unit": "ratio" if against else "us"}
    return fields | {"candidate": candidate, "against": against, "p20": p50, "p50": p50, "p80": p50} | others


def test_instructions_say_when_they_are_skipped(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    instructions = script("instructions")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["instructions.py"])
    assert instructions.main() == 0
    assert capsys.readouterr().out == "instructions: skipped, valgrind is not installed\n"


def test_rows_come_back_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    first, second = row("x", 0.1 + 0.2, gb_s=1e-17), row("y", 2.0, "x", elements=10**9)
    results.append(path, [first])
    results.append(path, [second])
    assert results.read(path) == [first, second]
    assert results.read(tmp_path / "none.csv") == []
    with pytest.raises(ValueError, match="has the columns date,cpu"):
        results.append(path, [{"a": 1}], ["a"])


def test_current_rows_are_the_medians_of_the_last_commit() -> None:
    old, other = row("x", 9.0, commit="old"), row("x", 7.0, cpu="other")
    runs = [row("x", value, gb_s=None) for value in (1.0, 5.0, 2.0)]
    assert [(r["candidate"], r["p50"], r["gb_s"]) for r in results.current([old, other, *runs])] == [("x", 2.0, None)]
    assert results.current([]) == []


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.08, 1), (0.9, 0)])
def test_compare_finds_a_planted_regression(
    factor: float, status: int, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    compare = script("compare")
    old = [row("steady", 100.0, p20=99.0, p80=101.0), row("noisy", 100.0, p20=70.0, p80=130.0), row("r", 0.5, "s")]
    new = [
        row("steady", 100.0 * factor, p20=99.0 * factor, p80=101.0 * factor),
        row("noisy", 130.0, p20=95.0, p80=165.0),
    ]
    results.append(tmp_path / "old.csv", old)
    results.append(tmp_path / "new.csv", new)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "old.csv"), str(tmp_path / "new.csv")])
    assert compare.main() == status
    printed = capsys.readouterr().out
    assert ("WORSE" in printed) == (status == 1)
    assert "noisy" not in printed
    assert "missing  steps | sgd | wrn28_10 | float32 | 2 | r | s" in printed


def test_compare_leaves_times_of_other_machines_alone(script: Any) -> None:
    compare = script("compare")
    old = [row("x", 100.0, share_of_copy=0.9), row("x", 0.5, "y")]
    new = [row("x", 300.0, share_of_copy=0.5, cpu="other"), row("x", 0.6, "y", cpu="other")]
    changes, missing = compare.compare(old, new, 0.05)
    assert [(c.name.rpartition("[")[2], round(c.ratio, 2), c.worse) for c in changes] == [
        ("of copy]", 1.8, True),
        ("ratio]", 1.2, True),
    ]
    assert missing == []


def planted(bandwidth: float, host: float, tensor: float) -> list[dict[str, Any]]:
    """Rows of whole steps that cost exactly this."""
    rows = []
    for elements, tensors in ((10**3, 1), (10**5, 161), (10**6, 65), (10**7, 600), (10**8, 1), (2 * 10**6, 2000)):
        seconds = 40 * elements / bandwidth + host + tensors * tensor
        size = {"elements": elements, "tensors": tensors, "shapes": f"{tensors}x{elements // tensors}"}
        rows.append(row("sharpkern SAM sgd", 1e6 * seconds, bytes=40 * elements, gb_s=1.0, share_of_copy=0.9, **size))
    return rows


def test_the_model_finds_what_was_planted(script: Any) -> None:
    scaling = script("scaling")
    bandwidth, host, tensor = (float(x) for x in torch.rand(3) * torch.tensor([9e10, 5e-5, 3e-7]) + 1e-8)
    rows = planted(bandwidth, host, tensor)
    (model,) = scaling.models(rows)
    assert (model.bandwidth, model.host, model.tensor) == pytest.approx((bandwidth, host, tensor), rel=1e-6)
    assert abs(model.worst[1]) < 1e-9
    name, devices, size, seconds, extra = scaling.extrapolated(rows, model)[1]
    assert (name, devices, size, extra) == ("7B", 8, 35e9, 3.5e9)
    assert seconds == pytest.approx(35e9 / bandwidth + host + 291 * tensor)
    assert scaling.fit(rows[:3], "sharpkern SAM sgd", 2) is None


def test_the_model_has_no_negative_term(script: Any) -> None:
    scaling = script("scaling")
    (model,) = scaling.models(planted(5e10, 2e-5, -1e-9))
    assert model.tensor == 0
    assert model.host > 0


# What is made of rows -------------------------------------------------------------------------------------------------


def tiny() -> list[dict[str, Any]]:
    """A few rows for every figure and table."""
    rows = planted(5e10, 2e-5, 1e-7)
    for k in (3, 5, 7):
        size = {"elements": 10**k, "shapes": f"1x{10**k}", "table": "ops", "group": "ops"}
        rows += [
            row(name, 10.0**k, gb_s=40.0, share_of_copy=0.8, **size) for name in ("copy, same size", "ascend identity")
        ]
    rows += [row("sharpkern SAM sgd", 0.3, "eager SAM sgd"), row("sharpkern SAM sgd", 0.35, "optax SAM sgd")]
    rows += [
        row("eager SAM sgd", 900.0 * n, shapes=f"{n}x{2000000 // n}", tensors=n, elements=2_000_000) for n in (1, 65)
    ]
    rows += [row("sharpkern SAM sgd", 3.99, table="memory", unit="B/param"), row("eager SAM sgd", 4.1, table="memory")]
    return rows


def test_figures_are_drawn_from_rows_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = figure.draw(tiny(), tmp_path / "a", ["svg"])
    assert [path.name for path in paths] == ["roofline.svg", "speedup.svg", "tensors.svg", "memory.svg"]
    again = figure.draw(tiny(), tmp_path / "b", ["svg"])
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert figure.draw([], tmp_path / "c", ["svg"]) == []
    assert not (tmp_path / "c").exists()


def test_the_tables_hold_what_the_rows_say(script: Any, tmp_path: Path) -> None:
    tables: ModuleType = script("tables")
    rows = [*tiny(), row("sharpkern SAM sgd", 0.45, "pytorch_optimizer fused SAM sgd", shapes="vit_b")]
    results.append(tmp_path / "cpu.csv", rows)
    made = tables.pages(tmp_path)[tables.PAGE]
    published = next(line for line in made["bars"].splitlines() if "published peer" in line)
    assert "| ≤ 0.40 | 0.45 (vit_b: SAM sgd / pytorch_optimizer fused SAM sgd) at worst" in published
    assert published.endswith("| **no** |")
    assert "0.35 (wrn28_10: SAM sgd / optax SAM sgd) at best, of 2" in published
    assert made["memory"].endswith("| wrn28_10 | eager SAM sgd | 4.1 |")
    assert "| 50.0 | 20.0 | 100.0 |" in made["cost"]
    assert made["overhead"] == "no row yet"
    page = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in made)
    assert "\nold\n" not in tables.fill(page, made)
    with pytest.raises(ValueError, match="no <!-- bars -->"):
        tables.fill("", made)
    speed = tables.pages(tmp_path)[tables.README]["speed"].splitlines()
    assert speed[0].endswith("| wrn28_10 | vit_b |")
    assert next(line for line in speed if "pytorch_optimizer's with `SGD(fused=True)`" in line).endswith("|  | 0.45 |")


def test_the_table_of_training_steps(script: Any, tmp_path: Path) -> None:
    tables: ModuleType = script("tables")
    same = {"table": "overhead", "shapes": "resnet20, 128 images"}
    rows = []
    for name, step, work in ((overhead.PLAIN, 2e5, 1e3), (overhead.SAM, 4e5, 8e2), (overhead.FISHER, 5e5, 9e2)):
        rows += [row(name, step, group="step", **same), row(name, work, group="optimizer", **same)]
        rows += [row(name, work / step, unit="ratio", group="share", **same)]
    rows += [
        row(a, ratio, b, group="step", **same)
        for a, ratio, b in (
            (overhead.SAM, 2.0, overhead.PLAIN),
            (overhead.FISHER, 2.5, overhead.PLAIN),
            (overhead.FISHER, 1.25, overhead.SAM),
        )
    ]
    results.append(tmp_path / "overhead.csv", rows)
    made = tables.pages(tmp_path)[tables.PAGE]["overhead"]
    assert "| torch sgd | 200 (200 - 200) | 1 (1 - 1) | 0.50% |  |" in made
    assert "| sharpkern SAM sgd | 400 (400 - 400) | 0.8 (0.8 - 0.8) | 0.20% | 2.000 |" in made
    assert "Fisher SAM takes 1.250 (1.250 - 1.250) of SAM's time" in made


def test_the_pages_say_what_the_csv_files_give(script: Any) -> None:
    tables: ModuleType = script("tables")
    for page, made in tables.pages(tables.DATA).items():
        text = page.read_text(encoding="utf-8")
        assert text == tables.fill(text, made), f"{page.name} is out of date: run bench/tables.py"
