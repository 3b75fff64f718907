"""Instructions of the native ops and of whole small steps, Python included, counted by valgrind's callgrind.

    python bench/instructions.py               compares with bench/data/instructions.csv; exit status 1 if worse
    python bench/instructions.py --append      adds the rows to it instead

Counts do not depend on the machine or on what else it does, but on compiler, Python and torch: rows are compared where
those are the same. valgrind has no AVX-512, so the AVX2 kernels are counted, on one thread. Without valgrind nothing is
done, and a line says so.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from compare import compare, report

from sharpkern import ops
from sharpkern.bench import operations, results
from sharpkern.bench.candidates import Pool, find
from sharpkern.bench.provenance import machine, output, versions
from sharpkern.bench.shapes import find as shapes_of

DATA = Path(__file__).resolve().parent / "data" / "instructions.csv"
ELEMENTS = 1 << 16
OPS = ("sq_norm identity", "sq_norm adaptive", "sq_norm fisher", "ascend identity", "ascend adaptive", "ascend fisher")
UPDATES = ("descend sgd", "descend momentum", "descend adamw", "restore")
STEPS = ("sharpkern SAM sgd", "sharpkern ASAM sgd", "sharpkern FisherSAM sgd", "sharpkern SAM adamw")
NETWORKS = ("resnet20", "small", "many")
CALLS = 4
SAME = ("python", "torch", "peers")
# The requests to callgrind are macros of its header.
SHIM = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void stop(const char* name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def cases() -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """What is counted, as the columns of a row and a call."""
    torch.manual_seed(0)
    backend = ops.load("native")
    for dtype in (torch.float32, torch.bfloat16):
        t = operations.lists([(ELEMENTS,)], dtype, "cpu")
        name = str(dtype).removeprefix("torch.")
        row = {"group": "ops", "shapes": f"1x{ELEMENTS}", "elements": ELEMENTS, "tensors": 1, "dtype": name}
        for op, call in operations.calls(backend, t, (*OPS, *UPDATES)).items():
            yield {**row, "candidate": op}, call
    for shapes in NETWORKS:
        for step in STEPS:
            pool = Pool(shapes_of(shapes))
            size = {"elements": pool.elements, "tensors": len(pool.shapes), "dtype": "float32"}
            yield {"group": "steps", "shapes": shapes, **size, "candidate": step}, find(step).make(pool)


def count(shim: str) -> None:
    """Runs every case under callgrind, which leaves a file for each."""
    requests = ctypes.CDLL(shim)
    torch.set_num_threads(1)
    gc.disable()
    for number, (_, call) in enumerate(cases()):
        for _ in range(3):
            call()
        requests.start()
        for _ in range(CALLS):
            call()
        requests.stop(str(number).encode())


def counted(folder: Path) -> dict[int, float]:
    """Instructions a call, by the number of the case, from the files that callgrind left."""
    found = {}
    for path in folder.glob("callgrind.out.*"):
        text = path.read_text(errors="replace")
        number, total = (
            re.search(r"desc: Trigger: Client Request: (\d+)", text),
            re.search(r"^totals: (\d+)", text, re.M),
        )
        if number and total:
            found[int(number[1])] = int(total[1]) / CALLS
    return found


def measure() -> list[dict[str, Any]]:
    """The rows of a run."""
    compiler = shutil.which("cc") or sys.exit("bench/instructions.py wants a C compiler: there is no cc on the PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shim.c").write_text(SHIM)
        shim = str(folder / "shim.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, str(folder / "shim.c")], check=True)
        options = ("--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/callgrind.out")
        subprocess.run(
            ["valgrind", "-q", *options, sys.executable, __file__, "--count", shim],
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            check=True,
        )
        found = counted(folder)
    tools = f"{output('valgrind', '--version')}; {output(compiler, '--version').partition(chr(10))[0]}"
    about = {**versions(), "cpu": machine()["cpu"], "gpu": "", "peers": tools, "threads": 1, "table": "instructions"}
    return [
        {
            **about,
            **row,
            "against": "",
            "unit": "instructions",
            "p20": None,
            "p50": found[number],
            "share_of_copy": None,
        }
        for number, (row, _) in enumerate(cases())
    ]


def main() -> int:
    """Counts, and compares or appends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=DATA, help="what to compare with or append to")
    parser.add_argument("--append", action="store_true", help="append the rows instead of comparing")
    parser.add_argument("--tolerance", type=float, default=0.03, help="what a ratio may be above 1 (default: 0.03)")
    parser.add_argument("--count", metavar="SHIM", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        count(args.count)
        return 0
    if not shutil.which("valgrind"):
        print("instructions: skipped, valgrind is not installed")
        return 0
    new = measure()
    if args.append:
        results.append(args.csv, new)
        print(f"appended {len(new)} rows to {args.csv}")
        return 0
    versions_now = tuple(new[0][name] for name in SAME)
    alike = [row for row in results.read(args.csv) if tuple(row[name] for name in SAME) == versions_now]
    if not alike:
        print(f"instructions: nothing compared, {args.csv} has no rows of {', '.join(versions_now)}")
        return 0
    return report(*compare(results.current(alike), new, args.tolerance))


if __name__ == "__main__":
    sys.exit(main())
