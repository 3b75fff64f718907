"""The network of a checkpoint, and the data that it is looked at with."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sharpkern.train.data.images import SOURCES, load
from sharpkern.train.networks import NETWORKS, make
from sharpkern.train.weights import load_weights
from sharpkern.usage import UsageError, usable_device


@dataclass(frozen=True)
class Subject:
    """A trained classifier in evaluation mode, with data.

    Attributes:
        name: What tables and figures call it.
        model: The network, from inputs to logits (n, classes).
        inputs: Of n examples.
        targets: Their classes (n,).
    """

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def loss(self) -> Tensor:
        """The mean cross-entropy, all examples in one batch."""
        return cross_entropy(self.model(self.inputs), self.targets)

    def loss_and_accuracy(self) -> tuple[float, float]:
        """The same, and the percentage of examples that the largest logit has right."""
        logits = self.model(self.inputs)
        hits = (logits.argmax(dim=1) == self.targets).double().mean()
        return cross_entropy(logits, self.targets).item(), 100 * hits.item()

    def batches(self, size: int) -> list[Subject]:
        """The same network with `size` examples at a time, in order; the rest short of a batch is left out."""
        whole = range(0, len(self.targets) - size + 1, size)
        return [Subject(self.name, self.model, self.inputs[i : i + size], self.targets[i : i + size]) for i in whole]


@dataclass(frozen=True)
class Choice:
    """What checkpoints belong to and are looked at with.

    Attributes:
        network: A network of the presets, such as "resnet20", or "module:factory" of what returns one.
        data: "digits", "cifar10" or "cifar100", whose test images are taken, standardised as the presets do; or
            "module:callable" of what returns inputs and targets.
        folder: Where CIFAR's files are.
        examples: How many are looked at, the first ones; None for all.
        device: Where all of it goes.
    """

    network: str = "small"
    data: str = "digits"
    folder: Path | None = None
    examples: int | None = None
    device: str = "cpu"

    def make_network(self) -> nn.Module:
        """The network, with weights to be replaced.

        Returns:
            A module from inputs to logits (n, classes).

        Raises:
            UsageError: It cannot be had; says why.
        """
        if self.network in NETWORKS:
            if self.data not in SOURCES:
                raise UsageError(f"network {self.network!r} is made for the data of a preset: {', '.join(SOURCES)}")
            source = SOURCES[self.data]
            return make(self.network, source.shape[0], source.classes, 0)
        model = made_by("network", self.network, NETWORKS)
        if not isinstance(model, nn.Module):
            raise UsageError(f"network {self.network}: returned a {type(model).__name__}, wanted a torch.nn.Module")
        return model

    def load_data(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets.

        Returns:
            As many examples as are wanted.

        Raises:
            UsageError: They cannot be had; says why.
        """
        if self.data in SOURCES:
            images = load(self.data, self.folder)
            inputs, targets = images.standardise(images.test_images), images.test_labels
        else:
            inputs, targets = made_by("data", self.data, SOURCES)
        if self.examples is not None and not 1 <= self.examples <= len(targets):
            raise UsageError(f"examples={self.examples}: there are {len(targets)}")
        return inputs[: self.examples], targets[: self.examples]


def load_subjects(paths: Mapping[str, Path], choice: Choice) -> list[Subject]:
    """Loads the data once, and a network for each file.

    Args:
        paths: By the name of the subject: a file that torch.save wrote, a state_dict or a mapping that has it under
            "model" or "state_dict".
        choice: The network and the data.

    Returns:
        A subject a file.

    Raises:
        UsageError: Something of that cannot be had; says what, and why.
    """
    device = usable_device(choice.device)
    inputs, targets = (part.to(device) for part in choice.load_data())
    subjects = []
    for name, path in paths.items():
        model = choice.make_network()
        load_weights(model, path)
        subjects.append(Subject(name, model.to(device).eval(), inputs, targets))
    return subjects


def made_by(kind: str, name: str, known: Iterable[str]) -> Any:
    """What a callable returns that an import path names; modules in the current folder count.

    Args:
        kind: What it is, for the error.
        name: "module:attribute".
        known: What else could have been named, for the error.

    Returns:
        What it returns.

    Raises:
        UsageError: There is no such callable.
    """
    if ":" not in name:
        raise UsageError(f"{kind} {name!r}: wanted module:callable, or one of {', '.join(known)}")
    with _current_folder():
        try:
            found = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{kind} {name!r}: {error}") from error
        if not callable(found):
            raise UsageError(f"{kind} {name!r}: is a {type(found).__name__}, wanted a callable")
        return found()


@contextmanager
def _current_folder() -> Generator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
