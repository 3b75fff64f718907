"""Single ops under pytest-benchmark: op × covariance or base × dtype × elements × tensors.

    pytest bench/test_ops.py                     about a minute
    pytest bench/test_ops.py --full              10^3 to 10^9 elements as memory allows, every number of tensors

GB/s by counted bytes and the share of a copy of as many float32, timed right after, go to `extra_info`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sharpkern import ops
from sharpkern.bench import operations
from sharpkern.bench.measure import Step
from sharpkern.bench.shapes import find, spread_over
from sharpkern.bench.suite import available
from sharpkern.tensors import Tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# dtype, elements, tensors of the short form
SHORT = [("float32", 10**3, 1), ("float32", 161_000, 161), ("float32", 10**7, 1), ("bfloat16", 10**6, 65)]
FULL = [
    (dtype, 10**power, tensors)
    for dtype in DTYPES
    for power in range(3, 10)
    for tensors in (1, 65, 161, 600, 2000)
    if tensors <= 10**power // 10
]
SECONDS = 0.15  # a benchmark of the short form


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    names = [f"{dtype}-{elements:.0e}-{tensors}" for dtype, elements, tensors in (FULL if full else SHORT)]
    metafunc.parametrize("case", FULL if full else SHORT, ids=names, indirect=True, scope="module")
    metafunc.parametrize("op", list(operations.sizes(torch.float32)))


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Tensors, Step]]:
    """The tensors of a case and a copy of as many elements."""
    dtype, elements, tensors = request.param
    shapes = find(spread_over(elements, tensors))
    wanted = elements * (3 * DTYPES[dtype].itemsize + 3 * 8 + 8)
    if wanted > 0.9 * available("cpu"):
        pytest.skip(f"wants {wanted / 2**30:.0f} GiB of memory, {available('cpu') / 2**30:.0f} are free")
    yield operations.lists(shapes, DTYPES[dtype], "cpu"), operations.copy(sum(n for (n,) in shapes))
    gc.collect()


def test_op(benchmark: BenchmarkFixture, case: tuple[Tensors, Step], op: str, request: pytest.FixtureRequest) -> None:
    t, copy = case
    backend = ops.load(ops.choose("auto", torch.device("cpu"))[0])
    call = operations.calls(backend, t, [op])[op]
    call()
    begin = time.perf_counter()
    call()
    once = time.perf_counter() - begin
    many = max(1, round(2e-4 / once))
    seconds = 1.0 if request.config.getoption("--full") else SECONDS
    benchmark.pedantic(call, rounds=min(max(5, round(seconds / once / many)), 200), iterations=many, warmup_rounds=2)
    elements = sum(w.numel() for w in t.weights)
    size = operations.sizes(t.dtype)[op] * elements
    rate = size / benchmark.stats.stats.median / 1e9
    copied = 8 * elements / _seconds(copy, many) / 1e9
    benchmark.extra_info |= {
        "elements": elements,
        "tensors": len(t.weights),
        "threads": torch.get_num_threads(),
        "bytes": size,
        "gb_s": round(rate, 2),
        "copy_gb_s": round(copied, 2),
        "percent_of_copy": round(100 * rate / copied, 1),
    }


def _seconds(step: Step, calls: int) -> float:
    """The median of seven turns, after one that warms up."""
    turns = []
    for _ in range(8):
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        turns.append((time.perf_counter() - begin) / calls)
    return statistics.median(turns[1:])
