"""The commands `sharpkern info`, `verify`, `train`, `bench`, `toy` and `sharpness`; also `python -m sharpkern`."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import secrets
import sys
from collections.abc import Sequence

import torch

import sharpkern
from sharpkern import analysis, bench, ops, toy, train, verify
from sharpkern.usage import MissingExtraError, UsageError


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def info(args: argparse.Namespace) -> int:
    """Prints versions, devices, and each backend usable or why not."""
    print(f"sharpkern {sharpkern.__version__}")
    print(f"python    {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"torch     {torch.__version__}")
    print(f"triton    {_version('triton')}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"devices   cpu, {torch.get_num_threads()} threads{''.join(f'; {name}' for name in devices)}")
    statuses = sharpkern.backends()
    for status in statuses:
        print(f"backend   {status.name} on {status.device}: {status.why_not or _usable(status)}")
    for device in dict.fromkeys(status.device for status in statuses):
        name, why_not = ops.choose("auto", torch.device(device))
        print(f"auto      {name} on {device}{f' ({why_not})' if why_not else ''}")
    return 0


def _usable(status: sharpkern.BackendStatus) -> str:
    if status.name != "native":
        return "usable"
    from sharpkern.backend import native

    compiled = ", ".join(f"sm_{name}" for name in native.cuda_architectures())
    if status.device != "cpu":
        return f"usable, compiled for {compiled}"
    first, *others = native.instruction_sets()
    also = f" (runs here too: {', '.join(others)})" if others else ""
    return f"usable, instruction set {first}{also}; CUDA kernels {f'for {compiled}' if compiled else 'not built'}"


def check(args: argparse.Namespace) -> int:
    """Prints the worst error of every op and formula, and whether all are in bounds."""
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    print(f"errors in units in the last place against the float64 reference; seed {seed}")
    print(f"{'backend':10} {'device':6} {'op':9} {'formula':22} {'dtype':9} {'worst':>8} {'bound':>6}")
    rows = []
    for row in verify.run(seed):
        rows.append(row)
        dtype = str(row.dtype).removeprefix("torch.")
        mark = "" if row.passed else "  OUT OF BOUNDS"
        what = f"{row.backend:10} {row.device:6} {row.op:9} {row.formula:22} {dtype:9}"
        print(f"{what} {row.error:8.3f} {row.bound:6.1f}{mark}")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} checks in bounds" + (f", {failed} OUT OF BOUNDS" if failed else ""))
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="sharpkern", description="Sharpness-aware optimizers with fused kernels.")
    top.add_argument("--version", action="version", version=f"sharpkern {sharpkern.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("info", help="versions, devices, backends", description=info.__doc__)
    command.set_defaults(run=info)

    command = commands.add_parser("verify", help="every kernel against the reference", description=check.__doc__)
    command.add_argument("--seed", type=int, help="of the random data (default: a new one every time)")
    command.set_defaults(run=check)

    command = commands.add_parser("train", help="train a network on real data", description=train.__doc__)
    train.add_arguments(command)
    command.set_defaults(run=train.main)

    command = commands.add_parser("bench", help="time against the peers and a copy")
    bench.add_arguments(command)
    command.set_defaults(run=bench.main)

    command = commands.add_parser(
        "toy", help="a flat and a sharp minimum, and the way to them", description=toy.__doc__
    )
    toy.add_arguments(command)
    command.set_defaults(run=toy.main)

    command = commands.add_parser("sharpness", help="how flat the loss is around trained weights")
    analysis.add_arguments(command)
    command.set_defaults(run=analysis.main)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line; that of the process if None.

    Returns:
        The exit status: that of the command, 2 where it cannot do what was asked, or 130 where Ctrl-C ended it; the
        reason goes to the standard error. Any other error is a fault of ours and is raised.
    """
    args = parser().parse_args(arguments)
    try:
        status: int = args.run(args)
    except (UsageError, MissingExtraError, OSError) as error:
        print(f"sharpkern {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sharpkern {args.command}: interrupted", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
