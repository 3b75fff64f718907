"""What a user asks of a preset, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sharpkern.train.data.images import SOURCES
from sharpkern.train.networks import NETWORKS
from sharpkern.train.options import Options, known
from sharpkern.train.presets import PRESETS
from sharpkern.usage import UsageError


@dataclass(frozen=True)
class Request:
    """Some presets on one data set.

    Attributes:
        presets: Names in `PRESETS`.
        data: A key of `SOURCES`.
        data_dir: Folder of CIFAR's files.
        networks: Of the preset's, those to run; all if empty.
        methods: Of the preset's, those to run; all if empty.
        epochs: In place of the preset's.
        seeds: In place of the preset's.
        checkpoint: Weights to start from, for presets that fine-tune.
        backend: Of sharpkern's optimizers.
        threads: For torch.
        device: Where networks are trained.
        keep_weights: Whether the last weights of every run are left in `out`.
        out: Folder of the results.
    """

    presets: tuple[str, ...]
    data: str = "digits"
    data_dir: Path | None = None
    networks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    epochs: int | None = None
    seeds: int | None = None
    checkpoint: Path | None = None
    backend: str = "auto"
    threads: int = 1
    device: str = "cpu"
    keep_weights: bool = False
    out: Path = Path("runs/presets")

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            UsageError: Says what came and what was wanted.
        """
        known("preset", self.presets, PRESETS)
        known("data set", (self.data,), SOURCES)
        if self.networks:
            known("network", self.networks, NETWORKS)
        if self.methods:
            names = {contender.name for name in self.presets for contender in PRESETS[name].contenders}
            known("method", self.methods, sorted(names))
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise UsageError(f"--checkpoint {self.checkpoint}: no such file")
        for name in ("epochs", "seeds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value}: wanted at least 1")
        Options(backend=self.backend, device=self.device, threads=self.threads)  # checks these three
