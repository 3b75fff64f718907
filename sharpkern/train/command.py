"""The command line of `sharpkern train`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from sharpkern import ops
from sharpkern.train.experiment import run
from sharpkern.train.methods import METHODS
from sharpkern.train.options import CONDITIONS, Options, require_packages, split_names
from sharpkern.train.protocol import command as protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a description and the options of `Options` and of presets to a parser; `main` takes what it parses."""
    parser.description = (
        "Trains a small convolutional network on the handwritten digits of scikit-learn, with clean and with flipped "
        "labels, by several methods. Prints a table; writes a figure and its data as CSV. With --preset: the training "
        "protocols of the papers."
    )
    default = Options()

    def add(name: str, text: str, kind: type = str) -> None:
        value = getattr(default, name.removeprefix("--").replace("-", "_"))
        shown = ",".join(value) if isinstance(value, tuple) else value
        parser.add_argument(name, type=kind, help=f"{text} (default: {shown})")

    add("--methods", f"some of {', '.join(METHODS)}")
    add("--conditions", f"some of {', '.join(CONDITIONS)}")
    add("--noise", 'share of the training labels that "noisy" flips', float)
    add("--epochs", "passes over the training images; sgd2x takes twice as many", int)
    add("--seeds", "runs of every method and condition", int)
    add("--batch-size", "images a step", int)
    add("--lr", "learning rate at the start of the cosine", float)
    add("--backend", f"one of {', '.join(('auto', *ops.NAMES))}")
    add("--threads", "threads for torch", int)
    add("--device", "where to train")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/digits-<date>-<time>)")
    protocol.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the comparison, or the presets that are named.

    Args:
        args: What a parser with `add_arguments` gave.

    Returns:
        The exit status: 0, or 130 where a run of presets was interrupted.

    Raises:
        MissingExtraError: A package of the extra `train` is not installed.
        UsageError: An option is wrong, or a file is missing or not what it should be.
        OSError: The folder of the results cannot be made or written to.
    """
    if protocol.asked(args):
        return protocol.main(args)
    require_packages()
    run(_options(args))
    return 0


def _options(args: argparse.Namespace) -> Options:
    names = {field.name for field in fields(Options)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    for name in ("methods", "conditions"):
        if name in given:
            given[name] = split_names(given[name])
    return Options(**given)
