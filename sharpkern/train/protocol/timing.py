"""How long a step takes here and now: of the actual networks, optimizers and augmentations, on random images."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sharpkern.train import networks
from sharpkern.train.data.augment import augmented
from sharpkern.train.data.images import Images, Source
from sharpkern.train.methods import Batch
from sharpkern.train.protocol.job import Job
from sharpkern.train.protocol.training import make_optimizer

FEW = 8  # images that are timed first; the whole batch only where these are quick
QUICK = 0.05  # seconds
FORWARD = 1 / 3  # of a forward and a backward pass
WIDTH = 256  # values of a pixel


class Timer:
    """Seconds of whole runs; what several have in common is timed once.

    Args:
        backend: Of sharpkern's optimizers.
        device: Where networks would be trained.
    """

    def __init__(self, backend: str, device: str) -> None:
        self.backend, self.device = backend, device
        self._pass = cache(self._time_pass)
        self._optimizer: dict[tuple[str, str, str, str], float] = {}
        self._augment = cache(self._time_augment)

    def seconds(self, job: Job) -> float:
        """Of a run: passes, the optimizer's own work, augmentation and the test; reading the data apart."""
        one_pass = self._pass(job.setting.network, job.source, job.batch_size)
        own = self._own(job)
        augment = self._augment(job.source, job.setting.augmentation, job.batch_size)
        tests = FORWARD * one_pass * job.source.test / job.batch_size
        return job.steps * (one_pass * job.contender.passes + own + augment) + tests

    def _time_pass(self, network: str, source: Source, batch: int) -> float:
        model = networks.make(network, source.shape[0], source.classes, seed=0).to(self.device)
        few = min(FEW, batch)
        self._passes(model, source, few)  # the first allocates
        seconds = self._passes(model, source, few)
        if seconds > QUICK and torch.device(self.device).type == "cpu":
            return seconds * batch / few
        self._passes(model, source, batch)
        return min(self._passes(model, source, batch) for _ in range(3))

    def _passes(self, model: nn.Module, source: Source, images: int) -> float:
        x = torch.randn(images, *source.shape, device=self.device)
        labels = torch.randint(source.classes, (images,), device=self.device)

        def forward_and_backward() -> None:
            loss = cross_entropy(model(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for the device

        return _clock(forward_and_backward)

    def _own(self, job: Job) -> float:
        """A step's work beside its passes, which does not depend on the images: so two of them do."""
        kind = (job.data, job.setting.network, job.contender.name, job.contender.base)
        if kind not in self._optimizer:
            model = networks.make(job.setting.network, job.source.shape[0], job.source.classes, seed=0).to(self.device)
            optimizer = make_optimizer(job, model, self.backend)
            images = torch.randn(2, *job.source.shape, device=self.device)
            batch = Batch(model, images, torch.zeros(2, dtype=torch.int64, device=self.device), 0.0)
            self._optimizer[kind] = [job.contender.style(optimizer, batch)[1] for _ in range(2)][-1]
        return self._optimizer[kind]

    @staticmethod
    def _time_augment(source: Source, augmentation: str, batch: int) -> float:
        pixels = torch.randint(WIDTH, (batch, *source.shape), dtype=torch.uint8)
        labels = torch.zeros(batch, dtype=torch.int64)
        data, generator = Images(source, pixels, labels, pixels, labels), torch.Generator()
        return min(_clock(lambda: augmented(data, pixels, augmentation, generator)) for _ in range(2))


def _clock(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
