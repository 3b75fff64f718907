"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import sharpkern

ON_CPU = {status.name: status for status in sharpkern.backends() if status.device == "cpu"}


@pytest.fixture(params=[name for name, status in ON_CPU.items() if status.usable])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that runs on the CPU."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Fresh random data, the same in every run."""
    torch.manual_seed(20240817)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A test that sets the number of threads leaves it as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
