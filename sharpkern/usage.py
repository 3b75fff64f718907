"""What a command cannot do, said in one line: `cli.main` prints it and ends with exit status 2."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TITLES = {"sklearn": "scikit-learn", "PIL": "pillow"}


class UsageError(ValueError):
    """What was asked for cannot be done as asked: says what came and what was wanted."""


class MissingExtraError(ImportError):
    """Packages of an extra are not installed: names them and the command that installs them."""


def usable_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1".

    Args:
        name: As torch takes it.

    Returns:
        The device, with its index.

    Raises:
        UsageError: torch cannot use it here.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"device={name!r}, {str(error).splitlines()[0]}") from error


@contextmanager
def results_folder(path: Path) -> Generator[Path, None, None]:
    """Makes a folder for results, so that nothing fails for want of it after hours.

    Args:
        path: Of the folder, which may be there.

    Yields:
        The path. A folder that was made here and is empty when an error or Ctrl-C comes is removed.

    Raises:
        OSError: It cannot be made.
    """
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except BaseException:
        if new:
            with suppress(OSError):  # not empty
                path.rmdir()
        raise


def require_extra(who: str, extra: str, *packages: str) -> None:
    """Looks for packages before anything runs, so that nothing ends for want of them after hours.

    Args:
        who: What needs them.
        extra: The extra that has them.
        *packages: Names as they are imported.

    Raises:
        MissingExtraError: One is not installed.
    """
    missing = [_TITLES.get(name, name) for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'{who} needs {", ".join(missing)}, not installed here: pip install "sharpkern[{extra}]"'
        )
