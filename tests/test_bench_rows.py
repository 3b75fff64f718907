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
    for name in ("bars", "compare", "figures", "scaling", "tables"):
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
    results.append(tmp_path / "later.csv", [])
    results.append(tmp_path / "later.csv", [first])
    assert results.read(tmp_path / "later.csv") == [first]
    (tmp_path / "empty.csv").touch()
    assert results.read(tmp_path / "empty.csv") == []
    results.append(tmp_path / "empty.csv", [second])
    assert results.read(tmp_path / "empty.csv") == [second]
    (tmp_path / "foreign.csv").write_text("date,cpu\n1,2\n")
    with pytest.raises(ValueError, match=r"foreign\.csv has no columns cores,governor"):
        results.read(tmp_path / "foreign.csv")


def test_current_rows_are_the_medians_of_the_last_commit() -> None:
    old, other = row("x", 9.0, commit="old"), row("x", 7.0, cpu="other")
    runs = [row("x", value, gb_s=None) for value in (1.0, 5.0, 2.0)]
    assert [(r["candidate"], r["p50"], r["gb_s"]) for r in results.current([old, other, *runs])] == [("x", 2.0, None)]
    assert results.standing([old, other, *runs]) == runs
    assert results.current([]) == results.standing([]) == []


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


def test_compare_takes_the_last_commit_alone(script: Any) -> None:
    """Neither the median nor the noise knows what an older commit took."""
    compare = script("compare")
    old = [row("x", 300.0, commit="older"), row("x", 98.0), row("x", 102.0), row("x", 100.0)]
    slower = [row("x", 50.0, commit="older"), row("x", 120.0)]
    ((change,), missing) = compare.compare(old, slower, 0.05)
    assert (change.ratio, change.bound, missing) == (pytest.approx(1.2), pytest.approx(1.06), [])
    assert change.worse


@pytest.mark.parametrize("name", ["compare", "scaling", "figures"])
@pytest.mark.parametrize(("text", "said"), [("a,b\n1,2\n", "has no columns date,cpu"), ("", "has no rows")])
def test_a_csv_of_something_else_is_refused(
    name: str, text: str, said: str, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    program, path = script(name), tmp_path / "x.csv"
    path.write_text(text)
    given = {"compare": [str(path)] * 2, "scaling": [str(path)], "figures": ["--csv", str(path)]}
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *given[name]])
    with pytest.raises(SystemExit) as error:
        program.main()
    assert error.value.code == 2
    assert f"{path} {said}" in capsys.readouterr().err


def test_scaling_says_that_there_is_nothing_to_fit(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    scaling = script("scaling")
    rows = planted(5e10, 2e-5, 1e-7)
    for given, said in (
        ([], "none.csv: there is no such file"),
        (rows[:3], "has no more than three whole steps of sharpkern SAM"),
    ):
        path = tmp_path / "none.csv"
        if given:
            results.append(path, given)
        monkeypatch.setattr(sys, "argv", ["scaling.py", str(path)])
        with pytest.raises(SystemExit) as error:
            scaling.main()
        assert error.value.code == 2
        assert said in capsys.readouterr().err
    results.append(path, rows)
    assert scaling.main() == 0
    assert "beyond the caches 50.0 GB/s, rows: 1" in capsys.readouterr().out


def planted(bandwidth: float, host: float, tensor: float, beyond: float = 5e10) -> list[dict[str, Any]]:
    """Rows of whole steps that cost exactly this."""
    rows = []
    for elements, tensors in ((10**3, 1), (10**5, 161), (10**6, 65), (10**7, 600), (10**8, 1), (2 * 10**6, 2000)):
        rate = beyond if elements == 10**8 else bandwidth
        seconds = 40 * elements / rate + host + tensors * tensor
        size = {"elements": elements, "tensors": tensors, "shapes": f"{tensors}x{elements // tensors}"}
        rows.append(row("sharpkern SAM sgd", 1e6 * seconds, bytes=40 * elements, gb_s=1.0, share_of_copy=0.9, **size))
    return rows


def test_the_model_finds_what_was_planted(script: Any) -> None:
    scaling = script("scaling")
    bandwidth, host, tensor = (float(x) for x in torch.rand(3) * torch.tensor([9e10, 5e-5, 3e-7]) + 1e-8)
    rows = planted(bandwidth, host, tensor, bandwidth / 3)
    (model,) = scaling.models(rows)
    assert (model.bandwidth, model.host, model.tensor) == pytest.approx((bandwidth, host, tensor), rel=1e-6)
    assert model.beyond == pytest.approx(bandwidth / 3, rel=1e-6)
    assert (len(model.within_errors), list(model.beyond_errors)) == (5, ["1x100000000"])
    assert max(map(abs, (*model.within_errors.values(), *model.beyond_errors.values()))) < 1e-9
    name, devices, size, seconds, extra = scaling.extrapolated(rows, model)[1]
    assert (name, devices, size, extra) == ("7B", 8, 35e9, 3.5e9)
    assert seconds == pytest.approx(3 * 35e9 / bandwidth + host + 291 * tensor)
    assert scaling.fit(rows[:3], "sharpkern SAM sgd", 2) is None


def test_errors_beyond_the_caches_are_told_apart(script: Any) -> None:
    scaling = script("scaling")
    rows = planted(5e10, 2e-5, 1e-7, 2e10)
    slow = {**rows[4], "shapes": "2x50000000", "tensors": 2, "p50": 1.5 * rows[4]["p50"]}
    (model,) = scaling.models([*rows, slow])
    typical, worst = scaling.told(model.beyond_errors)
    assert (typical, worst) == ("19%", "-23% (2x50000000)")  # least (x - 1)² + (x / 1.5 - 1)²: x = 1.154
    assert max(map(abs, model.within_errors.values())) < 1e-4
    assert scaling.told({}) == ("", "")


def test_nothing_is_said_of_larger_models_without_rows_beyond_the_caches(script: Any) -> None:
    scaling = script("scaling")
    rows = [r for r in planted(5e10, 2e-5, 1e-7) if r["elements"] < 10**8]
    (model,) = scaling.models(rows)
    assert model.beyond is None
    assert model.bandwidth == pytest.approx(5e10)
    assert scaling.extrapolated(rows, model) == []


def test_the_model_has_no_negative_term(script: Any) -> None:
    scaling = script("scaling")
    (model,) = scaling.models(planted(5e10, 2e-5, -1e-9, 2e10))
    assert model.tensor == 0
    assert model.host > 0


# What is made of rows -------------------------------------------------------------------------------------------------


def tiny() -> list[dict[str, Any]]:
    """A few rows for every figure and table."""
    rows = planted(5e10, 2e-5, 1e-7, 3e10)
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
    fewer = row("eager SAM sgd", 9.9, table="memory", unit="B/param", threads=1)
    figure.draw([*tiny(), fewer], tmp_path / "d", ["svg"])
    assert (tmp_path / "d" / "memory.svg").read_bytes() == paths[-1].read_bytes()
    assert figure.draw([], tmp_path / "c", ["svg"]) == []
    assert not (tmp_path / "c").exists()


def test_the_tables_hold_what_the_rows_say(script: Any, tmp_path: Path) -> None:
    tables: ModuleType = script("tables")
    rows = [*tiny(), row("sharpkern SAM sgd", 0.45, "pytorch_optimizer fused SAM sgd", shapes="vit_b")]
    rows.append(row("eager SAM sgd", 9.9, table="memory", threads=1))
    ours = {"group": "sgd our own", "shapes": "vit_b"}
    rows.append(row("sharpkern sgd update alone", 0.77, "torch fused sgd", **ours))
    results.append(tmp_path / "cpu.csv", rows)
    made = tables.pages(tmp_path)[tables.PAGE]
    published = next(line for line in made["bars"].splitlines() if "published peer" in line)
    assert "| ≤ 0.40 | 0.45 (vit_b: SAM sgd / pytorch_optimizer fused SAM sgd) at worst" in published
    assert published.endswith("| **no** |")
    assert "0.35 (wrn28_10: SAM sgd / optax SAM sgd) at best, of 2" in published
    assert "9.9" not in made["memory"]
    assert made["memory"].endswith("| wrn28_10 | eager SAM sgd | 4.1 |")
    assert "| within | 50.0 | 20.0 | 100.0 | 5 | 0% |" in made["cost"]
    assert "| beyond | 30.0 | 20.0 | 100.0 | 1 | 0% |" in made["cost"]
    assert "| 7B | 1 | 280.00 | 9.333 |" in made["larger"]
    assert made["overhead"] == "no row yet"
    page = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in made)
    assert "\nold\n" not in tables.fill(page, made)
    with pytest.raises(ValueError, match="no <!-- bars -->"):
        tables.fill("", made)
    speed = tables.pages(tmp_path)[tables.README]["speed"].splitlines()
    assert speed[0].endswith("| wrn28_10 | vit_b |")
    assert next(line for line in speed if "pytorch_optimizer's with `SGD(fused=True)`" in line).endswith("|  | 0.45 |")
    assert next(line for line in speed if "the update's kernel alone, of a whole step of" in line).endswith("| 0.77 |")


def test_the_page_tells_all_runs_behind_the_medians(script: Any, tmp_path: Path) -> None:
    tables: ModuleType = script("tables")
    older = row("x", 1.0, commit="older", date="2026-01-01 00:00", load="9.00")
    runs = [row("x", 1.0, date=f"2026-01-0{day} 00:00", load=f"{day}.50") for day in (2, 3, 4)]
    results.append(tmp_path / "cpu.csv", [older, *runs])
    about = tables.pages(tmp_path)[tables.PAGE]["about"]
    assert "| load when a run began | 2.50 to 4.50 |" in about
    assert "| date | 2026-01-02 00:00 to 2026-01-04 00:00 UTC |" in about


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
