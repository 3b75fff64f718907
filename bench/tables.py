"""The tables of docs/benchmarks.md and of the README, made from the CSV files alone and written between their markers.

python bench/tables.py            writes them
python bench/tables.py --check    exit status 1 if the pages say anything else
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import scaling
from bars import BARS, LARGE, NOTHING, Rows

from sharpkern.bench import figure, results
from sharpkern.bench import overhead as training
from sharpkern.bench.results import chosen

ROOT = Path(__file__).resolve().parent.parent
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
DATA = ROOT / "bench" / "data"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(rows: Rows) -> str:
    """The bars with what was measured, on the most threads."""
    return _table(("figure", "bar", "measured", "met"), (bar.row(_most_threads(rows)) for bar in BARS))


def _most_threads(rows: Rows) -> Rows:
    return chosen(rows, threads=max((row["threads"] for row in rows), default=0))


def about(rows: Rows) -> str:
    """Where and with what, of all runs behind the medians: `results.standing`."""
    if not rows:
        return "No run has been recorded yet: `bench/data/cpu.csv` does not exist."
    row = max(rows, key=lambda row: str(row["date"]))
    commits = " and ".join(dict.fromkeys(row["commit"] or "unknown" for row in rows))
    threads = ", ".join(str(n) for n in sorted({row["threads"] for row in rows}))
    first, last = min(row["date"] for row in rows), max(row["date"] for row in rows)
    loads = sorted(float(row["load"]) for row in rows if row["load"])
    told = {
        "processor": row["cpu"],
        "cores": max((row["cores"] for row in rows), key=len),
        "threads": threads,
        "governor": row["governor"] or "not told",
        "MHz": row["mhz"] or "not told",
        "huge pages": row["huge_pages"] or "not told",
        "load when a run began": f"{loads[0]:.2f} to {loads[-1]:.2f}" if loads else "not told",
        "date": f"{first} to {last} UTC",
        "Python": row["python"],
        "torch": row["torch"],
        "peers": row["peers"] or "none",
        "sharpkern": f"{row['sharpkern']}, commit {commits}",
    }
    return _table(("", ""), told.items())


def steps(rows: Rows) -> str:
    """Whole steps on networks with SGD momentum and AdamW: milliseconds, and ours over theirs."""
    found = [row for row in _most_threads(chosen(rows, table="steps")) if not figure.EQUAL.fullmatch(row["shapes"])]
    if not found:
        return NOTHING
    lines = []
    for row in (row for row in found if row["unit"] == "us" and not row["candidate"].startswith("copy")):
        reference = f"sharpkern {'ASAM' if 'adaptive' in row['group'] else 'SAM'} {row['group'].partition(' ')[0]}"
        same = {name: row[name] for name in ("shapes", "group")}
        ratios = chosen(found, unit="ratio", candidate=reference, against=row["candidate"], **same)
        spread = f"{row['p50'] / 1e3:.3f} ({row['p20'] / 1e3:.3f} - {row['p80'] / 1e3:.3f})"
        lines.append((
            row["shapes"],
            row["candidate"],
            spread,
            *_rate(row),
            f"{ratios[0]['p50']:.3f}" if ratios else "",
        ))
    header = ("shapes", "candidate", "ms (p20 - p80)", "GB/s", "of copy", "SAM or ASAM takes")
    return _table(header, lines)


def _rate(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['gb_s']:.1f}" if row["gb_s"] else "", f"{row['share_of_copy']:.0%}" if row["share_of_copy"] else ""


SPEED = (  # what, ours, of what, in which group
    ("SAM, of pytorch_optimizer's with `SGD(foreach=True)`", "SAM sgd", "pytorch_optimizer foreach SAM sgd", "sgd"),
    ("SAM, of pytorch_optimizer's with `SGD(fused=True)`", "SAM sgd", "pytorch_optimizer fused SAM sgd", "sgd"),
    ("SAM, of the tightest `_foreach` SAM over `SGD(fused=True)`", "SAM sgd", "foreach SAM sgd", "sgd"),
    ("SAM, of `SGD(fused=True)` without SAM", "SAM sgd", "torch fused sgd", "sgd our own"),
    ("SAM with AdamW, of the tightest `_foreach` SAM", "SAM adamw", "foreach SAM adamw", "adamw"),
    ("Fisher SAM, of SAM", "FisherSAM sgd", "sharpkern SAM sgd", "sgd"),
    ("ASAM, of SAM", "ASAM sgd", "sharpkern SAM sgd", "sgd adaptive"),
    (
        "the update's kernel alone, of a whole step of `SGD(fused=True)`",
        "sgd update alone",
        "torch fused sgd",
        "sgd our own",
    ),
    (
        "the update's kernel alone, of a whole step of `AdamW(fused=True)`",
        "adamw update alone",
        "torch fused adamw",
        "adamw our own",
    ),
)


def speed(rows: Rows) -> str:
    """Ratios of whole steps, network by network."""
    found = _most_threads(chosen(rows, table="steps", unit="ratio"))
    names = list(dict.fromkeys(r["shapes"] for r in found if not figure.EQUAL.fullmatch(r["shapes"])))

    def cell(shapes: str, ours: str, against: str, group: str) -> str:
        ratios = chosen(found, shapes=shapes, candidate=f"sharpkern {ours}", against=against, group=group)
        return f"{ratios[0]['p50']:.2f}" if ratios else ""

    lines = [(what, *(cell(name, *which) for name in names)) for what, *which in SPEED]
    shares = _most_threads(chosen(rows, table="steps", unit="us", group="sgd", candidate="sharpkern SAM sgd"))
    of_copy = {r["shapes"]: f"{r['share_of_copy']:.2f}" for r in shares if r["shapes"] in LARGE}
    lines.append(("rate of SAM's 40 bytes a parameter, of a copy's", *(of_copy.get(name, "") for name in names)))
    return _table(("time, as a ratio", *names), lines) if names else NOTHING


def operations(rows: Rows) -> str:
    """Single ops on the largest network."""
    found = [row for row in _most_threads(chosen(rows, table="ops", unit="us")) if row["shapes"] in LARGE]
    if not found:
        return NOTHING
    found = chosen(found, shapes=found[0]["shapes"])
    header = ("shapes", "dtype", "op", "ms", "GB/s", "of copy")
    lines = ((r["shapes"], r["dtype"], r["candidate"], f"{r['p50'] / 1e3:.2f}", *_rate(r)) for r in found)
    return _table(header, lines)


def memory(rows: Rows) -> str:
    """Peak extra memory, on the most threads."""
    found = _most_threads(chosen(rows, table="memory"))
    lines = [(row["shapes"], row["candidate"], f"{row['p50']:.1f}") for row in found]
    return _table(("shapes", "candidate", "extra bytes a parameter"), lines) if found else NOTHING


def cost(rows: Rows) -> str:
    """The fitted models: a line for the rows within the caches and one for those beyond."""
    header = (
        "candidate",
        "threads",
        "caches",
        "GB/s",
        "host, µs",
        "a tensor, ns",
        "rows",
        "median error",
        "worst error",
    )
    lines = []
    for model in scaling.models(rows):
        terms = f"{model.host * 1e6:.1f}", f"{model.tensor * 1e9:.1f}"
        sides = (("within", model.bandwidth, model.within_errors), ("beyond", model.beyond, model.beyond_errors))
        for side, bandwidth, errors in sides:
            if bandwidth is not None:
                rate = f"{bandwidth / 1e9:.1f}"
                what = (model.candidate, str(model.threads), side, rate, *terms, str(len(errors)))
                lines.append((*what, *scaling.told(errors)))
    return _table(header, lines) if lines else NOTHING


def larger(rows: Rows) -> str:
    """The models, for parameters that nobody measured."""
    header = ("candidate", "model", "devices", "GB moved a device", "s a step", "GB of copy a device")
    fitted = [model for model in scaling.models(rows) if model.threads == max(row["threads"] for row in rows)]
    lines = [
        (model.candidate, name, str(n), f"{size / 1e9:.2f}", f"{seconds:.3f}", f"{extra / 1e9:.2f}")
        for model in fitted
        for name, n, size, seconds, extra in scaling.extrapolated(rows, model)
    ]
    return _table(header, lines) if lines else NOTHING


def overhead(rows: Rows) -> str:
    """Whole training steps, with where and with what."""
    if not rows:
        return NOTHING
    found = _most_threads(rows)
    row = found[-1]
    where = (
        f"{row['shapes']}, {row['elements']:,} parameters in {row['tensors']} tensors; {row['gpu'] or row['cpu']}, "
        f"threads: {row['threads']}, torch {row['torch']}, {row['peers'] or 'no peers'}, commit {row['commit']}."
    )
    return "\n\n".join((where, _table(training.HEADER, training.lines(found)), training.compared(found)))


def instructions(rows: Rows) -> str:
    """Instruction counts."""
    header = ("shapes", "dtype", "what", "thousand instructions", "an element")
    lines = [
        (r["shapes"], r["dtype"], r["candidate"], f"{r['p50'] / 1e3:,.0f}", f"{r['p50'] / r['elements']:.2f}")
        for r in rows
    ]
    return _table(header, lines) if lines else NOTHING


def pages(data: Path) -> dict[Path, dict[str, str]]:
    """Of every page, every table by the name of its marker."""
    names = ("cpu.csv", "overhead.csv", "instructions.csv")
    recorded = [results.read(data / name) for name in names]
    rows, trained, counts = map(results.current, recorded)
    made = (bars, steps, operations, memory, cost, larger)
    tables = {table.__name__: table(rows) for table in made}
    tables |= {"about": about(results.standing(recorded[0]))}
    tables |= {"overhead": overhead(trained), "instructions": instructions(counts)}
    return {PAGE: tables, README: {"speed": speed(rows)}}


def fill(page: str, tables: dict[str, str]) -> str:
    """The page with every table between its markers.

    Args:
        page: With `<!-- name -->` and `<!-- /name -->` for every table.
        tables: By name.

    Returns:
        The new page.

    Raises:
        ValueError: A marker is missing.
    """
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(
                f"the page has no <!-- {name} --> ... <!-- /{name} -->: wanted both, each at its line's start"
            )
        page = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", page)
    return page


def main() -> int:
    """Writes or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, say whether the page is up to date")
    args = parser.parse_args()
    old = {page: page.read_text(encoding="utf-8") for page in (PAGE, README)}
    new = {page: fill(old[page], tables) for page, tables in pages(DATA).items()}
    for page in new:
        if args.check:
            told = "is what the CSV files give" if new[page] == old[page] else "is out of date: run bench/tables.py"
            print(f"{page.name} {told}")
        else:
            page.write_text(new[page], encoding="utf-8")
    return int(args.check and new != old)


if __name__ == "__main__":
    sys.exit(main())
