"""The engine of `sharpkern train`: its data, its methods, and a short run of the command."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sharpkern import EvolutionStrategies, cli, train
from sharpkern.train import experiment
from sharpkern.train.data import CLASSES, TRAIN_IMAGES, Digits, batches, flip_labels, load_digits, shifted
from sharpkern.train.figure import draw, read_curves
from sharpkern.train.methods import Batch, Setup, forward_passes, noisy_pass, one_pass, two_passes
from sharpkern.train.network import make_network
from sharpkern.train.results import mean_and_error


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    torch.set_num_threads(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


def command(*arguments: object) -> int:
    return cli.main(["train", *map(str, arguments)])


def ignore(passes: int) -> None:
    pass


SETUP = Setup({"lr": 0.1, "weight_decay": 5e-4}, "auto", noisy=False)


def batch(model: torch.nn.Module, digits: Digits) -> Batch:
    return Batch(model, digits.train_images[:64], digits.train_labels[:64], 0.1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Data


def test_digits_are_standardised_and_stratified(digits: Digits) -> None:
    assert digits.train_images.shape == (TRAIN_IMAGES, 1, 8, 8)
    assert digits.test_images.shape == (599, 1, 8, 8)
    assert abs(digits.train_images.mean().item()) < 1e-5
    assert digits.train_images.std().item() == pytest.approx(1, abs=1e-5)
    counts = [labels.bincount(minlength=CLASSES) for labels in (digits.train_labels, digits.test_labels)]
    assert (counts[0] - 2 * counts[1]).abs().max() <= 2


def test_training_and_test_images_are_apart(digits: Digits) -> None:
    training = {image.numpy().tobytes() for image in digits.train_images}
    assert not training & {image.numpy().tobytes() for image in digits.test_images}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
def test_flips_are_exactly_the_share(share: float) -> None:
    labels = torch.randint(CLASSES, (1198,), generator=seeded(0))
    flipped = flip_labels(labels, share, seeded(1))
    assert int((flipped != labels).sum()) == round(share * len(labels))
    assert flipped.min() >= 0
    assert flipped.max() < CLASSES


def test_flips_reach_every_other_class_alike() -> None:
    labels = torch.full((90_000,), 7)
    counts = flip_labels(labels, 1.0, seeded(2)).bincount(minlength=CLASSES)
    assert counts[7] == 0
    assert (counts[torch.arange(CLASSES) != 7] - 10_000).abs().max() < 5 * math.sqrt(10_000)


def test_flips_leave_the_batches_that_follow_alone() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    one, other = seeded(3), seeded(3)
    flip_labels(labels, 0.0, one)
    flip_labels(labels, 0.4, other)
    assert torch.equal(one.get_state(), other.get_state())


def test_shifts_move_by_one_pixel_and_fill_with_background() -> None:
    image = torch.full((1, 1, 8, 8), -1.0)
    image[0, 0, 3, 4] = 1.0
    views = shifted(image)
    assert torch.equal(views[4], image)
    where = {tuple((view == 1).nonzero()[0].tolist()[2:]) for view in views}
    assert where == {(y, x) for y in (2, 3, 4) for x in (3, 4, 5)}
    assert all(int((view == -1).sum()) == 63 for view in views)


def test_an_epoch_holds_every_image_at_most_once() -> None:
    images = torch.arange(50.0).reshape(50, 1, 1, 1)
    epoch = list(batches(images[None], torch.arange(50), 16, seeded(4)))
    assert [len(labels) for _, labels in epoch] == [16, 16, 16]
    labels = torch.cat([labels for _, labels in epoch])
    assert len(labels.unique()) == 48
    assert torch.equal(torch.cat([images for images, _ in epoch]).flatten(), labels.float())


# The same seed gives the same run


def test_the_seed_fixes_the_initial_weights_and_nothing_else() -> None:
    before = torch.get_rng_state()
    one, same, other = make_network(5), make_network(5), make_network(6)
    assert torch.equal(torch.get_rng_state(), before)
    for p, q in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_every_method_sees_the_same_start_and_the_same_batches(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def recorded_network(seed: int) -> torch.nn.Sequential:
        model = make_network(seed)
        seen.extend(p.detach().clone() for p in model.parameters())
        return model

    def recorded_batches(*args: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in batches(*args):
            seen.extend(batch)
            yield batch

    monkeypatch.setattr(experiment, "make_network", recorded_network)
    monkeypatch.setattr(experiment, "batches", recorded_batches)
    options = train.Options(epochs=1)
    first: list[torch.Tensor] = []
    for method in train.METHODS.values():
        seen.clear()
        experiment.train(method, "noisy", 0, digits, options, ignore)
        first = first or list(seen)
        assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=method.epoch_factor == 1))


@pytest.mark.parametrize("name", list(train.METHODS))
def test_a_run_repeats_itself(digits: Digits, name: str) -> None:
    method, options = train.METHODS[name], train.Options(epochs=1)
    one, same, other = (experiment.train(method, "noisy", seed, digits, options, ignore) for seed in (1, 1, 2))
    assert one.curve == same.curve
    assert one.curve != other.curve


# Steps


@pytest.mark.parametrize("name", list(train.METHODS))
def test_running_statistics_are_touched_once_a_step(digits: Digits, name: str) -> None:
    model, method = make_network(0), train.METHODS[name]
    optimizer = method.factory(model, SETUP)
    for _ in range(3):
        method.style(optimizer, batch(model, digits))
    assert model[1].num_batches_tracked.item() == 3
    plain = make_network(0)
    plain(digits.train_images[:64])
    model = make_network(0)
    optimizer = method.factory(model, SETUP)
    if method.style in {two_passes, one_pass}:
        method.style(optimizer, batch(model, digits))
        assert torch.equal(model[1].running_mean, plain[1].running_mean)  # of the weights themselves


def test_optimizer_work_is_the_optimizers_own_calls() -> None:
    class Sleepy:
        def first_step(self) -> None:
            time.sleep(0.01)

        step = second_step = first_step

        def zero_grad(self) -> None:
            time.sleep(0.2)

    class Slow(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2)
            return super().forward(x)

    data = Batch(Slow(1, 2), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), 0.0)
    _, one = one_pass(Sleepy(), data)  # type: ignore[arg-type]
    assert 0.01 <= one < 0.2
    for style in (two_passes, noisy_pass):
        _, two = style(Sleepy(), data)  # type: ignore[arg-type]
        assert 0.02 <= two < 0.2
    _, none = forward_passes(EvolutionStrategies(data.model.parameters(), pairs=1), data)
    assert 0 < none < 0.2


def test_the_papers_rho_and_eta() -> None:
    def options(name: str, noisy: bool) -> tuple[float, ...]:
        group = train.METHODS[name].factory(make_network(0), Setup({"lr": 0.1}, "auto", noisy)).param_groups[0]
        return tuple(group[key] for key in ("rho", "eta") if key in group)

    assert [options("sam", noisy) for noisy in (False, True)] == [(0.05,), (0.1,)]
    assert [options("asam", noisy) for noisy in (False, True)] == [(0.5, 0.01), (0.5, 0.01)]
    assert [options("fishersam", noisy) for noisy in (False, True)] == [(0.1, 1.0), (0.1, 0.001)]


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[train.Result, str]:
    """A short run of everything, and what it printed to something that is no terminal."""
    folder, screen = tmp_path_factory.mktemp("run"), io.StringIO()
    options = train.Options(epochs=3, seeds=2, out=folder)
    return train.run(options, Console(file=screen, width=80)), screen.getvalue()


def test_it_learns(finished: tuple[train.Result, str]) -> None:
    result, _ = finished
    for run in result.runs:
        clean, noisy = {"adamtracer": (60, 30), "es": (0, 0)}.get(run.method, (80, 50))  # slow starters
        assert run.curve[-1].test_accuracy > (clean if run.condition == "clean" else noisy)
        few = (run.method, run.condition) == ("es", "noisy")  # three epochs are too few there
        assert few or run.curve[-1].train_loss < run.curve[0].train_loss
        assert 0 < run.optimizer_ms * run.steps / 1e3 < run.seconds


def test_the_table_names_every_method_and_fits_a_terminal(finished: tuple[train.Result, str]) -> None:
    _, screen = finished
    for text in (*(method.title for method in train.METHODS.values()), "clean", "40 % flipped", "±", "ms/step"):
        assert text in screen
    assert "…" not in screen


def test_without_a_terminal_progress_takes_ten_lines(finished: tuple[train.Result, str]) -> None:
    _, screen = finished
    before, _, _ = screen.partition("Handwritten digits")
    assert len(before.strip().splitlines()) <= 10
    assert "100 %" in before


def test_with_a_terminal_there_is_a_bar_with_the_time_remaining(tmp_path: Path) -> None:
    screen = io.StringIO()
    options = train.Options(methods=("sgd",), conditions=("clean",), epochs=2, seeds=1, out=tmp_path)
    train.run(options, Console(file=screen, force_terminal=True, width=100))
    assert "0:00:00" in screen.getvalue()
    assert "━" in screen.getvalue()


def test_csv_has_a_row_a_run_and_a_row_an_epoch(finished: tuple[train.Result, str]) -> None:
    result, _ = finished
    runs, curves = rows(result.folder / "runs.csv"), rows(result.folder / "curves.csv")
    wanted = {"condition", "noise", "method", "seed", "epochs", "steps", "test_accuracy", "seconds", "optimizer_ms"}
    assert wanted <= runs[0].keys()
    assert len(runs) == 2 * len(train.METHODS) * 2
    assert {run["backend"] for run in runs} <= {"native", "reference"}
    assert set(curves[0]) == {"condition", "noise", "method", "title", "seed", "epoch", "test_accuracy", "train_loss"}
    assert len(curves) == sum(int(run["epochs"]) for run in runs)
    last = {(row["condition"], row["method"], row["seed"]): row["test_accuracy"] for row in curves}
    assert all(last[run["condition"], run["method"], run["seed"]] == run["test_accuracy"] for run in runs)


def test_the_figure_is_drawn_from_the_data_alone(finished: tuple[train.Result, str], tmp_path: Path) -> None:
    result, _ = finished
    copy = tmp_path / "curves.csv"
    copy.write_bytes((result.folder / "curves.csv").read_bytes())
    png, pdf = draw(copy)
    assert png.read_bytes() == (result.folder / "curves.png").read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    curves = read_curves(copy)
    assert list(curves) == [0.0, 0.4]
    assert len(curves[0.4]["SGD 2x epochs"]) == 6


def test_one_seed_has_no_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command("--methods", "sgd, sam", "--conditions", "clean", "--epochs", 1, "--seeds", 1, "--out", tmp_path) == 0
    )
    screen = capsys.readouterr().out
    assert "±" not in screen
    assert "nan" not in screen
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "curves.csv", "curves.png", "curves.pdf"}


def test_standard_error() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert mean == 2
    assert error == pytest.approx(1 / math.sqrt(3))


def test_threads_are_put_back(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    train.run(
        train.Options(methods=("sgd",), conditions=("clean",), epochs=1, seeds=1, out=tmp_path), Console(quiet=True)
    )
    assert torch.get_num_threads() == 2


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "sgd,adam"), "unknown method 'adam': choose from sgd, sgd2x, sam, asam, fishersam, mixsam"),
        (("--methods", ","), "no method was named"),
        (("--methods", "sam,sam"), "a method was named twice"),
        (("--conditions", "dirty"), "unknown condition 'dirty': choose from clean, noisy"),
        (("--noise", "1.5"), "noise=1.5: wanted the share"),
        (("--noise", "nan"), "noise=nan: wanted the share"),
        (("--epochs", "0"), "epochs=0: wanted at least 1"),
        (("--seeds", "-1"), "seeds=-1: wanted at least 1"),
        (("--batch-size", "5000"), "batch_size=5000: wanted at most 1198"),
        (("--lr", "inf"), "lr=inf: wanted a finite number > 0"),
        (("--backend", "fast"), "backend='fast': wanted one of auto"),
        (("--device", "abacus"), "device='abacus'"),
        (("--out", __file__), "File exists"),
    ],
)
def test_bad_options_are_told(arguments: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert command("--epochs", 1) == 2
    error = capsys.readouterr().err
    assert 'scikit-learn, not installed here: pip install "sharpkern[train]"' in error
    assert "matplotlib" not in error


def test_the_package_and_its_parser_need_no_extra() -> None:
    code = """if True:
        import sys
        sys.modules.update(dict.fromkeys(("sklearn", "rich", "matplotlib")))
        from sharpkern import cli
        raise SystemExit(cli.main(["train"]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scikit-learn, rich, matplotlib" in done.stderr
