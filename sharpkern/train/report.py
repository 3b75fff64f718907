"""What the terminal shows: progress while it runs, the table at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharpkern.train.methods import METHODS
from sharpkern.train.options import Options
from sharpkern.train.results import Run, mean_and_error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@contextmanager
def progress(console: Console, total: int) -> Generator[Callable[[str, int], None]]:
    """A bar with the time remaining; ten plain lines where the console is no terminal.

    Args:
        console: Where to draw it.
        total: Backward passes of all runs.

    Yields:
        A function that takes the text of the run at work and the backward passes done since the last call.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:36}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=total)

        def advance(text: str, passes: int) -> None:
            before = bar.tasks[0].completed
            bar.update(task, description=text, advance=passes)
            tenth = 10 * (before + passes) // total
            if not console.is_terminal and tenth > 10 * before // total:
                console.print(f"{10 * tenth:3.0f} %  {text}", highlight=False)

        yield advance


def table(runs: Sequence[Run], options: Options) -> Table:
    """Rows of condition × method: test accuracy, seconds, milliseconds of optimizer work a step."""
    from rich.table import Table

    seeds = "1 seed" if options.seeds == 1 else f"{options.seeds} seeds, mean ± standard error"
    result = Table(
        title=f"Handwritten digits, {seeds}",
        caption="accuracy after the last epoch; seconds of training without evaluation;\n"
        "optimizer: its own calls without forward and backward, median over steps",
    )
    result.add_column("training\nlabels", no_wrap=True)
    result.add_column("method", no_wrap=True)
    for header in ("epochs", "test\naccuracy %", "seconds", "optimizer\nms/step"):
        result.add_column(header, justify="right", no_wrap=True)
    for condition in options.conditions:
        title = "clean" if condition == "clean" else f"{100 * options.noise:g} % flipped"
        for name in options.methods:
            chosen = [run for run in runs if (run.condition, run.method) == (condition, name)]
            result.add_row(title, METHODS[name].title, *_cells(chosen))
            title = ""
        result.add_section()
    return result


def _cells(runs: Sequence[Run]) -> tuple[str, str, str, str]:
    accuracy, error = mean_and_error([run.curve[-1].test_accuracy for run in runs])
    seconds, _ = mean_and_error([run.seconds for run in runs])
    optimizer, _ = mean_and_error([run.optimizer_ms for run in runs])
    shown = f"{accuracy:.2f}" if math.isnan(error) else f"{accuracy:.2f} ± {error:.2f}"
    return str(len(runs[0].curve)), shown, f"{seconds:.1f}", f"{optimizer:.3f}"
