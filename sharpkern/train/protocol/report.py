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

WIDTH = 200
NOTHING = ""


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
            what = f"digits, {NETWORKS[preset.digits.network].title}, {job.epochs // job.contender.epoch_factor} epochs"
            console.print(f"{what}, here:", highlight=False, soft_wrap=True)
            print_markdown(_digits(preset, preset.settings_on("digits"), measured), console)
        for note in preset.notes:
            console.print(f"- {note}", highlight=False, soft_wrap=True)


Place = tuple[str, ...]
Measured = dict[tuple[Place, str], str]  # place in the table, method -> cell


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


def _printed(preset: Preset, title: str, settings: Sequence[Setting], measured: Measured) -> Table:
    def paper(setting: Setting, contender: Contender) -> str:
        mean, spread = setting.printed.get(contender.name, (None, None))
        return NOTHING if mean is None else f"{mean} ± {spread}"

    def here(setting: Setting, contender: Contender) -> str:
        return measured.get((_place(setting), contender.name), NOTHING)

    if preset.methods_across:
        table = _table(title, [contender.title for contender in preset.contenders])
        for setting in settings:
            table.add_row(setting.row, *(paper(setting, contender) for contender in preset.contenders))
            _add(table, [here(setting, contender) for contender in preset.contenders])
        return table
    table = _table(title, [setting.column for setting in settings])
    for contender in preset.contenders:
        table.add_row(contender.title, *(paper(setting, contender) for setting in settings))
        _add(table, [here(setting, contender) for setting in settings])
    return table


def _digits(preset: Preset, settings: Sequence[Setting], measured: Measured) -> Table:
    def cell(setting: Setting, contender: Contender) -> str:
        return measured.get((_place(setting), contender.name), NOTHING)

    if preset.methods_across:
        table = _table("", [contender.title for contender in preset.contenders])
        for setting in settings:
            table.add_row(setting.short, *(cell(setting, contender) for contender in preset.contenders))
        return table
    table = _table("", [setting.short for setting in settings])
    for contender in preset.contenders:
        table.add_row(contender.title, *(cell(setting, contender) for setting in settings))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.MARKDOWN, show_edge=True)
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _add(table: Table, cells: Sequence[str]) -> None:
    if any(cells):
        table.add_row("  here", *cells)


def print_markdown(table: Table, console: Console) -> None:
    """Prints a table as wide as it is: Markdown is not folded to the terminal."""
    from rich.console import Console

    Console(file=console.file, width=WIDTH, highlight=False).print(table)
