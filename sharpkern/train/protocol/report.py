"""The papers' tables, and beneath each row what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sharpkern.train.networks import NETWORKS
from sharpkern.train.presets import Contender, Preset, Setting
from sharpkern.train.protocol.job import Job
from sharpkern.train.protocol.ledger import Row, find
from sharpkern.train.results import mean_and_error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 300

Cell = tuple[Setting, Contender]
Place = tuple[str, ...]
Measured = dict[tuple[Place, str], str]  # place in the table, method -> what was measured


def show(planned: Sequence[Job], rows: Sequence[Row], console: Console) -> None:
    """Prints a table for each preset, or several where the paper's has parts side by side; as Markdown.

    Args:
        planned: The runs that were asked for; rows of other options are left out, any seed is taken.
        rows: Of the CSV file.
        console: Where to print.
    """
    for name in dict.fromkeys(job.preset.name for job in planned):
        own = [job for job in planned if job.preset.name == name]
        preset = own[0].preset
        measured = _measured(own, rows)
        console.print(f"\n{preset.table}: {preset.title}", highlight=False, soft_wrap=True)
        console.print(f"paper: test accuracy in %, and {preset.spread}", highlight=False, soft_wrap=True)
        console.print("here: mean ± standard error of the seeds (number of seeds)", highlight=False, soft_wrap=True)
        for title, settings in _parts(preset):
            print_markdown(_printed(preset, title, settings, measured), console)
        if own[0].data == "digits":
            job = own[0]
            epochs = job.epochs // job.contender.epoch_factor
            what = f"digits, {NETWORKS[preset.digits.network].title}, {epochs} epoch{'s' * (epochs > 1)}"
            console.print(f"{what}, here:", highlight=False, soft_wrap=True)
            print_markdown(_digits(preset, preset.settings_on("digits"), measured), console)
        for note in preset.notes:
            console.print(f"- {note}", highlight=False, soft_wrap=True)


def _place(setting: Setting) -> Place:
    return setting.data, setting.network, setting.row, setting.column


def _measured(jobs: Sequence[Job], rows: Sequence[Row]) -> Measured:
    cells = {}
    for job in jobs:
        found = [float(row["test_accuracy"]) for row in find(rows, job, any_seed=True)]
        if found:
            mean, error = mean_and_error(found)
            spread = "" if len(found) < 2 else f" ± {error:.2f}"
            cells[_place(job.setting), job.contender.name] = f"{mean:.2f}{spread} ({len(found)})"
    return cells


def _parts(preset: Preset) -> list[tuple[str, list[Setting]]]:
    if not preset.methods_across:
        return [("", list(preset.settings))]
    columns = dict.fromkeys(setting.column for setting in preset.settings)
    return [(column, [s for s in preset.settings if s.column == column]) for column in columns]


def _rows(preset: Preset, settings: Sequence[Setting], name: str) -> list[tuple[str, list[Cell]]]:
    """Label and cells of each row, methods across or down as in the paper; `name` is the setting's own label."""
    if preset.methods_across:
        return [(getattr(s, name), [(s, contender) for contender in preset.contenders]) for s in settings]
    return [(contender.title, [(setting, contender) for setting in settings]) for contender in preset.contenders]


def _printed(preset: Preset, title: str, settings: Sequence[Setting], measured: Measured) -> Table:
    across = [contender.title for contender in preset.contenders]
    table = _table(title, across if preset.methods_across else [setting.column for setting in settings])
    for label, cells in _rows(preset, settings, "row"):
        table.add_row(label, *(_paper(setting, contender) for setting, contender in cells))
        here = [_here(cell, measured) for cell in cells]
        if any(here):
            table.add_row("  here", *here)
    return table


def _digits(preset: Preset, settings: Sequence[Setting], measured: Measured) -> Table:
    across = [contender.title for contender in preset.contenders]
    table = _table("", across if preset.methods_across else [setting.short for setting in settings])
    for label, cells in _rows(preset, settings, "short"):
        table.add_row(label, *(_here(cell, measured) for cell in cells))
    return table


def _paper(setting: Setting, contender: Contender) -> str:
    if contender.name not in setting.printed:
        return ""
    mean, spread = setting.printed[contender.name]
    return f"{mean} ± {spread}"


def _here(cell: Cell, measured: Measured) -> str:
    setting, contender = cell
    return measured.get((_place(setting), contender.name), "")


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.MARKDOWN)
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_markdown(table: Table, console: Console) -> None:
    """Prints a table as wide as it is: Markdown is not folded to the terminal."""
    from rich.console import Console

    Console(file=console.file, width=WIDTH, highlight=False).print(table)
