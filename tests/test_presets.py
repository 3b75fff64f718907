"""The papers' protocols: what the presets hold, and runs that stop, go on, and are reported."""

from __future__ import annotations

import csv
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpkern import TRACER, cli, ops
from sharpkern.train.data.images import Images, load
from sharpkern.train.networks import NETWORKS, make
from sharpkern.train.presets import PRESETS, Option
from sharpkern.train.protocol import Job, Request, jobs, ledger, runner, start
from sharpkern.train.protocol.estimate import duration
from sharpkern.train.protocol.job import COLUMNS, distinct, kinds
from sharpkern.train.protocol.training import Outcome, Training, schedule
from sharpkern.train.protocol.training import train as train_to_the_end
from sharpkern.train.weights import load_weights
from sharpkern.usage import UsageError


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits", None)


@pytest.fixture(scope="module")
def few(digits: Images) -> Images:
    """Two batches of them."""
    return replace(digits, train_images=digits.train_images[:256], train_labels=digits.train_labels[:256])


def command(*arguments: object) -> int:
    return cli.main(["train", *map(str, arguments)])


def one(preset: str, method: str, **options: Any) -> Job:
    return jobs(Request((preset,), methods=(method,), seeds=1, **options))[0]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# What the presets hold


def options(preset: str, data: str, method: str) -> dict[str, Option]:
    contender = next(c for c in PRESETS[preset].contenders if c.name == method)
    return contender.options_on(data, 100)


@pytest.mark.parametrize(
    ("preset", "data", "sam", "asam", "fisher"),
    [
        ("fisher-sam-table-1", "cifar10", 0.05, (0.5, 0.01), (0.1, 1.0)),
        ("fisher-sam-table-1", "cifar100", 0.1, (1.0, 0.1), (0.1, 1.0)),
        ("fisher-sam-table-2", "imagenet", 0.05, (1.0, 0.01), (0.5, 0.1)),
        ("fisher-sam-table-3", "cifar100", 0.05, (0.1, 0.01), (0.1, 1.0)),
        ("fisher-sam-table-4", "cifar10", 0.1, (0.5, 0.01), (0.1, 0.001)),
    ],
)
def test_rho_and_eta_of_fisher_sam(
    preset: str, data: str, sam: float, asam: tuple[float, float], fisher: tuple[float, float]
) -> None:
    assert options(preset, data, "sam") == {"rho": sam}
    assert options(preset, data, "asam") == {"rho": asam[0], "eta": asam[1]}
    assert options(preset, data, "fishersam") == {"rho": fisher[0], "eta": fisher[1]}


def test_random_sam_has_the_papers_sigma() -> None:
    job = one("sam-as-vi-table-3", "randomsam")
    assert job.options["rho"] == pytest.approx(5e-5 * math.sqrt(9978))


@pytest.mark.parametrize(("preset", "method"), [("g-tracer-table-1", "tracer"), ("g-tracer-table-3", "adamtracer")])
def test_tracers_options_are_the_defaults_and_written_out(preset: str, method: str) -> None:
    defaults = inspect.signature(TRACER).parameters
    job = one(preset, method)
    assert job.options == {name: defaults[name].default for name in ("rho", "beta", "delta", "radius")}
    assert job.columns()["options"] == "rho=0.001 beta=0.1 delta=0.1 radius=0.01"


def test_variational_sam_has_the_papers_weight_and_its_rate_on_the_sum_of_losses() -> None:
    for job, n in (
        (one("sam-as-vi-table-3", "variationalsam"), 1198),
        (one("sam-as-vi-table-3", "variationalsam", data="cifar10"), 50_000),
    ):
        assert job.options == {
            "rho": 0.05,
            "prior_std": 10.0,
            "parametrization": "direct",
            "lr_covariance": pytest.approx(0.01 * n),
            "kl_weight": pytest.approx(1 / n),
        }
    assert "parametrization=direct" in job.columns()["options"]


def test_variational_sam_is_not_sam(digits: Images) -> None:
    """The penalty drives s up like sqrt(1 + 0.01 t) over t steps, and the network learns."""
    training = Training(one("sam-as-vi-table-3", "variationalsam", epochs=5), digits, None, "auto", "cpu")
    for _ in range(5):
        training.epoch()
    s = torch.cat([part.flatten() for part in training.optimizer.covariance()])
    assert s.mean().item() == pytest.approx(math.sqrt(1 + 0.01 * training.job.steps), rel=0.01)
    assert s.min() > 1.1
    assert training.outcome().test_accuracy > 85


def test_epochs_double_where_a_step_has_one_pass() -> None:
    for name in ("fisher-sam-table-1", "fisher-sam-table-4", "sam-as-vi-table-3"):
        for contender in PRESETS[name].contenders:
            assert contender.epoch_factor == 2 // contender.passes


def test_every_setting_has_a_figure_for_every_method_of_the_paper() -> None:
    ours = {"adamw", "fishersam-adamw"}  # beside the paper's
    for preset in PRESETS.values():
        for setting in preset.settings:
            assert setting.printed.keys() == {contender.name for contender in preset.contenders} - ours
            assert all(0 < mean < 100 for mean, _ in setting.printed.values())
            assert bool(setting.why_not) or setting.network in NETWORKS
    assert sum(len(setting.printed) for preset in PRESETS.values() for setting in preset.settings) == 133


def test_the_best_method_is_that_printed_in_bold() -> None:
    def best(preset: str) -> list[set[str]]:
        return [
            {name for name, (mean, _) in s.printed.items() if mean == max(s.printed.values())[0]}
            for s in PRESETS[preset].settings
        ]

    table = best("fisher-sam-table-1")
    assert [cell for cell in table if cell != {"fishersam"}] == [{"sam", "fishersam"}]  # WRN-28-10 on CIFAR-100
    assert best("fisher-sam-table-2") == [{"fishersam"}]
    assert best("fisher-sam-table-3") == [{"fishersam"}] * 3
    assert best("fisher-sam-table-4") == [{"sam"}, {"fishersam"}, {"fishersam"}, {"fishersam"}]
    assert best("g-tracer-table-1") == [{"tracer"}]
    assert best("g-tracer-table-2") == [{"tracer"}] * 3
    assert best("g-tracer-table-3") == [{"adamtracer"}] * 3
    assert best("sam-as-vi-table-3") == [{"sam"}] * 4


@pytest.mark.parametrize("name", PRESETS)
def test_digits_have_the_papers_options_and_conditions(name: str) -> None:
    preset = PRESETS[name]
    for job in jobs(Request((name,))):
        original = [
            s
            for s in preset.settings
            if (s.data, s.row, s.column) == (job.setting.data, job.setting.row, job.setting.column)
        ]
        assert len(original) == 1
        for field in ("noise", "augmentation", "label_smoothing", "weight_decay", "printed"):
            assert getattr(job.setting, field) == getattr(original[0], field)
    short = [s.short for s in preset.settings_on("digits")]
    assert len(set(short)) == len(short)


def test_no_two_runs_have_one_key() -> None:
    asked = jobs(Request(tuple(PRESETS))) + jobs(Request(("fisher-sam-table-1",), data="cifar10"))
    planned = distinct(asked)
    left_out = [job for job in asked if job not in planned]
    assert {(job.preset.name, job.contender.name) for job in left_out} == {
        ("fisher-sam-table-1", "sgd"),
        ("fisher-sam-table-1", "fishersam"),
    }
    assert len({job.key() for job in planned}) == len(planned)
    assert sum(len(same) for same in kinds(planned)) == len(planned)
    assert all(len({job.seed for job in same}) == len(same) for same in kinds(planned))


def test_schedules() -> None:
    def rates(name: str) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = schedule(name, optimizer, 10)
        found = []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    assert rates("step") == pytest.approx([1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])
    assert rates("cosine") == pytest.approx([(1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)])


# Runs that stop and go on

CASES = [
    ("sam-as-vi-table-3", "sgd"),
    ("sam-as-vi-table-3", "variationalsam"),
    ("sam-as-vi-table-3", "randomsam"),
    ("fisher-sam-table-4", "fishersam"),
    ("g-tracer-table-1", "tracer"),
    ("g-tracer-table-3", "adamtracer"),
    ("fisher-sam-table-3", "fishersam-adamw"),
]


class Stop(Exception):
    """What interrupts a run."""


def ignore(epochs: int) -> None:
    pass


@pytest.mark.parametrize(("preset", "method"), CASES)
def test_an_interrupted_run_ends_as_if_it_had_not_been(preset: str, method: str, few: Images, tmp_path: Path) -> None:
    job = one(preset, method, epochs=3 if method not in {"sgd", "randomsam"} else 2)

    def begin() -> Training:
        return Training(job, few, None, "auto", "cpu")

    whole = train_to_the_end(begin(), tmp_path / "whole.pt", ignore)
    calls = 0

    def stop(epochs: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # of the checkpoint's epochs, none, and of two epochs
            raise Stop

    with pytest.raises(Stop):
        train_to_the_end(begin(), tmp_path / "part.pt", stop)
    done: list[int] = []
    rest = train_to_the_end(begin(), tmp_path / "part.pt", done.append)
    assert done == [2, *[1] * (job.epochs - 2)]
    assert (rest.test_accuracy, rest.train_loss) == (whole.test_accuracy, whole.train_loss)
    assert all(torch.equal(rest.weights[name], weight) for name, weight in whole.weights.items())


def stopped(method: str, few: Images, checkpoint: Path, backend: str = "auto") -> Callable[[str], Outcome]:
    """A run that stopped after its first epoch; what is returned goes on with it on a backend."""
    job = one("g-tracer-table-1", method, epochs=2)

    def stop(epochs: int) -> None:
        if epochs:
            raise Stop

    with pytest.raises(Stop):
        train_to_the_end(Training(job, few, None, backend, "cpu"), checkpoint, stop)
    return lambda backend: train_to_the_end(Training(job, few, None, backend, "cpu"), checkpoint, ignore)


def test_a_damaged_checkpoint_is_told(few: Images, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    go_on = stopped("sam", few, path)
    whole = path.read_bytes()
    other = tmp_path / "other.pt"
    torch.save({"model": {}}, other)
    for damaged in (whole[: len(whole) // 2], b"", b"no archive", other.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"run\.pt: cannot be read; delete it and the run starts anew"):
            go_on("auto")
    path.write_bytes(whole)
    assert go_on("auto").test_accuracy > 0


def test_a_run_goes_on_with_the_backend_it_began_with(few: Images, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    go_on = stopped("sam", few, path, "reference")
    if ops.choose("auto", torch.device("cpu"))[0] == "native":
        with pytest.raises(UsageError, match="began with backend reference, now it would go on with native"):
            go_on("native")
    assert go_on("reference").test_accuracy > 0
    plain = stopped("sgd", few, tmp_path / "sgd.pt", "reference")  # has none of sharpkern
    assert plain("auto").test_accuracy > 0


def test_runs_of_one_seed_start_alike_and_see_the_same_images(digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    from sharpkern.train.protocol import training

    seen: list[torch.Tensor] = []
    real = training.batches

    def recorded(*arguments: Any) -> Any:
        for images, labels in real(*arguments):
            seen.extend((images, labels))
            yield images, labels

    monkeypatch.setattr(training, "batches", recorded)
    streams = []
    for method in ("sam", "asam", "fishersam"):
        job = one("fisher-sam-table-4", method, epochs=1)
        Training(job, digits, None, "auto", "cpu").epoch()
        streams.append(list(seen))
        seen.clear()
    assert len(streams[0]) == 18
    assert all(torch.equal(a, b) for other in streams[1:] for a, b in zip(streams[0], other, strict=True))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs take no time and leave their titles."""
    titles: list[str] = []

    def fake(training: Training, checkpoint: Path, _: object) -> Outcome:
        job = training.job
        titles.append(job.title)
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        return Outcome(90.0 + job.seed, 0.5, 1.0, {})

    monkeypatch.setattr(runner, "train", fake)
    return titles


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = counted(monkeypatch)
    arguments = ("--preset", "g-tracer-table-1", "--out", tmp_path, "--seeds")
    assert command(*arguments, 1) == 0
    assert len(titles) == 3
    assert command(*arguments, 2) == 0
    assert len(titles) == len(set(titles)) == 6
    assert command(*arguments, 2, "--epochs", 3) == 0
    assert len(titles) == 12
    found = rows(tmp_path / "results.csv")
    assert len(found) == 12
    assert tuple(found[0]) == (*COLUMNS, *ledger.RESULTS)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_weights_that_were_not_kept_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = counted(monkeypatch)
    arguments = ("--preset", "g-tracer-table-1", "--seeds", 1, "--out", tmp_path)
    assert command(*arguments) == 0
    before = (tmp_path / "results.csv").read_text()
    assert command(*arguments, "--keep-weights", "--dry-run") == 0
    plan = table(capsys.readouterr().out, "[G] Table 1")
    assert [row[8] for row in plan] == ["1", "1", "1"]
    assert command(*arguments, "--keep-weights") == 0
    assert titles[3:] == titles[:3]
    assert "3 runs left no weights and are trained again; their rows stay" in capsys.readouterr().out
    assert len(list((tmp_path / "weights").iterdir())) == 3
    assert (tmp_path / "results.csv").read_text() == before
    assert command(*arguments, "--keep-weights") == 0
    assert len(titles) == 6


def test_a_folder_is_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = counted(monkeypatch)
    arguments = ("--preset", "g-tracer-table-1", "--seeds", 1, "--out", tmp_path)
    with runner.locked(tmp_path):
        assert command(*arguments) == 2
        assert "another run uses this folder" in capsys.readouterr().err
        assert titles == []
        assert command(*arguments, "--report") == 0  # reads only
    assert command(*arguments) == 0
    assert len(titles) == 3


def test_a_torn_row_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = counted(monkeypatch)
    arguments = ("--preset", "g-tracer-table-1", "--out", tmp_path, "--seeds", 1)
    assert command(*arguments) == 0
    path = tmp_path / "results.csv"
    whole = path.read_text()
    path.write_text(whole[:-5])  # as a kill in the middle of the write leaves it
    assert command(*arguments) == 0
    assert titles[3:] == titles[2:3]
    assert path.read_text() == whole


def test_rows_of_another_version_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.csv").write_text("preset,seed\nx,0\n")
    assert command("--preset", "g-tracer-table-1", "--out", tmp_path) == 2
    assert "its columns are not those of this version" in capsys.readouterr().err


def test_an_interruption_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "train", interrupted)
    assert command("--preset", "g-tracer-table-1", "--out", tmp_path) == 130
    assert "the same command goes on from the last epoch" in capsys.readouterr().err


# The report


def table(screen: str, first: str) -> list[list[str]]:
    lines = [line for line in screen.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[2:].startswith(first)]


def test_the_report_has_the_papers_figures_and_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted(monkeypatch)
    arguments = ("--preset", "fisher-sam-table-4", "--out", tmp_path, "--seeds", 2)
    assert command(*arguments) == 0
    screen = capsys.readouterr().out
    assert table(screen, "0.2") == [["0.2", "87.97 ± 0.04", "93.12 ± 0.24", "92.26 ± 0.33", "93.03 ± 0.11"]]
    assert table(screen, "40 % flipped") == [["40 % flipped", *["90.50 ± 0.50 (2)"] * 4]]
    assert command(*arguments, "--report") == 0
    assert capsys.readouterr().out in screen


def test_the_report_puts_ours_beneath_the_papers_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--preset", "sam-as-vi-table-3", "--data", "cifar10", "--networks", "wrn28-2", "--out", tmp_path)
    job = next(job for job in jobs(Request(("sam-as-vi-table-3",), data="cifar10")) if job.contender.name == "sam")
    ledger.append(tmp_path / "results.csv", {**job.columns(), "test_accuracy": "95.5"})
    assert command(*arguments, "--report") == 0
    screen = capsys.readouterr().out
    assert table(screen, "SAM")[0] == ["SAM", "96.10 ± 0.11", "97.20 ± 0.07", "76.25 ± 0.27", "83.26 ± 0.0004"]
    assert table(screen, "  here") == [["here", "95.50 (1)", "", "", ""]]


# The command

SGD_TRACER = "SGD-TRACER rho=0.001 beta=0.1 delta=0.1 radius=0.01"


def test_a_preset_learns(tmp_path: Path) -> None:
    arguments = ("--preset", "g-tracer-table-2", "--methods", "tracer", "--epochs", 8, "--seeds", 1, "--out", tmp_path)
    assert command(*arguments) == 0
    found = [(row["noise"], float(row["test_accuracy"])) for row in rows(tmp_path / "results.csv")]
    assert len(found) == 3
    assert all(accuracy > (90 if noise == "0.0" else 60) for noise, accuracy in found)


def test_what_one_run_leaves_another_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "EPOCHS", 1)
    common = ("--methods", "sgd,adam", "--epochs", 1, "--seeds", 1, "--out", tmp_path)
    one_of = ("--preset", "fisher-sam-table-2,g-tracer-table-3", *common)
    assert command(*one_of, "--keep-weights") == 0
    starts = {path.name for path in (tmp_path / "starts").iterdir()}
    assert starts == {"tiny-vit-all.pt", "tiny-vit-half.pt"}
    first = next((tmp_path / "weights").glob("fisher-sam-table-2-digits-tiny-vit-sgd-*.pt"))
    assert command(*one_of, "--checkpoint", first) == 0
    found = rows(tmp_path / "results.csv")
    assert [row["method"] for row in found] == ["sgd", "adam", "sgd", "adam"]
    assert [row["start"] for row in found[:2]] == ["all digits", "half digits"]
    assert all(row["start"].startswith(first.name) for row in found[2:])


def test_all_leaves_out_what_has_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--preset", "all", "--report", "--out", tmp_path)
    assert command(*arguments, "--data", "cifar100") == 0
    screen = capsys.readouterr().out
    line = next(line for line in screen.splitlines() if line.startswith("left out: "))
    for part in ("fisher-sam-table-2 (nothing on cifar100)", "fisher-sam-table-3 (wants --checkpoint)"):
        assert part in line
    shown = {preset.table for preset in PRESETS.values() if f"\n{preset.table}: " in screen}
    assert shown == {"[F] Table 1", "[G] Table 1", "[G] Table 2", "[V] Table 3"}
    assert command(*arguments, "--checkpoint", __file__) == 0
    screen = capsys.readouterr().out
    assert "fisher-sam-table-1 (starts from random weights)" in screen
    assert "\n[F] Table 2: " in screen
    assert command(*arguments) == 0
    assert "left out" not in capsys.readouterr().out
    assert command(*arguments, "--networks", "vit-b16") == 2
    assert "no preset has what was asked for: fisher-sam-table-1 (no vit-b16)" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    assert command("--preset", "fisher-sam-table-4,g-tracer-table-1", "--dry-run", "--out", out) == 0
    screen = capsys.readouterr().out
    assert len(table(screen, "[F] Table 4")) == 16
    assert table(screen, "[G] Table 1")[2][3:9] == [SGD_TRACER, "20", "0.1", "128", "180", "2"]
    assert "about" in screen
    assert not out.exists()


def test_a_dry_run_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--preset", "g-tracer-table-1", "--methods", "sam", "--data", "cifar100", "--dry-run")
    assert command(*arguments) == 0
    row = table(capsys.readouterr().out, "[G] Table 1")[0]
    assert row[1:9] == ["CIFAR-100, No aug", "ResNet-20", "SAM rho=0.05", "200", "0.1", "128", "78000", "3"]


def test_durations() -> None:
    assert [duration(s) for s in (1.25, 40, 150, 7200, 360_000)] == ["1.2 s", "40 s", "2.5 min", "2 h", "4.17 days"]


def test_the_list_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--list") == 0
    screen = capsys.readouterr().out
    assert all(preset.name in screen and preset.table in screen for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "fisher"), "unknown preset 'fisher': choose from fisher-sam-table-1"),
        (
            ("--preset", "fisher-sam-table-1", "--data", "mnist"),
            "unknown data set 'mnist': choose from digits, cifar10",
        ),
        (("--preset", "fisher-sam-table-1", "--lr", "0.1"), "--lr is fixed by the preset"),
        (("--preset", "fisher-sam-table-1", "--methods", "tracer"), "unknown method 'tracer': choose from asam"),
        (("--preset", "fisher-sam-table-1", "--epochs", "0"), "epochs=0: wanted at least 1"),
        (("--preset", "fisher-sam-table-1", "--threads", "0"), "threads=0: wanted at least 1"),
        (("--preset", "fisher-sam-table-1", "--data", "cifar10"), "cifar10 needs --data-dir FOLDER"),
        (("--preset", "fisher-sam-table-1", "--networks", "vit-b16"), "fisher-sam-table-1 has small on digits"),
        (("--preset", "fisher-sam-table-1", "--checkpoint", __file__), "starts from random weights"),
        (("--preset", "fisher-sam-table-2", "--data", "cifar10"), "sharpkern does not read ImageNet"),
        (("--preset", "fisher-sam-table-3", "--data", "cifar100"), "starts from ViT-B/16 trained on ImageNet: give"),
        (("--preset", "fisher-sam-table-3", "--checkpoint", "none.pt"), "--checkpoint none.pt: no such file"),
        (("--preset", "fisher-sam-table-3", "--checkpoint", __file__), "torch.load cannot read it as weights"),
        (("--data", "cifar10"), "--data needs --preset"),
        (("--dry-run",), "--dry-run needs --preset"),
    ],
)
def test_bad_options_are_told(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(*arguments, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err


# Weights to start from


def test_a_head_for_other_classes_stays_new(tmp_path: Path) -> None:
    five, ten = make("tiny-vit", 1, 5, 0), make("tiny-vit", 1, 10, 1)
    new_head = ten.head.weight.clone()
    torch.save({"model": five.state_dict()}, tmp_path / "five.pt")
    load_weights(ten, tmp_path / "five.pt", start.HEAD)
    assert torch.equal(ten.head.weight, new_head)
    assert torch.equal(ten.pos_embed, five.pos_embed)
    assert torch.equal(ten.blocks[1].attn.qkv.weight, five.blocks[1].attn.qkv.weight)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(make("small", 1, 10, 0).state_dict(), tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"weights of another network: .* names or shapes differ, as "):
        load_weights(make("tiny-vit", 1, 10, 0), tmp_path / "small.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no weights by name"):
        load_weights(make("tiny-vit", 1, 10, 0), tmp_path / "list.pt")


def test_a_start_is_trained_once_and_on_its_classes(
    digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "EPOCHS", 1)
    path = tmp_path / "half.pt"
    start.make_start("tiny-vit", digits, "half", path)
    assert torch.load(path)["head.weight"].shape == (5, 64)
    before = path.stat().st_mtime_ns
    start.make_start("tiny-vit", digits, "half", path)
    assert path.stat().st_mtime_ns == before
