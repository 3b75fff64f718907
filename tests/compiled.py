"""C++ compiled for a test, once for every state of the sources."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = ROOT / "tests/cuda_host"
CUDA = sorted((ROOT / "csrc/cuda").glob("*.cu"))


def folder(config: pytest.Config, fallback: pytest.TempPathFactory, *commands: Sequence[str]) -> Path:
    """Where to keep what these commands make of the sources as they are: in pytest's cache, if it is there."""
    state = hashlib.sha256(repr(commands).encode())
    for path in sorted([*ROOT.glob("csrc/**/*"), *HOST.glob("*")]):
        if path.is_file():
            state.update(path.name.encode() + path.read_bytes())
    if config.cache is None:
        return fallback.mktemp("compiled")
    return config.cache.mkdir("compiled-" + state.hexdigest()[:20])


def compiler() -> str:
    """A C++ compiler; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if found is None:
        pytest.skip("there is no C++ compiler here")
    return found


def run(*commands: Sequence[str]) -> list[str]:
    """Runs commands, two at a time; what each printed."""

    def one(command: Sequence[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, commands))
