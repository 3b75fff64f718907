"""Where and with what rows were measured."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Generator, Iterable
from pathlib import Path

import torch

import sharpkern

PEERS = ("pytorch_optimizer", "optax", "jax")


def output(*command: str) -> str:
    """What a command prints, or nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the sources that run, with a + where they were changed since; nothing for an installed wheel."""
    folder = str(Path(sharpkern.__file__).parent)
    if not output("git", "-C", folder, "ls-files", "__init__.py"):
        return ""
    changed = output("git", "-C", folder, "status", "--porcelain", "--untracked-files=no", ".", "../csrc")
    return output("git", "-C", folder, "rev-parse", "--short", "HEAD") + ("+" if changed else "")


def versions() -> dict[str, str]:
    """When and with what the rows were measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sharpkern": sharpkern.__version__,
        "commit": commit(),
    }


def _told(path: str) -> str:
    """What a file of the system says, or nothing where it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _info(key: str) -> str:
    """The first entry of that name in /proc/cpuinfo."""
    entries = (line.partition(":") for line in _told("/proc/cpuinfo").splitlines())
    return next((value.strip() for name, _, value in entries if name.strip() == key), "")


def machine() -> dict[str, str]:
    """The processor and what makes its speed vary, as far as the system tells."""
    pages = _told("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": _info("model name") or platform.processor(),
        "cores": ",".join(map(str, sorted(affinity()))),
        "governor": _told("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "mhz": _info("cpu MHz"),
        "load": f"{os.getloadavg()[0]:.2f}",
        "huge_pages": pages[pages.find("[") + 1 : pages.find("]")],
        "peers": "; ".join(f"{name} {version(name)}" for name in PEERS if version(name)),
    }


def gpu() -> dict[str, str]:
    """The GPU and what stands between it and us."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return {"gpu": name, "driver": driver, "cuda": str(torch.version.cuda), "triton": version("triton") or "none"}


def affinity() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores(threads: int) -> list[int]:
    """As many cores as threads, those that share no physical core first.

    Args:
        threads: How many.

    Returns:
        Their numbers, or all that there are where those are not enough.
    """
    first: dict[str, int] = {}
    for core in sorted(affinity()):
        siblings = _told(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        first.setdefault(siblings or str(core), core)
    alone = list(first.values())
    return [*alone, *sorted(affinity() - set(alone))][:threads]


def _move(tasks: Iterable[str], where: Iterable[int]) -> None:
    where = set(where)
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended since
            os.sched_setaffinity(int(task), where)


@contextlib.contextmanager
def pinned(threads: int) -> Generator[None]:
    """Within it torch has so many threads, and all threads of the process as many cores, which they do not leave.

    So a peer with threads of its own has no more cores than we. Where the system has no affinity it is left alone.

    Args:
        threads: How many.
    """
    before, where, able = torch.get_num_threads(), affinity(), hasattr(os, "sched_setaffinity")
    try:
        torch.set_num_threads(threads)
        if able:
            _move(os.listdir("/proc/self/task"), cores(threads))
        yield
    finally:
        torch.set_num_threads(before)
        if able:
            _move(os.listdir("/proc/self/task"), where)
