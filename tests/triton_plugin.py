"""A pytest plugin for the process in which Triton's interpreter runs the kernels (`-p triton_plugin`).

The interpreter is a tool of Triton for debugging. It cuts float32 off where hardware rounds to bfloat16, and wraps the
whole language anew at every call of a device function, which takes half the time.
"""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from sharpkern.backend.triton import launch

_cast = interpreter.InterpreterBuilder.cast_impl
_patched: set[Any] = set()


def cast(self: Any, src: Any, to: Any) -> Any:
    """The interpreter's cast, but between float32 and bfloat16 torch's, which rounds to the nearest."""
    kinds = src.dtype.scalar, to.scalar
    if kinds == (tl.float32, tl.bfloat16):
        data = torch.from_numpy(np.array(src.data)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    elif kinds == (tl.bfloat16, tl.float32):
        data = (src.data.astype(np.uint32) << 16).view(np.float32)
    else:
        return _cast(self, src, to)
    return interpreter.TensorHandle(data, to.scalar)


def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A call of a device function; what it sees of the language stays wrapped after the first."""
    if self.fn not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(self.fn)
    return self.rewrite()(*args, **kwargs)


def pytest_configure(config: pytest.Config) -> None:
    np.seterr(all="ignore")  # also where a test makes errors of warnings: what is masked is computed all the same
    interpreter.InterpreterBuilder.cast_impl = cast
    interpreter.InterpretedFunction.__call__ = call
    # its time goes with the number of programs and of statements
    launch.CHUNK, launch.WORDS, cases.MANY = 8192, 16, 300
