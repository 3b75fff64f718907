"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import oracles
import pytest
import torch

import sharpkern
from sharpkern import ops

ON_CPU = {status.name: status for status in sharpkern.backends() if status.device == "cpu"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where test_ops.py and test_trajectories.py run: cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    oracles.DEVICE = torch.device(config.getoption("--device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Backends that do not run on the device are left out; a test of its own asks them why."""
    if "backend" in metafunc.fixturenames and not hasattr(metafunc.module, "backend"):
        usable = [name for name in ops.NAMES if ops.load(name).why_not(oracles.DEVICE) is None]
        metafunc.parametrize("backend", usable, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that runs on the device, with the dtypes that the test names."""
    name, params = request.param, request.node.callspec.params
    dtypes = request.module.DTYPES[params["dtypes"]] if "dtypes" in params else ()
    if reason := ops.load(name).why_not(oracles.DEVICE, dtypes):
        pytest.skip(f"{name}: {reason}")
    return str(name)


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
