"""The command line of `sharpkern train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sharpkern import ops
from sharpkern.train.experiment import run
from sharpkern.train.methods import METHODS
from sharpkern.train.options import CONDITIONS, MissingExtraError, Options, require_extra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a description and the options of `Options` to a parser; `main` takes what it parses."""
    parser.description = (
        "Trains a small convolutional network on the handwritten digits of scikit-learn, with clean and with flipped "
        "labels, by several methods. Prints a table; writes a figure and its data as CSV."
    )
    default = Options()

    def add(name: str, value: object, text: str, kind: type = str) -> None:
        parser.add_argument(name, type=kind, default=value, help=f"{text} (default: %(default)s)")

    add("--methods", ",".join(default.methods), f"some of {', '.join(METHODS)}")
    add("--conditions", ",".join(default.conditions), f"some of {', '.join(CONDITIONS)}")
    add("--noise", default.noise, 'share of the training labels that "noisy" flips', float)
    add("--epochs", default.epochs, "passes over the training images; sgd2x takes twice as many", int)
    add("--seeds", default.seeds, "runs of every method and condition", int)
    add("--batch-size", default.batch_size, "images a step", int)
    add("--lr", default.lr, "learning rate at the start of the cosine", float)
    add("--backend", default.backend, f"one of {', '.join(('auto', *ops.NAMES))}")
    add("--threads", default.threads, "threads for torch", int)
    add("--device", default.device, "where to train")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/digits-<date>-<time>)")


def main(args: argparse.Namespace) -> int:
    """Runs the comparison.

    Args:
        args: What a parser with `add_arguments` gave.

    Returns:
        The exit status: 0, or 2 where an option is wrong, a package is missing or the folder cannot be written; the
        reason goes to the standard error.
    """
    try:
        require_extra()
        options = _options(args)
    except (MissingExtraError, ValueError) as error:
        return _refuse(error)
    try:
        run(options)
    except OSError as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    print(f"sharpkern train: {error}", file=sys.stderr)
    return 2


def _options(args: argparse.Namespace) -> Options:
    return Options(
        methods=_names(args.methods),
        conditions=_names(args.conditions),
        noise=args.noise,
        epochs=args.epochs,
        seeds=args.seeds,
        batch_size=args.batch_size,
        lr=args.lr,
        backend=args.backend,
        threads=args.threads,
        device=args.device,
        out=args.out,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
