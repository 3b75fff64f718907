"""The runs that a request asks for: one network trained once each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch

from sharpkern.train.data.images import SOURCES, Source
from sharpkern.train.networks import NETWORKS
from sharpkern.train.presets import PRESETS, Contender, Option, Preset, Setting
from sharpkern.train.protocol.request import Request
from sharpkern.usage import UsageError

COLUMNS = (
    "preset",
    "data",
    "network",
    "method",
    "base",
    "options",
    "noise",
    "augmentation",
    "label_smoothing",
    "weight_decay",
    "schedule",
    "momentum",
    "lr",
    "batch_size",
    "epochs",
    "start",
    "seed",
)


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        preset: Whose.
        setting: What the network is trained on.
        contender: By what method.
        data: A key of `SOURCES`; the digits stand for the setting's own data where they were asked for.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate at the start.
        start: "" for random weights, or what the weights at the start are.
        seed: Of flips, initial weights, batches, augmentation and noise.
    """

    preset: Preset
    setting: Setting
    contender: Contender
    data: str
    epochs: int
    batch_size: int
    lr: float
    start: str
    seed: int

    @property
    def source(self) -> Source:
        """The data set."""
        return SOURCES[self.data]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * (self.source.train // self.batch_size)

    @property
    def options(self) -> Mapping[str, Option]:
        """Of sharpkern's optimizer."""
        weights = number_of_weights(self.setting.network, self.source.shape[0], self.source.classes)
        return self.contender.options_on(self.setting.data, weights, self.source.train)

    @property
    def options_text(self) -> str:
        """The same as text."""
        return " ".join(f"{k}={v if isinstance(v, str) else format(v, 'g')}" for k, v in self.options.items())

    @property
    def label(self) -> str:
        """Where the table has the setting; on the digits, what tells it from the others."""
        return self.setting.short if self.data == "digits" else f"{self.setting.row} {self.setting.column}".strip()

    @property
    def title(self) -> str:
        """What a progress bar shows."""
        return f"{self.preset.table}, {self.label}, {self.contender.title}, seed {self.seed + 1}"

    def columns(self) -> dict[str, str]:
        """All that decides what comes out: its columns in the CSV file, by which a finished run is known."""
        values = (
            self.preset.name,
            self.data,
            self.setting.network,
            self.contender.name,
            self.contender.base,
            self.options_text,
            self.setting.noise,
            self.setting.augmentation,
            self.setting.label_smoothing,
            self.setting.weight_decay,
            self.preset.schedule,
            self.preset.momentum if self.contender.base == "SGD" else "",
            self.lr,
            self.batch_size,
            self.epochs,
            self.start,
            self.seed,
        )
        return dict(zip(COLUMNS, map(str, values), strict=True))

    def key(self) -> str:
        """A short name that no other run has but one that would train alike."""
        return hashlib.sha256(repr(self.columns()).encode()).hexdigest()[:16]


@cache
def number_of_weights(network: str, channels: int, classes: int) -> int:
    """How many weights a network has."""
    with torch.device("meta"):
        return sum(p.numel() for p in NETWORKS[network].make(channels, classes).parameters())


def jobs(request: Request) -> list[Job]:
    """All runs, seeds in the outer loop, so that every table fills evenly.

    Args:
        request: What was asked for.

    Returns:
        In the order in which they run.

    Raises:
        UsageError: A preset has nothing on the data, or wants a checkpoint file.
    """
    return [job for name in request.presets for job in _jobs(PRESETS[name], request)]


def why_none(preset: Preset, request: Request) -> str:
    """Why a preset has nothing to run of what was asked for; "" where it has."""
    try:
        settings = preset.settings_on(request.data)
    except UsageError:
        return f"nothing on {request.data}"
    if request.networks and not {setting.network for setting in settings} & set(request.networks):
        return f"no {', '.join(request.networks)}"
    if request.methods and not {contender.name for contender in preset.contenders} & set(request.methods):
        return f"no {', '.join(request.methods)}"
    if request.checkpoint is not None and not preset.start:
        return "starts from random weights"
    return "wants --checkpoint" if preset.start and request.checkpoint is None and request.data != "digits" else ""


def distinct(planned: Iterable[Job]) -> list[Job]:
    """The runs without those that would train as one before them."""
    first: dict[str, Job] = {}
    for job in planned:
        first.setdefault(job.key(), job)
    return list(first.values())


def kinds(planned: Iterable[Job]) -> list[list[Job]]:
    """The runs in lists of those that differ by their seeds alone."""
    lists: dict[object, list[Job]] = {}
    for job in planned:
        lists.setdefault(tuple(value for name, value in job.columns().items() if name != "seed"), []).append(job)
    return list(lists.values())


def _jobs(preset: Preset, request: Request) -> list[Job]:
    short = preset.digits if request.data == "digits" else None
    settings = [s for s in preset.settings_on(request.data) if s.network in (request.networks or NETWORKS)]
    contenders = [c for c in preset.contenders if not request.methods or c.name in request.methods]
    if not settings:
        has = ", ".join(dict.fromkeys(setting.network for setting in preset.settings_on(request.data)))
        raise UsageError(f"--networks {','.join(request.networks)}: {preset.name} has {has} on {request.data}")
    epochs = request.epochs or (short.epochs if short else preset.epochs)
    seeds = request.seeds or (short.seeds if short else preset.seeds)
    start = _start(preset, request)
    return [
        Job(
            preset,
            setting,
            contender,
            request.data,
            epochs * contender.epoch_factor,
            short.batch_size if short else preset.batch_size,
            short.lr if short and short.lr is not None else preset.lr,
            start,
            seed,
        )
        for seed, setting, contender in product(range(seeds), settings, contenders)
    ]


def _start(preset: Preset, request: Request) -> str:
    if not preset.start:
        if request.checkpoint is not None:
            raise UsageError(f"--checkpoint: {preset.name} starts from random weights")
        return ""
    if request.checkpoint is not None:
        return f"{request.checkpoint.name} {_md5(request.checkpoint)[:12]}"
    if request.data == "digits":
        return f"{preset.start} digits"
    raise UsageError(
        f"{preset.name} on {request.data} starts from {preset.checkpoint}: give --checkpoint FILE, weights saved by "
        "torch.save under the names of DeiT's and timm's vit_base_patch16_224"
    )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()
