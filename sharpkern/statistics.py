"""Running statistics around the passes of a step, whatever the buffers are called that hold them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = ("running_", "moving_", "num_batches_tracked")  # those of torch's layers; others are found by what changes

Buffers = dict[str, Any]
Place = tuple[Buffers, str, Tensor]


def _places(model: nn.Module) -> list[Place]:
    """Every buffer with where it is registered."""
    tables = [module._buffers for module in model.modules()]
    return [(table, name, buffer) for table in tables for name, buffer in table.items() if buffer is not None]


def _version(buffer: Tensor) -> int:
    """How often it was written in place."""
    return -1 if buffer.is_inference() else buffer._version


@torch.no_grad()
def _copy_(to: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    """Copies tensors, in few launches on a GPU: one a dtype and device."""
    lists: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for x, y in zip(to, source, strict=True):
        left, right = lists.setdefault((x.dtype, x.device), ([], []))
        left.append(x)
        right.append(y)
    for left, right in lists.values():
        torch._foreach_copy_(left, right)


class Snapshot:
    """Buffers as they stand, to be put back: the same tensors with the same values.

    Args:
        places: The buffers.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = list(places)
        self._kept = [torch.empty_like(buffer) for _, _, buffer in self._places]
        _copy_(self._kept, [buffer for _, _, buffer in self._places])

    def put_back(self) -> None:
        """Writes them back in place, and registers again what somebody replaced by another tensor."""
        _copy_([buffer for _, _, buffer in self._places], self._kept)
        for buffers, name, buffer in self._places:
            if name in buffers:
                buffers[name] = buffer


class Statistics:
    """The running statistics of a model from one step to the next.

    A buffer counts if it is named as in torch's normalisation layers, or if the first pass has written or replaced it:
    identity and version are compared with those at the end of the step before, so nothing waits for the device and
    constant buffers are not copied.

    Args:
        model: The model, or None: then nothing happens at all.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._snapshot: Snapshot | None = None
        self._noting = True
        self._note()

    def _note(self) -> None:
        """Remembers the buffers as they stand."""
        places = [] if self._model is None else _places(self._model)
        self._seen = {(id(buffers), name): (buffer, _version(buffer)) for buffers, name, buffer in places}

    def _changed(self, place: Place) -> bool:
        buffers, name, buffer = place
        seen, version = self._seen.get((id(buffers), name), (None, 0))
        return name.startswith(_NAMES) or seen is not buffer or version != _version(buffer)

    def keep(self, everything: bool = False) -> None:
        """Copies the statistics, before a pass that is not to touch them.

        Args:
            everything: Whether to copy all buffers, where no first pass has shown which are statistics.
        """
        if self._model is not None:
            places = _places(self._model)
            self._snapshot = Snapshot(places if everything else filter(self._changed, places))
            self._noting = not everything

    def put_back(self) -> None:
        """Puts them back, if they were copied; after a step what changes is the work of the next first pass."""
        if self._snapshot is not None:
            self._snapshot.put_back()
            self._snapshot = None
        if self._noting:
            self._note()
        self._noting = True


@contextmanager
def frozen_statistics(model: nn.Module) -> Generator[None]:
    """Running statistics stand still: after the block all buffers are bit for bit what they were before it.

    Meant for the second pass of a step, whose activations belong to w + ε. Counts every buffer of the model, whatever
    its name, also one that is replaced by another tensor instead of written. All of them are copied; the optimizers'
    `model=` copies those alone that the first pass has changed. Outputs in training mode are the same as without.

    Args:
        model: The model.

    Examples:
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean
        tensor([0.])
    """
    snapshot = Snapshot(_places(model))
    try:
        yield
    finally:
        snapshot.put_back()
