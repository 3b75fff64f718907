"""The network of a checkpoint, and the data that it is looked at with."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sharpkern.train.data import load_digits
from sharpkern.train.network import make_network


def digits_network() -> nn.Module:
    """The network that `sharpkern train` trains, with weights to be replaced."""
    return make_network(0)


def digits_test() -> tuple[Tensor, Tensor]:
    """Its test images (599, 1, 8, 8) and labels."""
    digits = load_digits()
    return digits.test_images, digits.test_labels


def digits_training() -> tuple[Tensor, Tensor]:
    """Its training images (1198, 1, 8, 8) and labels, none of them flipped."""
    digits = load_digits()
    return digits.train_images, digits.train_labels


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


def load_subject(name: str, path: Path, network: str, data: str, device: str) -> Subject:
    """Makes the network, loads its weights and the data.

    Args:
        name: Of the subject.
        path: A file that torch.save wrote: a state_dict, or a mapping that has it under "model" or "state_dict".
        network: "module:factory" of what returns the network.
        data: "module:callable" of what returns inputs and targets.
        device: Where all of it goes.

    Returns:
        The subject.

    Raises:
        ValueError: One of them cannot be had; says which, and why.
    """
    model = resolve("network", network)()
    if not isinstance(model, nn.Module):
        raise ValueError(f"network {network}: returned a {type(model).__name__}, wanted a torch.nn.Module")
    try:
        model.load_state_dict(_weights(path))
    except (OSError, EOFError, RuntimeError, TypeError, ValueError, UnpicklingError) as error:
        raise ValueError(f"{path}: no checkpoint of the network {network}: {error}") from error
    inputs, targets = resolve("data", data)()
    return Subject(name, model.to(device).eval(), inputs.to(device), targets.to(device))


def _weights(path: Path) -> Mapping[str, Any]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, wanted a state_dict")
    for key in ("model", "state_dict"):
        if isinstance(found.get(key), Mapping):
            return dict(found[key])
    return dict(found)


def resolve(kind: str, name: str) -> Any:
    """What an import path names; modules in the current folder count.

    Args:
        kind: What it is, for the error.
        name: "module:attribute".

    Returns:
        The object.

    Raises:
        ValueError: There is no such thing.
    """
    if ":" not in name:
        raise ValueError(f"{kind} {name!r}: wanted module:callable, such as networks:resnet")
    try:
        with _current_folder():
            return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{kind} {name!r}: {error}") from error


@contextmanager
def _current_folder() -> Generator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
