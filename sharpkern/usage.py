"""What a command cannot do, said in one line: `cli.main` prints it and ends with exit status 2."""

from __future__ import annotations

import importlib.util

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
