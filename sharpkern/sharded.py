"""Parameters that are spread over processes: torch's DTensor, whose local parts the kernels work on.

A sum over all elements of all parameters counts each element once: the processes that hold a copy of what others hold
leave it out, and one all-reduce a mesh adds up the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_sharded(x: Any) -> TypeGuard[DTensor]:
    """Whether it is a DTensor; whoever has one has imported its module, which is not imported here."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of a plain one. Shares storage, and has no graph."""
    if not is_sharded(x):
        return x.detach()
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    part = x._local_tensor
    return (part.wait() if isinstance(part, AsyncCollectiveTensor) else part).detach()


def located(x: Tensor) -> tuple[int, int]:
    """Where the part lies that this process holds, and how many elements it has."""
    part = x._local_tensor if is_sharded(x) else x
    return part.data_ptr(), part.numel()


def part_of(x: Tensor, param: Tensor) -> Tensor:
    """What of `x`, a tensor of the shape of the parameter, belongs to the part of the parameter that is here.

    Communicates where `x` is spread in another way than the parameter, on all processes of the mesh.

    Args:
        x: A DTensor, or the whole tensor.
        param: The parameter.

    Returns:
        A plain tensor; `x` itself where both are plain.
    """
    if is_sharded(x) and is_sharded(param) and x.device_mesh == param.device_mesh:
        if x.placements == param.placements:
            return local(x)
        return local(x.redistribute(param.device_mesh, param.placements))
    whole: Tensor = x.full_tensor() if is_sharded(x) else x
    if is_sharded(param):
        from torch.distributed.tensor import distribute_tensor

        # every process has the whole tensor and takes its part: nothing is sent
        return local(distribute_tensor(whole.detach(), param.device_mesh, param.placements, src_data_rank=None))
    return whole


def spread_like(part: Tensor, param: Tensor) -> Tensor:
    """A part that is here as what it is a part of: a DTensor spread as the parameter is; shares storage."""
    if not is_sharded(param):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = param.device_mesh, param.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=param.shape, stride=param.stride())


def check_spread(param: Tensor) -> None:
    """Checks that a parameter is spread in a way that has an optimizer step.

    Args:
        param: A parameter.

    Raises:
        ValueError: It is a sum of parts that are not added up, or nothing of it is meant for this process.
    """
    if not is_sharded(param):
        return
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} has placements {param.placements}: wanted Shard and Replicate; "
            "redistribute it first"
        )
    if param.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} lies on {param.device_mesh}, which this process is no part "
            "of: give the optimizer the parameters of this process alone"
        )


@dataclass(frozen=True)
class Share:
    """What this process adds to a sum over all elements.

    Attributes:
        mesh: Over whose processes the sum runs; None where it is this process alone.
        counted: Whether the tensor is counted here: one of those processes that hold the same part counts it.
    """

    mesh: DeviceMesh | None = None
    counted: bool = True

    @classmethod
    def of(cls, param: Tensor, beside: DeviceMesh | None) -> Share:
        """That of a parameter.

        Args:
            param: The parameter.
            beside: A mesh whose processes all hold the plain tensors, or None.

        Returns:
            It.
        """
        mesh = param.device_mesh if is_sharded(param) else beside
        if mesh is None:
            return cls()
        coordinate = mesh.get_coordinate()
        assert coordinate is not None
        copies = [p.is_replicate() for p in param.placements] if is_sharded(param) else [True] * mesh.ndim
        return cls(mesh, all(at == 0 for at, copy in zip(coordinate, copies, strict=True) if copy))


def mesh_of(params: Sequence[Tensor]) -> DeviceMesh | None:
    """The mesh of the first parameter that has one."""
    return next((p.device_mesh for p in params if is_sharded(p)), None)


def add_over_(total: Tensor, mesh: DeviceMesh | None) -> None:
    """total ← its sum over the processes of a mesh: one all-reduce, or one a dimension of a mesh that is no group.

    Args:
        total: Any shape.
        mesh: The mesh; None leaves the total as it is.
    """
    if mesh is None:
        return
    import torch.distributed as dist

    if mesh.ndim == 1:
        groups: list[ProcessGroup | None] = [mesh.get_group()]
    elif mesh.size() == dist.get_world_size():
        groups = [None]  # all processes
    else:
        groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    for group in groups:
        dist.all_reduce(total, group=group)


def mean_over_(x: Tensor, mesh: DeviceMesh) -> None:
    """x ← its mean over the processes of a mesh.

    Args:
        x: Any shape.
        mesh: The mesh.
    """
    add_over_(x, mesh)
    x /= mesh.size()


def place(param: Tensor, start: int) -> tuple[int, int, int]:
    """Where the elements that are here lie in the flattened parameters: in rows at equal distances.

    Element i, in their order in memory, has the index start + i // run · pitch + i % run.

    Args:
        param: The parameter.
        start: Index of the first element of the whole parameter.

    Returns:
        start, run and pitch; run is 0 where all elements lie one after the other.

    Raises:
        ValueError: The part is not made of rows at equal distances.
    """
    if not is_sharded(param):
        return start, 0, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    part, strides = local(param), param.stride()
    if part.numel() == 0:
        return start, 0, 0
    shape, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    start += sum(at * stride for at, stride in zip(offset, strides, strict=True))
    levels = [(1, 1)]  # how many there are and how far apart, from the innermost outwards
    for _, stride, n in sorted(x for x in zip(part.stride(), strides, part.shape, strict=True) if x[2] > 1):
        count, apart = levels[-1]
        levels[-1:] = [(count * n, apart)] if stride == count * apart else [levels[-1], (n, stride)]
    if tuple(shape) != tuple(part.shape) or len(levels) > 2:
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} with placements {param.placements} is not cut in rows at equal "
            "distances, and its noise is drawn row by row: shard it along one dimension, or the first and another"
        )
    return (start, levels[0][0], levels[1][1]) if len(levels) == 2 else (start, 0, 0)


def reshard(model: nn.Module) -> None:
    """Lets go of the parameters that `fully_shard` has gathered: they are gathered anew, as the parts stand now.

    Args:
        model: The model.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
