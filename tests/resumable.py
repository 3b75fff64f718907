"""A training script that can be killed at any time and resumed: `python resumable.py FOLDER STYLE [STEP PASS]`.

With a step and a pass it says "here" in the middle of that pass and waits to be killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sharpkern

STEPS = 7


def save(path: Path, **state: Any) -> None:
    """Write a checkpoint in one go: there is the old one or the new one, never half of one."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main(folder: Path, style: str, stop: tuple[int, int] | None) -> None:
    """Train from the last checkpoint, or from the start, to the end."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.2), nn.Tanh(), nn.Linear(9, 3))
    optimizer = sharpkern.MixSAM(
        model.parameters(),
        torch.optim.AdamW,
        lr=0.05,
        rho=0.3,
        covariance=sharpkern.covariance.Adaptive(0.1),
        model=model,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    sharpkern.guard(model, optimizer)
    first, path = 0, folder / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
        first = saved["step"]
    for step in range(first, STEPS):
        inputs, labels = torch.randn(16, 6), torch.randint(3, (16,))
        passes = 0

        def closure(rows: slice = slice(None), step: int = step, x: Tensor = inputs, y: Tensor = labels) -> Tensor:
            nonlocal passes
            optimizer.zero_grad()
            loss = cross_entropy(model(x[rows]), y[rows])
            passes += 1
            if (step, passes) == stop:
                print("here", flush=True)
                sys.stdin.read()
            loss.backward()
            return loss

        if style == "step":
            optimizer.step(closure)
        else:
            parts = [slice(None)] if style == "halves" else [slice(0, 8), slice(8, 16)]
            for rows in parts:
                closure(rows)
                optimizer.first_step()
                closure(rows)
                optimizer.second_step(accumulate=rows is not parts[-1])
        schedule.step()
        save(
            path,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            schedule=schedule.state_dict(),
            rng=torch.get_rng_state(),
            step=step + 1,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], (int(sys.argv[3]), int(sys.argv[4])) if len(sys.argv) > 3 else None)
