"""Everything that wants a GPU, in one command: build, tests, compute-sanitizer, benchmark.

    python bench/gpu_check.py --out FOLDER            all parts
    python bench/gpu_check.py --out FOLDER gpu bench  some, with what the last `build` has installed
    python bench/gpu_check.py --list                  what there is

The package is built from a copy and installed into a working folder; the checkout is only read. Nothing is fetched.
Every part runs, whatever became of the others, and leaves `<part>.log` in the folder; `summary.txt` is the table that
is printed last. The exit status is 0 if no part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")
TOOLKIT = ("/usr/local/cuda/bin",)  # where CUDA's tools are where the PATH does not say it
FOLDERS = ("source", "site", "triton", "inductor", "warm")  # in the working folder
TIMED_OUT = 124
STATUS = "exit status "
KERNELS_ARE_THERE = """
import sys, sharpkern
found = {s.name: s.why_not for s in sharpkern.backends() if s.device == "cuda"}
missing = {name: found.get(name, "no such backend, or no GPU") for name in ("native", "triton")}
sys.exit("\\n".join(f"{name} cannot be used on the GPU: {why}" for name, why in missing.items() if why) or None)
"""


@dataclass(frozen=True)
class Part:
    """Something to check.

    Attributes:
        name: Of the part and its log.
        commands: All of them are run; the part fails where one does.
        seconds: What they may take together.
        tool: A program without which the part is skipped.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    seconds: float
    tool: str | None = None


@dataclass(frozen=True)
class Result:
    """What became of a part: the first exit status that is not 0, None where it was skipped."""

    name: str
    status: int | None
    seconds: float
    said: str


def stages(work: Path, out: Path) -> list[list[Part]]:
    """The parts. Those of a stage run side by side: time is measured in the last one, alone."""
    python, source = sys.executable, work / "source"
    pytest = (python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider")
    spread = ("-n", "6") if importlib.util.find_spec("xdist") else ()
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-build-isolation")
    install = (*pip, "--no-deps", "-v", "--target", f"{work}/site", str(source))
    sanitizer = _tool("compute-sanitizer") or "compute-sanitizer"
    # torch asks the driver for functions that not every driver has: such answers are no errors of the kernels
    quiet = ("--report-api-errors", "no", "--target-processes", "application-only", "--error-exitcode", "9")
    watched = (*quiet, python, f"{source}/bench/sanitize.py")
    bench = (python, f"{source}/bench/gpu.py")
    build = Part(
        "build",
        (
            install,
            # without the CUDA kernels there is still something to check
            ("sh", "-c", f"test -d {shlex.quote(f'{work}/site/sharpkern')} || SHARPKERN_CUDA=0 {shlex.join(install)}"),
            (python, "-m", "sharpkern", "info"),
            (_tool("nvidia-smi") or "nvidia-smi",),
            (python, "-c", KERNELS_ARE_THERE),
        ),
        150,
    )
    ops = [f"{source}/tests/{name}.py" for name in ("test_ops", "test_trajectories")]
    tests = [
        Part(
            "ops",
            (
                (*pytest, *spread, "--device", "cuda", "-k", "not reference", "--durations", "5", *ops),
                (python, "-m", "sharpkern", "verify", "--seed", "0"),
            ),
            190,
        ),
        Part("gpu", ((*pytest, "--durations", "5", "-k", "not cpu", f"{source}/tests/test_gpu.py"),), 190),
        Part(
            "sanitizer",
            tuple(
                (sanitizer, "--tool", tool, *watched, name)
                for name in ("native", "triton")
                for tool in ("memcheck", "racecheck")
            ),
            190,
            "compute-sanitizer",
        ),
        # compiles what the benchmark needs into caches, and shows that it runs
        Part("warm", ((*bench, "steps", "--repeats", "2", "--compile-seconds", "120", "--out", f"{work}/warm"),), 190),
    ]
    return [[build], tests, [Part("bench", ((*bench, "--compile-seconds", "30", "--out", str(out)),), 140)]]


def _tool(name: str) -> str | None:
    """Where a program is."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(TOOLKIT))


def environment(work: Path) -> dict[str, str]:
    """What all parts run with: the installed package, CUDA wanted, caches of their own."""
    given = os.environ.get("PYTHONPATH")
    found = {
        **os.environ,
        "TRITON_CACHE_DIR": f"{work}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor",
        "PYTHONPATH": os.pathsep.join([f"{work}/site", *([given] if given else [])]),
        "PATH": os.pathsep.join([os.environ["PATH"], *TOOLKIT]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SHARPKERN_CUDA": "1",
    }
    if "TORCH_CUDA_ARCH_LIST" not in found and (architecture := _architecture()):
        found["TORCH_CUDA_ARCH_LIST"] = architecture
    return found


def _architecture() -> str | None:
    """The compute capability of the GPU: others need not be compiled for."""
    if not (smi := _tool("nvidia-smi")):
        return None
    query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines and lines[0].replace(".", "").isdigit() else None


def run_part(part: Part, work: Path, out: Path, variables: Mapping[str, str]) -> Result:
    """Runs the commands of a part one after the other, in the working folder."""
    log, begin, statuses = out / f"{part.name}.log", time.monotonic(), []
    with log.open("w") as file:
        if part.tool and not _tool(part.tool):
            said = f"skipped: there is no {part.tool}"
            print(said, file=file)
            return Result(part.name, None, 0.0, said)
        for command in part.commands:
            print("$", shlex.join(command), file=file, flush=True)
            left = part.seconds - (time.monotonic() - begin)
            statuses.append(_run(command, left, work, file.fileno(), variables))
            print(f"{STATUS}{statuses[-1]}\n", file=file, flush=True)
    said = next((line for line in reversed(_told(log)) if line.strip() and not line.startswith((STATUS, "$"))), "")
    return Result(part.name, next(filter(None, statuses), 0), time.monotonic() - begin, said)


def _told(log: Path) -> list[str]:
    """The lines of a log up to the end of the first command that failed; all if none did."""
    lines = log.read_text(errors="replace").splitlines()
    failures = (i for i, line in enumerate(lines) if line.startswith(STATUS) and line != f"{STATUS}0")
    return lines[: next(failures, len(lines)) + 1]


def _run(command: Sequence[str], seconds: float, work: Path, log: int, variables: Mapping[str, str]) -> int:
    """The exit status of one command, which is killed with all that it started once its time is up."""
    if seconds <= 0:
        return TIMED_OUT
    try:
        process = subprocess.Popen(
            command, cwd=work, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    except OSError as error:
        os.write(log, f"{error}\n".encode())
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(plan: Sequence[Sequence[Part]], work: Path, out: Path, variables: Mapping[str, str]) -> list[Result]:
    """Runs all parts, stage by stage."""
    results = []
    for stage in plan:
        with ThreadPoolExecutor(max(len(stage), 1)) as pool:
            for result in pool.map(lambda part: run_part(part, work, out, variables), stage):
                results.append(result)
                print(line(result), flush=True)
    return results


def line(result: Result) -> str:
    """A line of the summary."""
    verdict = {None: "skipped", 0: "ok", TIMED_OUT: "TIMED OUT"}.get(result.status, f"FAILED {result.status}")
    return f"{result.name:10} {verdict:10} {result.seconds:7.1f} s  {result.said[:120]}"


def report(results: Sequence[Result], out: Path, tail: int = 25) -> int:
    """Prints what failed, with what it said last, and the summary, and gives the exit status."""
    failed = [result for result in results if result.status]
    for result in failed:
        print(f"\n--- where {result.name}.log fails", *_told(out / f"{result.name}.log")[-tail:], sep="\n")
    verdict = f"{len(failed)} of {len(results)} parts failed" if failed else "no part failed"
    summary = "\n".join([*map(line, results), verdict])
    (out / "summary.txt").write_text(summary + "\n")
    print(f"\n{summary}")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="which (default: all)")
    parser.add_argument("--list", action="store_true", help="print the parts and their commands")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check", help="where logs and CSV go")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"sharpkern-gpu-check-{os.getuid()}",
        help="where the package is built and installed",
    )
    args = parser.parse_args(arguments)
    work, out = args.work.resolve(), args.out.resolve()
    if ROOT in (work, *work.parents):
        parser.error(f"--work {work} lies in the checkout, which is only read")
    plan = stages(work, out)
    names = [part.name for stage in plan for part in stage]
    if unknown := set(args.parts) - set(names):
        parser.error(f"no part {', '.join(sorted(unknown))}: wanted {', '.join(names)}")
    plan = [[part for part in stage if part.name in (args.parts or names)] for stage in plan]
    if args.list:
        for part in itertools.chain(*plan):
            print(
                f"{part.name}, {part.seconds:.0f} s at most", *(f"  {shlex.join(c)}" for c in part.commands), sep="\n"
            )
        return 0
    out.mkdir(parents=True, exist_ok=True)
    if any(part.name == "build" for stage in plan for part in stage):
        for name in FOLDERS:
            shutil.rmtree(work / name, ignore_errors=True)
        shutil.copytree(ROOT, work / "source", ignore=LEFT_OUT)
    return report(run(plan, work, out, environment(work)), out)


if __name__ == "__main__":
    sys.exit(main())
