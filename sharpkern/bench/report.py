"""What the terminal shows: a table a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sharpkern.bench import overhead
from sharpkern.bench.candidates import OURS

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> Table:
    """One block: time, rate, share of the copy's rate, and what ours takes of each other's time."""
    from rich.table import Table

    if rows[0]["table"] == overhead.TABLE:
        return _overhead(rows)
    times, ratios = ([row for row in rows if bool(row["against"]) == against] for against in (False, True))
    ours = _reference(times)
    caption = f"takes: time of {ours} over that of the candidate, turn by turn" if ours else None
    result = Table(title=_title(rows[0]), title_justify="left", caption=caption, caption_justify="left")
    result.add_column("candidate", no_wrap=True)
    headers = (rows[0]["unit"].replace("us", "µs"), "p20 - p80", "GB/s", "of copy", "takes")
    for header in headers:
        result.add_column(header, justify="right", no_wrap=True)
    taken = {row["against"]: row["p50"] for row in ratios if row["candidate"] == ours}
    for row in times:
        result.add_row(row["candidate"], *_cells(row), _ratio(taken.get(row["candidate"])))
    for row in ratios:
        if not ours:
            result.add_row(f"{row['candidate']} / {row['against']}", "", "", "", "", _ratio(row["p50"]))
    return result


def _overhead(rows: Sequence[Row]) -> Table:
    """Whole training steps, and the share of the optimizer's work."""
    from rich.table import Table

    caption = overhead.compared(rows)
    result = Table(
        title=_title({**rows[0], "group": ""}), title_justify="left", caption=caption, caption_justify="left"
    )
    for name in overhead.HEADER:
        result.add_column(name, justify="left" if name == overhead.HEADER[0] else "right", no_wrap=True)
    for line in overhead.lines(rows):
        result.add_row(*line)
    return result


def _reference(times: Sequence[Row]) -> str:
    """The candidate whose time is put in relation to all others': of ours the first with the group's own method."""
    own = [row["candidate"] for row in times if row["table"] == "steps" and row["candidate"].startswith(OURS)]
    adaptive = [name for name in own if " ASAM " in name]
    return next(iter([*adaptive, *own]), "")


def _title(row: Row) -> str:
    size = f", {row['elements']:,} elements in {row['tensors']} tensors" if "elements" in row else ""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    names = dict.fromkeys(x for x in (row["table"], row["group"], row["shapes"]) if x)
    return f"{': '.join(names)}{size}, {row['dtype'] + ', ' if row['dtype'] else ''}{threads}"


def _cells(row: Row) -> tuple[str, str, str, str]:
    spread = f"{_short(row['p20'])} - {_short(row['p80'])}" if "p20" in row else ""
    rate = f"{row['gb_s']:.1f}" if "gb_s" in row else ""
    share = f"{row['share_of_copy']:.0%}" if "share_of_copy" in row else ""
    return _short(row["p50"]), spread, rate, share


def _short(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
