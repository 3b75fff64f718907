"""Loading a checkpoint: checks before anything changes, and state in the dtype that it was saved in."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpkern.sharded import is_sharded, local, part_of, spread_like

# State that the fused updates keep in float32 whatever the dtype of the weight; torch would cast it to that dtype.
_FLOAT_STATE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "fisher", "covariance", "master")


def _pairs(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, Tensor]]:
    """The ids of a checkpoint with the parameters here, in order."""
    ids = [i for group in saved for i in group["params"]]
    params = [p for group in groups for p in group["params"]]
    return list(zip(ids, params, strict=True))


def check_state(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Checks that a checkpoint fits.

    Args:
        state_dict: With `state` and `param_groups`.
        groups: The groups here.

    Raises:
        ValueError: Keys, groups, numbers of parameters or shapes do not fit.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"the state_dict has no {key!r}: wanted what state_dict() of an optimizer gave")
    sizes = [len(group["params"]) for group in state_dict["param_groups"]]
    wanted = [len(group["params"]) for group in groups]
    if sizes != wanted:
        raise ValueError(
            f"the state_dict is of groups with {sizes} parameters, this optimizer has {wanted}: "
            "make the optimizer with the groups of the checkpoint"
        )
    for i, param in _pairs(state_dict["param_groups"], groups):
        for name, value in state_dict["state"].get(i, {}).items():
            if name in _FLOAT_STATE and isinstance(value, Tensor) and value.shape != param.shape:
                raise ValueError(
                    f"state {name!r} of parameter {i} has shape {tuple(value.shape)} in the state_dict and the "
                    f"parameter has {tuple(param.shape)}: it is a checkpoint of another model"
                )


def asks_for_state(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> bool:
    """Whether a step without a closure can only be meant to make the state.

    So `torch.distributed.checkpoint.state_dict` calls it on an optimizer that has none yet, to have tensors to load
    into: with a learning rate of 0 and gradients that are all 0.

    Args:
        groups: The groups.
        state: The optimizer's state.

    Returns:
        Whether it is so.
    """
    if state or any(float(group["lr"]) for group in groups):
        return False
    params = [p for group in groups for p in group["params"] if p.requires_grad]
    return all(p.grad is not None and not bool(local(p.grad).any()) for p in params)


def restore_state(
    state: MutableMapping[Any, Any],
    saved_groups: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[int, Any],
    fused: bool,
) -> None:
    """Puts copies of the saved tensors into the state, after torch has loaded the rest.

    Args:
        state: The state to write, by parameter.
        saved_groups: The groups of the checkpoint.
        groups: The groups here.
        saved: The state of the checkpoint, by number.
        fused: Whether the base update is ours and takes float32 state for weights of any dtype.
    """
    for i, param in _pairs(saved_groups, groups):
        for name, value in saved.get(i, {}).items():
            if not isinstance(value, Tensor):
                continue
            kept = name in {"fisher", "covariance", "master"} or (fused and name in _FLOAT_STATE) or name == "step"
            source = value if kept else state[param][name]
            device = source.device if name == "step" else param.device
            if is_sharded(param) and value.shape == param.shape:
                source = spread_like(part_of(source, param), param)
            state[param][name] = source.detach().to(device=device, copy=True, memory_format=torch.preserve_format)
