"""What the terminal shows: a bar for each piece of work, the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharpkern.analysis.estimate import Estimate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Advance = Callable[[], None]
Stage = Callable[[str, "int | None"], Advance]


@dataclass(frozen=True)
class Number:
    """A cell of the table.

    Attributes:
        checkpoint: Of which network.
        quantity: What it is.
        value: It, sampled or not.
    """

    checkpoint: str
    quantity: str
    value: Estimate

    def row(self) -> Mapping[str, Any]:
        """The row of the CSV file."""
        return {
            "checkpoint": self.checkpoint,
            "quantity": self.quantity,
            "value": self.value.mean,
            "standard_error": self.value.error,
        }


@contextmanager
def stages(console: Console) -> Generator[Stage]:
    """Bars with the time remaining; a plain line a stage where the console is no terminal.

    Args:
        console: Where to draw them.

    Yields:
        A function of the text and the number of units of a stage (None: not known) that begins it and returns what to
        call after each unit.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:36}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def stage(text: str, total: int | None) -> Advance:
            for task in bar.tasks:
                task.visible = False
            if not console.is_terminal:
                console.print(text, highlight=False)
            task_id = bar.add_task(text, total=total)
            return lambda: bar.update(task_id, advance=1)

        yield stage


def table(numbers: Sequence[Number], title: str) -> Table:
    """One row a quantity, one column a checkpoint."""
    from rich.table import Table

    names = list(dict.fromkeys(x.checkpoint for x in numbers))
    found = {(x.quantity, x.checkpoint): x.value for x in numbers}
    result = Table(title=title)
    result.add_column("", no_wrap=True)
    for name in names:
        result.add_column(name, justify="right")
    for quantity in dict.fromkeys(x.quantity for x in numbers):
        result.add_row(quantity, *(str(found[quantity, name]) for name in names))
    return result
