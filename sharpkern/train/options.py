"""What a user can choose, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sharpkern import ops
from sharpkern.train.data import TRAIN_IMAGES
from sharpkern.train.methods import METHODS
from sharpkern.usage import UsageError, require_extra, usable_device

CONDITIONS = ("clean", "noisy")


def require_packages() -> None:
    """Looks for all that a run needs beyond torch.

    Raises:
        MissingExtraError: One is not installed.
    """
    require_extra("sharpkern train", "train", "sklearn", "rich", "matplotlib", "PIL")


@dataclass(frozen=True)
class Options:
    """One comparison: every method × condition × seed.

    Batch size, learning rate, momentum, weight decay, label smoothing and schedule, rho and eta are those of the
    Fisher SAM paper (sections 5.1 and 5.5). The network, the shifts of the images and the number of epochs are our
    choice, made with plain SGD alone, by its accuracy on quarters of the training part set aside, clean and noisy,
    and by the time it takes. So the number of epochs is the one that suits SGD; the test images had no say.

    Attributes:
        methods: Names in `METHODS`.
        conditions: "clean" and "noisy".
        noise: Share of the training labels that "noisy" flips.
        epochs: Passes over the training data for a method whose `epoch_factor` is 1.
        seeds: Runs of each kind; seed k fixes the flips, the initial weights and the batches, for every method.
        batch_size: Images a step.
        lr: Learning rate at the start; a cosine takes it to 0.
        momentum: Of SGD.
        weight_decay: Of SGD.
        label_smoothing: Of the training loss.
        backend: Of sharpkern's optimizers.
        threads: For torch. A network as small as this gains 15 % from a second one, and loses far more where another
            program wants that core.
        device: Where the network is trained.
        out: Folder of the results; None makes `runs/digits-<date>-<time>`.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    conditions: tuple[str, ...] = CONDITIONS
    noise: float = 0.4
    epochs: int = 40
    seeds: int = 3
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    backend: str = "auto"
    threads: int = 1
    device: str = "cpu"
    out: Path | None = None

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            UsageError: Says what came, what was wanted and, for a name, what there is.
        """
        known("method", self.methods, METHODS)
        known("condition", self.conditions, CONDITIONS)
        for name in ("epochs", "seeds", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: wanted at least 1")
        if self.batch_size > TRAIN_IMAGES:
            raise UsageError(f"batch_size={self.batch_size}: wanted at most {TRAIN_IMAGES}, all training images")
        if not 0 < self.noise < 1:
            raise UsageError(f"noise={self.noise}: wanted the share of labels to flip, between 0 and 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr={self.lr}: wanted a finite number > 0")
        self.chosen_backend()

    def chosen_backend(self) -> str:
        """The backend that sharpkern's optimizers use on the device, such as "native".

        Returns:
            Its name, where "auto" has been decided.

        Raises:
            UsageError: The device or the backend cannot be used.
        """
        device = usable_device(self.device)
        try:
            return ops.choose(self.backend, device)[0]
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"device={self.device!r}, {str(error).splitlines()[0]}") from error


def split_names(text: str) -> tuple[str, ...]:
    """The names in a text that has commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def known(kind: str, names: Iterable[str], table: Iterable[str]) -> None:
    """Checks names that a user typed.

    Args:
        kind: What they name.
        names: What came.
        table: What there is.

    Raises:
        UsageError: None came, one twice, or one that there is not; says what there is.
    """
    names, table = tuple(names), tuple(table)
    if not names:
        raise UsageError(f"no {kind} was named: choose from {', '.join(table)}")
    for name in names:
        if name not in table:
            raise UsageError(f"unknown {kind} {name!r}: choose from {', '.join(table)}")
    if len(set(names)) < len(names):
        raise UsageError(f"a {kind} was named twice: {', '.join(names)}")
