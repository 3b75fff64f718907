"""One training run, and the whole comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from sharpkern.train import figure, report
from sharpkern.train.data import Digits, batches, flip_labels, load_digits, shifted
from sharpkern.train.methods import METHODS, Batch, Method, Setup
from sharpkern.train.network import make_network
from sharpkern.train.options import Options, require_packages
from sharpkern.train.results import Epoch, Result, Run, write_curves, write_runs
from sharpkern.train.threads import threads
from sharpkern.usage import results_folder

if TYPE_CHECKING:
    from rich.console import Console


def run(options: Options, console: Console | None = None) -> Result:
    """Trains every method × condition × seed, shows the progress, writes the files and prints the table.

    Seeds are the outer loop, so that a busy machine slows all methods alike.

    Args:
        options: What to compare.
        console: Where to print; None is the standard output.

    Returns:
        The runs and where their files are.

    Raises:
        MissingExtraError: A package of the extra `train` is not installed.
        OSError: The folder of the results cannot be made or written to.
    """
    require_packages()
    from rich.console import Console

    console = console or Console()
    folder = options.out or Path("runs") / f"digits-{datetime.now():%Y%m%d-%H%M%S}"
    with results_folder(folder):
        return _compare(options, folder, console)


def _compare(options: Options, folder: Path, console: Console) -> Result:
    data = load_digits(options.device)
    plan = list(product(range(options.seeds), options.conditions, options.methods))
    steps = options.epochs * (len(data.train_labels) // options.batch_size)
    work = [METHODS[name].epoch_factor * METHODS[name].passes * steps for _, _, name in plan]
    runs = []
    with threads(options.threads), report.progress(console, sum(work)) as advance:
        for seed, condition, name in plan:
            text = f"{condition}, {METHODS[name].title}, seed {seed + 1} of {options.seeds}"
            runs.append(train(METHODS[name], condition, seed, data, options, partial(advance, text)))
    console.print(report.table(runs, options))
    write_runs(runs, options, folder / "runs.csv")
    write_curves(runs, options, folder / "curves.csv")
    figure.draw(folder / "curves.csv")
    console.print(f"figure and data: {folder}", highlight=False, soft_wrap=True)
    return Result(tuple(runs), folder)


def train(
    method: Method, condition: str, seed: int, data: Digits, options: Options, advance: Callable[[int], None]
) -> Run:
    """Trains one network.

    Args:
        method: Row of the table.
        condition: "clean" or "noisy".
        seed: Of flips, initial weights and batches.
        data: Training and test images.
        options: Everything else.
        advance: Called after each epoch with the backward passes done in it.

    Returns:
        Its curve and its times.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = options.noise if condition == "noisy" else 0.0
    labels, views = flip_labels(data.train_labels, noise, generator), shifted(data.train_images)
    model = make_network(seed).to(options.device)
    base = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
    optimizer = method.factory(model, Setup(base, options.backend, noise > 0))
    epochs = method.epoch_factor * options.epochs
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs)
    seconds, work, curve = 0.0, [], []
    for _ in range(epochs):
        start = time.perf_counter()
        losses = []
        for images, classes in batches(views, labels, options.batch_size, generator):
            loss, spent = method.style(optimizer, Batch(model, images, classes, options.label_smoothing))
            losses.append(loss)
            work.append(spent)
        train_loss = torch.stack(losses).mean().item()
        scheduler.step()
        seconds += time.perf_counter() - start
        curve.append(Epoch(accuracy(model, data.test_images, data.test_labels), train_loss))
        advance(len(losses) * method.passes)
    return Run(condition, method.name, seed, len(work), seconds, 1e3 * statistics.median(work), tuple(curve))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images (n, 1, 8, 8) that the model, in evaluation mode, gives their labels (n,)."""
    model.eval()
    hits = int((model(images).argmax(dim=1) == labels).sum())
    model.train()
    return 100 * hits / len(labels)
