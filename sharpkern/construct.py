"""What a constructor and a group are checked for, with errors that say what came, what was wanted and what to do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sharpkern.modes import check_tensor
from sharpkern.sharded import check_spread

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ONE_OF = {
    "damping": ("inverse", "additive"),
    "fisher": ("batch", "average", "callable"),
    "adaptive": (True, False),
    "scaled": (True, False),
    "natural_gradient": (True, False),
    "parametrization": ("log", "direct"),
    "curvature": ("exact", "difference"),
    "precondition": (True, False),
    "learned": (True, False),
}


@dataclass(frozen=True)
class Common:
    """The arguments that every class takes; `sharpkern.SharpnessAware` says what they mean."""

    backend: str = "auto"
    model: nn.Module | None = None
    master_weights: bool = False
    stochastic_rounding: bool = False
    skip_nonfinite: bool = False
    scaler: GradScaler | None = None
    max_norm: float | None = None
    clip_value: float | None = None
    per_rank: bool = False

    @classmethod
    def take(cls, options: dict[str, Any]) -> Common:
        """Takes these arguments out of the others.

        Args:
            options: All arguments; those of this class leave it.

        Returns:
            They.

        Raises:
            ValueError: A switch is neither True nor False, or a number out of range.
            TypeError: The scaler is no GradScaler.
        """
        common = cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})
        for name in ("master_weights", "stochastic_rounding", "skip_nonfinite", "per_rank"):
            if getattr(common, name) not in (True, False):
                raise ValueError(f"{name}={getattr(common, name)!r}: wanted True or False")
        for name in ("max_norm", "clip_value"):
            if getattr(common, name) is not None:
                check_number(name, getattr(common, name), positive=True)
        check_scaler(common.scaler)
        return common


def check_scaler(scaler: Any) -> None:
    """Checks that a scaler is one.

    Args:
        scaler: A `torch.amp.GradScaler`, or None.

    Raises:
        TypeError: It is not.
    """
    if not (scaler is None or isinstance(scaler, GradScaler)):
        raise TypeError(f"scaler={scaler!r}: wanted a torch.amp.GradScaler, or None")


COMMON = tuple(field.name for field in fields(Common))


def base_defaults(
    base_optimizer: type[torch.optim.Optimizer], options: Mapping[str, Any], own: Sequence[str]
) -> dict[str, Any]:
    """The defaults of the torch optimizer with the options given, which torch itself has checked.

    Args:
        base_optimizer: A class of torch.optim, or one like it.
        options: Its options.
        own: Options that sharpkern's class takes itself, for the message.

    Returns:
        Every option of the torch optimizer.

    Raises:
        TypeError: The class is no optimizer class, or does not take one of the options.
    """
    if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, torch.optim.Optimizer)):
        raise TypeError(
            f"base_optimizer={base_optimizer!r}: wanted a class such as torch.optim.SGD, not an instance; "
            "its options go to the constructor of the sharpness-aware optimizer"
        )
    closure = inspect.signature(base_optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{base_optimizer.__name__} calls its closure itself, as often as it wants: wanted a class whose step() "
            "goes without one"
        )
    parameters = inspect.signature(base_optimizer).parameters
    accepted = [name for name in parameters if name != "params"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in options:
            if name not in accepted:
                raise TypeError(
                    f"unknown option {name!r}: {base_optimizer.__name__} takes {', '.join(accepted)}; "
                    f"beside them this class takes {', '.join(own)}"
                )
    check_number("lr", options.get("lr", 0.0))
    return dict(base_optimizer([torch.zeros(1, 1, requires_grad=True)], **options).defaults)


def check_number(name: str, value: Any, positive: bool = False) -> None:
    """Checks that an option is a finite number and not negative.

    Args:
        name: The option.
        value: A number or a tensor of one element.
        positive: Whether 0 is excluded.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, (int, float)):
        number = float(value)
    elif isinstance(value, Tensor) and value.numel() == 1:
        if value.device.type != "cpu":
            return  # reading it would wait for the device
        number = float(value)
    else:
        raise ValueError(f"{name}={value!r}: wanted a number")
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name}={number}: wanted a finite number {'> 0' if positive else '>= 0'}")


def check_count(name: str, value: Any) -> int:
    """Checks that an option counts something.

    Args:
        name: The option.
        value: An int from 1 on.

    Returns:
        It.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: wanted an int from 1 on")
    return value


def check_seed(seed: Any) -> int:
    """Checks a seed.

    Args:
        seed: An int of 64 bits.

    Returns:
        It.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed={seed!r}: wanted an int from 0 to 2**64 - 1")
    return seed


def check_options(group: Mapping[str, Any], callable_fisher: bool) -> None:
    """Checks the options of a group that are sharpkern's, and lr.

    Args:
        group: The group.
        callable_fisher: Whether the optimizer was given a callable Fisher.

    Raises:
        ValueError: One is out of range.
    """
    additive = group.get("damping") == "additive"
    for name in ("rho", "eta", "lr"):
        if name in group:
            # evolution strategies divide by rho
            positive = (name == "eta" and additive) or (name == "rho" and "learned" in group)
            check_number(name, group[name], positive)
    for name, meaning in (("beta", "a weight of the new gradient"), ("mix", "the share of the Gaussian")):
        if name in group:
            check_number(name, group[name])
            if group[name] > 1:
                raise ValueError(f"{name}={group[name]}: wanted {meaning} from 0 to 1")
    for name in ("lr_covariance", "kl_weight"):
        if name in group:
            check_number(name, group[name])
    for name in ("prior_std", "delta", "radius"):
        if name in group:
            check_number(name, group[name], positive=True)
    for name, accepted in _ONE_OF.items():
        if name in group and group[name] not in accepted:
            names = [x for x in accepted if x != "callable"]
            extra = " or a callable" if name == "fisher" else ""
            raise ValueError(f"{name}={group[name]!r}: wanted one of {', '.join(map(repr, names))}{extra}")
    if group.get("fisher") == "callable" and not callable_fisher:
        raise ValueError(
            "fisher='callable' stands for a callable, and this optimizer has none: give the callable itself as "
            "fisher=..., also to an optimizer that loads the checkpoint of one that had it"
        )


def check_parameters(params: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Checks that dtypes are supported and that all parameters are on devices of one kind.

    Args:
        params: The parameters of a new group.
        others: Those of the groups there are.

    Raises:
        ValueError: They cannot be taken.
    """
    for p in params:
        check_tensor(p)
        check_spread(p)
        if p.dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} has dtype {p.dtype}: wanted {names}. "
                "Give it an optimizer of its own"
            )
    devices = sorted({p.device.type for p in (*others, *params)})
    if len(devices) > 1:
        raise ValueError(
            f"parameters are on {' and '.join(devices)}: all have to be on devices of one kind. "
            "Move the model with model.to(device) before making the optimizer"
        )
    if devices == ["meta"]:
        raise ValueError("parameters are on the meta device and hold no data: materialise the model first")
