"""The option of the benchmark suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every size and number of tensors, as memory allows")
