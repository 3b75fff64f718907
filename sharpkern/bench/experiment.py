"""One run: every block of it measured, told and appended to a CSV at once, so that what is measured is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sharpkern.bench import overhead
from sharpkern.bench.options import Options
from sharpkern.bench.provenance import gpu, machine, pinned, versions
from sharpkern.bench.results import append
from sharpkern.bench.shapes import find
from sharpkern.bench.suite import BEYOND, Bench

Row = dict[str, Any]
SECONDS, FULL_SECONDS = 2.0, 15.0  # a group, where the turns are not given


def run(options: Options, path: Path, show: Callable[[list[Row]], None], tell: Callable[[str], None]) -> int:
    """Measures everything that the options ask for.

    Args:
        options: What to measure.
        path: Of the CSV, to which rows are appended.
        show: Called with the rows of each block.
        tell: Called once with each line on what is left out.

    Returns:
        The number of rows.

    Raises:
        UsageError: The CSV has other columns.
        OSError: The CSV cannot be made or written to.
    """
    append(path, [])  # says before anything is measured that it cannot be written to
    about, count, told = None, 0, set()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            tell(line)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* weights swallow the perturbation", UserWarning)  # the data are random
        for threads in options.chosen_threads():
            seconds = FULL_SECONDS if options.full else SECONDS
            first = threads == options.chosen_threads()[0]
            bench = Bench(
                options.device, threads, options.chosen_dtypes(), options.repeats, seconds, options.full, once, first
            )
            with pinned(threads):
                about = {**versions(), **machine(), "gpu": gpu()["gpu"] if options.device == "cuda" else ""}
                for block in _blocks(bench, options):
                    append(path, [{**about, **row} for row in block])
                    show(block)
                    count += len(block)
    return count


def _blocks(bench: Bench, options: Options) -> Iterator[list[Row]]:
    if options.overhead:
        yield overhead.measure(bench.device, bench.threads, bench.repeats, bench.tell)
        return
    for shapes in options.chosen_shapes():
        yield from bench.ops(shapes)
        yield from bench.steps(shapes)
    for shapes in options.swept_shapes():
        yield from bench.ops(shapes)
        yield from bench.steps(shapes, ("sgd",))
    if bench.first:
        for shapes in options.chosen_shapes():
            if 4 * sum(map(math.prod, find(shapes))) >= BEYOND:
                yield from bench.memory(shapes)
        yield bench.imports()
