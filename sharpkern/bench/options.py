"""What a user can choose, checked before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sharpkern import ops
from sharpkern.bench import shapes as known
from sharpkern.bench.provenance import affinity
from sharpkern.construct import DTYPES
from sharpkern.usage import UsageError

SHORT = ("small", "resnet20", "resnet50")
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
SIZES = tuple(f"1x{10**k}" for k in range(3, 10))
TENSORS = tuple(known.spread_over(2_000_000, n) for n in (1, 65, 161, 600, 2000))


@dataclass(frozen=True)
class Options:
    """One run.

    Attributes:
        shapes: Names as `shapes.find` takes them; none for three networks, or with `full` for all.
        dtypes: Of weights and gradients.
        threads: Numbers of threads, each measured by itself; none for torch's, or with `full` for 1, 2, 4, ... up to
            the cores there are.
        repeats: Turns; 0 takes as many as fit the time.
        full: Everything: all shapes, 10^3 to 10^9 elements, 1 to 2000 tensors, torch.compile.
        device: "cpu" or "cuda".
        overhead: Nothing but whole training steps, and the share of the optimizer's work in them.
        out: Folder of the results; None makes `runs/bench-<date>-<time>`.
    """

    shapes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: tuple[int, ...] = ()
    repeats: int = 0
    full: bool = False
    device: str = "cpu"
    overhead: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            UsageError: Says what came and what was wanted.
        """
        for name in self.shapes:
            known.find(name)
        for name in self.dtypes:
            if name not in NAMES:
                raise UsageError(f"dtype {name!r}: wanted some of {', '.join(NAMES)}")
        for threads in self.threads:
            if not 1 <= threads <= len(affinity()):
                raise UsageError(f"threads={threads}: wanted 1 to {len(affinity())}, the cores of this process")
        if self.overhead and (self.shapes or self.full):
            raise UsageError("overhead takes the training steps of one network: wanted neither shapes nor full with it")
        if self.repeats < 0:
            raise UsageError(f"repeats={self.repeats}: wanted a number of turns, or 0 for as many as fit the time")
        if self.device not in {"cpu", "cuda"}:
            raise UsageError(f"device={self.device!r}: wanted cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device='cuda': torch finds no GPU")
        ops.choose("auto", torch.device(self.device))

    def chosen_shapes(self) -> tuple[str, ...]:
        """The shapes of whole steps."""
        return self.shapes or (tuple(known.SHAPES) if self.full else SHORT)

    def swept_shapes(self) -> tuple[str, ...]:
        """Shapes that are measured for how the cost grows, with `full` and where no shapes are named."""
        return tuple(dict.fromkeys((*SIZES, *TENSORS))) if self.full and not self.shapes else ()

    def chosen_threads(self) -> tuple[int, ...]:
        """Numbers of threads, the most first: a peer that keeps the threads of its first call has all of them then."""
        most = len(affinity())
        powers = [1 << k for k in range(most.bit_length()) if 1 << k < most]
        wanted = self.threads or ((*powers, most) if self.full else (torch.get_num_threads(),))
        return tuple(sorted(set(wanted), reverse=True))

    def chosen_dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes."""
        return tuple(NAMES[name] for name in self.dtypes)
