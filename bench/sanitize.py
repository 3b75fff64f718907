"""Every op of the kernels on small tensors of odd sizes at odd addresses: what compute-sanitizer is to watch.

Each tensor ends where its allocation ends: torch asks the driver for every one.
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch
from torch import Tensor

from sharpkern import ops
from sharpkern.correction import Correction, Estimated
from sharpkern.tensors import GROUP, Tensors
from sharpkern.verify import CORRECTIONS, COVARIANCES, UPDATES

SIZES = (1, 3, 17, 255, 4097, 9001)
# of weights and gradients, and whether there are masters and stochastic rounding
CASES = (
    (torch.float32, torch.float32, False),
    (torch.bfloat16, torch.bfloat16, False),
    (torch.bfloat16, torch.float32, True),
)


class Row:
    """Makes lists of random tensors, each some elements after the beginning of an allocation of its own."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.shifts = itertools.cycle((1, 3, 0, 7, 2))

    def __call__(self, dtype: torch.dtype) -> list[Tensor]:
        """A list of this dtype."""
        shifts = [next(self.shifts) for _ in SIZES]
        drawn = [torch.rand(n + shift).to(dtype) for n, shift in zip(SIZES, shifts, strict=True)]
        return [x.to(self.device)[shift:] for x, shift in zip(drawn, shifts, strict=True)]


def lists(row: Row, weight: torch.dtype, gradient: torch.dtype, sixteen: bool) -> Tensors:
    """Tensors with everything that an op may want; `sixteen` adds masters and stochastic rounding."""
    params = [torch.nn.Parameter(w) for w in row(weight)]
    for p, g in zip(params, row(gradient), strict=True):
        p.grad_dtype = gradient
        p.grad = g
    t = Tensors(params, 0, sixteen)
    t.read_gradients()
    t.saved = row(torch.float32 if sixteen else weight)
    t.fisher, t.m, t.v = ([*row(t.state_dtype)] for _ in range(3))
    t.first = [*row(gradient)]
    t.pairs = torch.rand(2, 3, device=t.device)
    t.stochastic = sixteen
    t.draw = torch.zeros((), dtype=torch.int64, device=t.device)
    t.start = [0, *itertools.accumulate(-(-n // GROUP) * GROUP for n in SIZES[:-1])]
    t.set_source()
    return t


def run(backend: ops.Ops, row: Row) -> int:
    """All ops; how many calls that were."""
    calls = 0
    for weight, gradient, sixteen in CASES:
        t = lists(row, weight, gradient, sixteen)
        for covariance in COVARIANCES:
            backend.sq_norm(t, covariance, t.total)
            backend.ascend_(t, covariance, 0.1, t.total, True)
            backend.ascend_(t, covariance, 0.1, t.total, True, 0.5, 0.1)
        backend.ascend_(t, COVARIANCES[0], 0.1, None, True, 0.0, 0.1)
        corrections: tuple[Correction | None, ...] = (*CORRECTIONS, Estimated(0.1, 0.1, 0.1))
        for update, correction in zip(itertools.cycle(UPDATES), corrections, strict=False):
            backend.descend_(t, update, correction, t.total, t.total)
        backend.restore_(t, t.total)
        calls += 3 * len(COVARIANCES) + 1 + len(corrections) + 1
        assert t.total.isfinite()
    return calls


def main() -> None:
    """Runs one backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=ops.NAMES)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # read at the first allocation
    if reason := ops.load(args.backend).why_not(torch.device(args.device)):
        parser.error(f"{args.backend}: {reason}")
    print(f"{args.backend}: {run(ops.load(args.backend), Row(args.device))} calls")


if __name__ == "__main__":
    main()
