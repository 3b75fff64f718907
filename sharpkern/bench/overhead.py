"""Whole training steps, and how much of them is the optimizer's work ([F] 5.7).

A step is forward, backward and update, with a second forward and backward for SAM, on one batch of random images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sharpkern
from sharpkern.bench import peers, rivals
from sharpkern.bench.measure import HostClock, columns, in_turns, ratio, short
from sharpkern.bench.rivals import BASES, RHO
from sharpkern.train import networks

Row = dict[str, Any]
TABLE = "overhead"
CLASSES = 10
BATCH = 128  # images, as in [F] 5.7
REPEATS = 21  # turns
PLAIN, SAM, FISHER = "torch sgd", "sharpkern SAM sgd", "sharpkern FisherSAM sgd"
PEER = "pytorch_optimizer fused SAM sgd"

Make = Callable[[Sequence[nn.Parameter]], Any]


def _ours(kind: Callable[..., Any]) -> Make:
    base, options = BASES["sgd"]
    return lambda params: kind(params, base, rho=RHO, **options)


OPTIMIZERS: Mapping[str, Make] = {
    PLAIN: lambda params: rivals.plain(params, "sgd"),
    SAM: _ours(sharpkern.SAM),
    FISHER: _ours(sharpkern.FisherSAM),
    "eager SAM sgd": lambda params: rivals.Usual(params, "sgd"),
    PEER: lambda params: peers.sam(params, "sgd", adaptive=False, fused=True),
}


def resnet20() -> nn.Module:
    """ResNet-20 for images (n, 3, 32, 32), its weights the same each time."""
    return networks.make("resnet20", 3, CLASSES, seed=0)


class Training:
    """Training steps of a network of its own on one batch; the optimizer's calls are timed apart.

    Args:
        network: Makes the network; the same for every candidate.
        images: The batch.
        make: Makes the optimizer.

    Attributes:
        spent: Seconds of the optimizer's calls, by step. On a GPU it is waited for before and after each of them.
    """

    def __init__(self, network: Callable[[], nn.Module], images: torch.Tensor, make: Make) -> None:
        self.network = network().to(images.device)
        self.images = images
        self.labels = torch.arange(len(images), device=images.device) % CLASSES
        self.optimizer = make(list(self.network.parameters()))
        halves = hasattr(self.optimizer, "first_step")
        self.calls = [self.optimizer.first_step, self.optimizer.second_step] if halves else [self.optimizer.step]
        self.wait: Callable[[], None] = torch.cuda.synchronize if images.is_cuda else lambda: None
        self.spent: list[float] = []

    def __call__(self) -> None:
        """One step."""
        spent = 0.0
        for call in self.calls:
            self.network.zero_grad()
            cross_entropy(self.network(self.images), self.labels).backward()  # type: ignore[no-untyped-call]
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            spent += time.perf_counter() - begin
        self.spent.append(spent)


def measure(
    device: str,
    threads: int,
    repeats: int,
    tell: Callable[[str], None],
    network: Callable[[], nn.Module] = resnet20,
    batch: int = BATCH,
) -> list[Row]:
    """Takes turns with all optimizers that are installed.

    Args:
        device: "cpu" or "cuda".
        threads: Of torch, for the rows.
        repeats: Turns; 0 takes `REPEATS`.
        tell: Called with a line on what is left out.
        network: Makes the network, for images of 3 × 32 × 32 and ten classes.
        batch: Images a step.

    Returns:
        Rows of the groups "step" and "optimizer", in microseconds, "share", the one over the other, and the ratios of
        whole steps, turn by turn: of all to SGD, and of Fisher SAM to SAM.
    """
    images = torch.randn(batch, 3, 32, 32, device=device)
    reason = peers.missing("pytorch_optimizer")
    if reason:
        tell(f"{PEER}: left out, {reason}")
    names = [name for name in OPTIMIZERS if name != PEER or not reason]
    steps = {name: Training(network, images, OPTIMIZERS[name]) for name in names}
    count = repeats or REPEATS
    seconds = in_turns(steps, count, 1, HostClock(device))
    work = {name: step.spent[-count:] for name, step in steps.items()}
    params = list(steps[PLAIN].network.parameters())
    common = {
        "table": TABLE,
        "shapes": f"{network.__name__}, {batch} images",
        "elements": sum(p.numel() for p in params),
        "tensors": len(params),
        "dtype": "float32",
        "threads": threads,
    }

    def row(group: str, candidate: str, against: str, unit: str, figures: Mapping[str, float]) -> Row:
        return {**common, "group": group, "candidate": candidate, "against": against, "unit": unit, **figures}

    rows = [row("step", name, "", "us", columns([1e6 * t for t in seconds[name]])) for name in names]
    rows += [row("optimizer", name, "", "us", columns([1e6 * t for t in work[name]])) for name in names]
    rows += [row("share", name, "", "ratio", ratio(work[name], seconds[name])) for name in names]
    pairs = [*((name, PLAIN) for name in names if name != PLAIN), (FISHER, SAM)]
    return rows + [row("step", a, b, "ratio", ratio(seconds[a], seconds[b])) for a, b in pairs]


HEADER = ("training step", "ms (p20 - p80)", "optimizer, ms", "share", "of SGD")


def lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What a table shows, a line a candidate, under `HEADER`."""
    found = {(row["group"], row["candidate"], row["against"]): row for row in rows}
    names = [candidate for group, candidate, against in found if group == "step" and not against]
    return [
        (
            name,
            *(_milliseconds(found[group, name, ""]) for group in ("step", "optimizer")),
            f"{found['share', name, '']['p50']:.2%}",
            f"{found['step', name, PLAIN]['p50']:.3f}" if name != PLAIN else "",
        )
        for name in names
    ]


def compared(rows: Sequence[Mapping[str, Any]]) -> str:
    """What Fisher SAM takes beyond SAM, next to the figure of the paper."""
    (row,) = (row for row in rows if (row["candidate"], row["against"]) == (FISHER, SAM))
    return (
        f"Fisher SAM takes {row['p50']:.3f} ({row['p20']:.3f} - {row['p80']:.3f}) of SAM's time; "
        "[F] 5.7 has 0.2334 s against 0.2322 s, 1.005, for WRN-28-10 on an RTX 2080 Ti."
    )


def _milliseconds(row: Mapping[str, Any]) -> str:
    p20, p50, p80 = (short(row[name] / 1e3) for name in ("p20", "p50", "p80"))
    return f"{p50} ({p20} - {p80})"
