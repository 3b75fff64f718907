"""A perturbation of its own on every rank of DistributedDataParallel: m-sharpness, m the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sharpkern.construct import Common
from sharpkern.correction import Correction
from sharpkern.covariance import Covariance
from sharpkern.sharded import is_sharded
from sharpkern.statistics import frozen_statistics

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def group_of(common: Common) -> ProcessGroup | None:
    """The ranks that perturb each on their own, or None where all perturb alike."""
    if not common.per_rank:
        return None
    assert isinstance(common.model, DistributedDataParallel)
    group: ProcessGroup = common.model.process_group
    return group


def check(common: Common, params: list[Tensor]) -> None:
    """Checks that ranks can perturb each on its own.

    Args:
        common: What the optimizer was given.
        params: All parameters.

    Raises:
        ValueError: `per_rank` without DistributedDataParallel, or with sharded parameters.
    """
    if not common.per_rank:
        return
    if any(is_sharded(p) for p in params):
        raise ValueError(
            "per_rank=True with sharded parameters (DTensor): no rank holds a whole gradient of its own, nor weights "
            "to perturb. Use DistributedDataParallel, or leave it out: then one perturbation comes from the mean "
            "gradient"
        )
    if not isinstance(common.model, DistributedDataParallel):
        raise ValueError(
            f"per_rank=True wants model=, the DistributedDataParallel module whose no_sync() the first pass runs "
            f"under, and model is {'None' if common.model is None else type(common.model).__name__}"
        )


def check_method(common: Common, method: str, covariance: Covariance, correction: Correction | None) -> None:
    """Checks that nothing which all ranks have to share comes from the gradients of one.

    Args:
        common: What the optimizer was given.
        method: Its name.
        covariance: Of a group.
        correction: Of that group.

    Raises:
        ValueError: `per_rank`, and the method keeps state from the first pass or uses it in the update.
    """
    if common.per_rank and (covariance.state is not None or correction is not None):
        kept = f"state ({covariance.state!r})" if covariance.state is not None else "the draws"
        raise ValueError(
            f"per_rank=True with {method}: its update or its {kept} would come from the gradients or the noise of one "
            "rank, so ranks would no longer have the same weights. It can be had with SAM, ASAM, RandomSAM, MixSAM "
            "and FisherSAM(fisher='batch')"
        )


def own_gradients(common: Common) -> AbstractContextManager[Any]:
    """What a first pass runs under: with `per_rank` gradients are not averaged over the ranks."""
    if not common.per_rank:
        return nullcontext()
    assert isinstance(common.model, DistributedDataParallel)
    return common.model.no_sync()


def synchronise(common: Common, closure: Callable[[], Any]) -> None:
    """One pass whose gradients nobody uses, where `per_rank` meets a static graph.

    DistributedDataParallel(static_graph=True) learns the graph from the first backward pass, which must not be under
    `no_sync()`.

    Args:
        common: What the optimizer was given.
        closure: As `step` takes it.
    """
    if common.per_rank and isinstance(common.model, DistributedDataParallel) and common.model.static_graph:
        with frozen_statistics(common.model):
            closure()


def rank_of(common: Common) -> int:
    """What is added to the seed of the noise: with `per_rank` the rank, else 0."""
    group = group_of(common)
    return 0 if group is None else torch.distributed.get_rank(group)


def agree_(totals: list[Tensor], group: ProcessGroup | None) -> None:
    """Every total becomes NaN where it is not finite on one of the ranks, so that all skip the step; else it stays.

    Args:
        totals: Σ s g² of this rank, 0-d, one a device.
        group: The ranks, or None.
    """
    if group is None:
        return
    for total in totals:
        spoiled = torch.where(total.isfinite(), 0.0, torch.nan).to(total.dtype)
        torch.distributed.all_reduce(spoiled, group=group)
        total += spoiled


def average_(x: Tensor, model: nn.Module | None) -> None:
    """x ← its mean over the ranks of a DistributedDataParallel module; stays with any other.

    Args:
        x: Any shape.
        model: The model, or None.
    """
    if isinstance(model, DistributedDataParallel):
        torch.distributed.all_reduce(x, group=model.process_group)
        x /= torch.distributed.get_world_size(model.process_group)
