"""The options of `sharpkern train` that belong to presets."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sharpkern.train.data.images import SOURCES
from sharpkern.train.networks import NETWORKS
from sharpkern.train.options import require_packages, split_names
from sharpkern.train.presets import PRESETS
from sharpkern.train.protocol import ledger, report
from sharpkern.train.protocol.estimate import dry_run
from sharpkern.train.protocol.job import jobs, why_none
from sharpkern.train.protocol.request import Request
from sharpkern.train.protocol.runner import RESULTS, run
from sharpkern.usage import UsageError

ALL = "all"
FIXED = ("conditions", "noise", "batch_size", "lr")  # by the preset
OURS = ("data", "data_dir", "networks", "checkpoint", "dry_run", "report", "keep_weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser, as a group of their own."""
    group = parser.add_argument_group(
        "presets",
        "Training protocols of the papers. --methods, --epochs, --seeds, --backend, --threads, --device and --out hold "
        f"here too; the default folder is {Request.out}, and what is finished there is not run again.",
    )
    group.add_argument("--list", action="store_true", help="say which presets there are")
    group.add_argument("--preset", help=f"some of them, or {ALL}: those that have what else is asked for")
    group.add_argument("--data", help=f"one of {', '.join(SOURCES)} (default: {Request.data})")
    group.add_argument("--data-dir", type=Path, help="folder with the published files of CIFAR-10 or CIFAR-100")
    group.add_argument("--networks", help=f"of the preset's: {', '.join(NETWORKS)} (default: all of them)")
    group.add_argument("--checkpoint", type=Path, help="weights to start from, for presets that fine-tune")
    group.add_argument("--dry-run", action="store_true", help="print what would run and about how long; train nothing")
    group.add_argument("--report", action="store_true", help="print the tables of what is finished; train nothing")
    group.add_argument("--keep-weights", action="store_true", help="leave the last weights of every run in a file")


def asked(args: argparse.Namespace) -> bool:
    """Whether the presets are meant.

    Args:
        args: What the parser gave.

    Returns:
        True with --list or --preset.

    Raises:
        UsageError: An option of presets came without --preset.
    """
    if args.list or args.preset is not None:
        return True
    for name in OURS:
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} needs --preset; sharpkern train --list says which there are")
    return False


def main(args: argparse.Namespace) -> int:
    """Lists, plans, runs or reports.

    Args:
        args: What the parser gave.

    Returns:
        The exit status: 0, or 130 where the runs were interrupted.

    Raises:
        MissingExtraError: A package of the extra `train` is not installed.
        UsageError: An option is wrong, or a file is missing.
        OSError: The folder of the results cannot be made or written to.
    """
    if args.list:
        _list()
        return 0
    request = _request(args)
    require_packages()
    try:
        if args.dry_run:
            dry_run(request)
        elif args.report:
            from rich.console import Console

            report.show(jobs(request), ledger.read(request.out / RESULTS), Console())
        else:
            run(request)
    except KeyboardInterrupt:
        print("sharpkern train: interrupted; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


def _list() -> None:
    for preset in PRESETS.values():
        data = dict.fromkeys(["digits", *(s.data for s in preset.settings if not s.why_not)])
        methods = ", ".join(contender.name for contender in preset.contenders)
        print(f"{preset.name:20} {preset.table}: {preset.title}\n{'':20} data: {', '.join(data)}; methods: {methods}")
        if preset.start:
            print(f"{'':20} the paper starts from {preset.checkpoint}; the digits need no --checkpoint, other data do")


def _request(args: argparse.Namespace) -> Request:
    for name in FIXED:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is fixed by the preset")
    names = {field.name for field in fields(Request)}
    given: dict[str, Any] = {k: value for k, value in vars(args).items() if k in names and value is not None}
    for name in ("networks", "methods"):
        if name in given:
            given[name] = split_names(given[name])
    if args.preset != ALL:
        return Request(presets=split_names(args.preset), **given)
    return _those_that_have_it(Request(presets=tuple(PRESETS), **given))


def _those_that_have_it(request: Request) -> Request:
    """All presets but those that have nothing of what was asked for, which are named in a line."""
    why_not = {name: why_none(PRESETS[name], request) for name in request.presets}
    left_out = ", ".join(f"{name} ({why})" for name, why in why_not.items() if why)
    left = tuple(name for name, why in why_not.items() if not why)
    if not left:
        raise UsageError(f"no preset has what was asked for: {left_out}")
    if left_out:
        print(f"left out: {left_out}")
    return replace(request, presets=left)
