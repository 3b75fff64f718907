"""What a preset is: one table of a paper as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import torch
from torch import nn

from sharpkern import SharpnessAware
from sharpkern.train.methods import Style, one_pass, two_passes
from sharpkern.usage import UsageError

Option = float | str
Printed = tuple[Decimal, Decimal]  # accuracy in percent and what stands after it, digit for digit

BASES: Mapping[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Contender:
    """A method with the paper's options.

    Attributes:
        name: What is typed and what CSV files hold.
        title: What the paper's table shows.
        optimizer: A class of sharpkern; None is the base optimizer alone.
        options: rho, eta and what else the class takes, written out even where it is the class's default.
        on: Data set -> options that differ there.
        base: A key of `BASES`.
        style: How a step is taken; see `sharpkern.train.methods`.
        epoch_factor: Multiple of the preset's epochs.
        sigma: Standard deviation of Gaussian noise in place of rho: rho = sigma sqrt(p).
        rate: For a learned covariance, of the objective of which the loss is a sum over the N training examples:
            lr_covariance = rate N, and kl_weight = 1/N.
    """

    name: str
    title: str
    optimizer: Callable[..., SharpnessAware] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Option]] = field(default_factory=dict)
    base: str = "SGD"
    style: Style = two_passes
    epoch_factor: int = 1
    sigma: float | None = None
    rate: float | None = None

    def options_on(self, data: str, weights: int, examples: int = 1) -> dict[str, Option]:
        """The options for a data set of so many training examples and a network of so many weights."""
        noise = {} if self.sigma is None else {"rho": self.sigma * weights**0.5}
        learned = {} if self.rate is None else {"lr_covariance": self.rate * examples, "kl_weight": 1 / examples}
        return {**self.options, **self.on.get(data, {}), **noise, **learned}

    def make(self, model: nn.Module, options: Mapping[str, Option], base: Mapping[str, Any], backend: str) -> Any:
        """The optimizer of a model.

        Args:
            model: The network.
            options: As `options_on` gave.
            base: Options of the base optimizer.
            backend: Of sharpkern.

        Returns:
            Of torch or of sharpkern.
        """
        if self.optimizer is None:
            return BASES[self.base](model.parameters(), **base)
        return self.optimizer(model.parameters(), BASES[self.base], backend=backend, **options, **base)

    @property
    def passes(self) -> int:
        """Backward passes a step."""
        return 2 if self.style is two_passes else 1


def plain(name: str, title: str, **options: Any) -> Contender:
    """The base optimizer alone."""
    return Contender(name, title, style=one_pass, **options)


@dataclass(frozen=True)
class Setting:
    """One cell of the table, or one for each method: what a network is trained on, and the figures printed there.

    Attributes:
        data: A key of `SOURCES`, or a data set that sharpkern does not read.
        network: A key of `NETWORKS`.
        row: Where the table has it.
        column: The same; "" where the table has methods alone.
        printed: Name of a contender -> the paper's figure.
        short: What tables call it on the digits, where one network stands for all.
        noise: Share of the training labels that are flipped.
        augmentation: A key of `AUGMENTATIONS`.
        label_smoothing: Of the training loss.
        weight_decay: Of the base optimizer.
        why_not: Why it cannot be run on the paper's data; "" where it can.
    """

    data: str
    network: str
    row: str
    column: str
    printed: Mapping[str, Printed]
    short: str
    noise: float = 0.0
    augmentation: str = "auto"
    label_smoothing: float = 0.0
    weight_decay: float = 5e-4
    why_not: str = ""


@dataclass(frozen=True)
class Short:
    """What changes on the digits, so that the whole takes minutes; rho, eta, noise and schedule stay the paper's."""

    network: str = "small"
    epochs: int = 20
    batch_size: int = 128
    lr: float | None = None
    seeds: int = 2


@dataclass(frozen=True)
class Preset:
    """One table of a paper.

    Attributes:
        name: What is typed after `--preset`.
        table: The paper and its table.
        title: What is compared.
        contenders: The methods.
        settings: What each is trained on.
        spread: What the paper prints after its means.
        notes: What the paper leaves open and what stands here instead; what cannot be run.
        epochs: Of a contender whose `epoch_factor` is 1.
        batch_size: Images a step.
        lr: Learning rate at the start.
        momentum: Of SGD.
        schedule: "cosine" to 0, or "step": times 0.2 after 30, 60 and 80 % of the epochs.
        seeds: Runs of every kind.
        methods_across: Whether the methods are the table's columns; its rows otherwise.
        digits: What changes on the digits.
        start: "" for random weights; on the digits "all" and "half" train the start first, on all ten or on the
            first five classes; elsewhere both want a checkpoint file.
        checkpoint: What such a file has to hold.
    """

    name: str
    table: str
    title: str
    contenders: tuple[Contender, ...]
    settings: tuple[Setting, ...]
    spread: str
    notes: tuple[str, ...] = ()
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    schedule: str = "cosine"
    seeds: int = 3
    methods_across: bool = True
    digits: Short = Short()
    start: str = ""
    checkpoint: str = ""

    def settings_on(self, data: str) -> tuple[Setting, ...]:
        """The settings that can be run on a data set; on the digits one for all that would train alike.

        Args:
            data: A key of `SOURCES`.

        Returns:
            In the order of the table.

        Raises:
            UsageError: The table has none there that can be run; says why.
        """
        if data == "digits":
            kinds: dict[object, Setting] = {}
            for setting in self.settings:
                options = [sorted(contender.options_on(setting.data, 0).items()) for contender in self.contenders]
                same = replace(setting, data="", network="", row="", column="", printed={}, short="", why_not="")
                kinds.setdefault(f"{options} {same}", replace(setting, network=self.digits.network))
            return tuple(kinds.values())
        there = [setting for setting in self.settings if setting.data == data]
        if found := tuple(setting for setting in there if not setting.why_not):
            return found
        reasons = ", ".join(dict.fromkeys(s.why_not for s in self.settings if s.why_not))
        known = ", ".join(dict.fromkeys(s.data for s in self.settings if not s.why_not))
        why = f"it has digits{known and ', '}{known}" + (f"; {reasons}" if reasons else "")
        raise UsageError(f"--preset {self.name} has nothing on --data {data}: {why}")


def figures(text: str) -> list[Printed]:
    """Printed figures, written as in the paper's table but for the signs: mean, spread, mean, spread, ..."""
    numbers = [Decimal(word) for word in text.split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))
