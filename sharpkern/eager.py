"""What a compiled step calls outside of its graph. Imported while one is compiled: it loads torch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _outside(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function."""
    return function(*args)


outside: Callable[..., Any] = torch.compiler.disable(  # type: ignore[no-untyped-call]
    _outside,
    reason="in the middle of a step fisher=callable, a GradScaler or other processes (per_rank=True, sharded "
    "parameters) are asked, parts of a step are added up, and a base optimizer that is not fused, evolution strategies "
    "and TRACER's curvature='exact' wait for the device: sharpkern runs them eagerly",
)
