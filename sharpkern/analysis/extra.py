"""What an analysis needs beyond torch."""

from __future__ import annotations

import importlib.util

from sharpkern.train.options import MissingExtraError

_TITLES = {"sklearn": "scikit-learn"}


def require_extra(who: str, *packages: str) -> None:
    """Looks for packages of the extra `analysis`.

    Args:
        who: What needs them, for the error.
        *packages: Names as they are imported.

    Raises:
        MissingExtraError: Names what is missing and the command that installs it.
    """
    missing = [_TITLES.get(name, name) for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'{who} needs {", ".join(missing)}, not installed here: pip install "sharpkern[analysis]"'
        )
