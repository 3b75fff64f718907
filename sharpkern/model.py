"""What concerns the model around the optimizer: parameter groups, and a guard of what is saved."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from sharpkern.optimizer import SharpnessAware


def param_groups(model: nn.Module, **unscaled_options: Any) -> list[dict[str, Any]]:
    """Two parameter groups: the weights, and what is not scaled (biases and the parameters of norms).

    The second group has `scaled=False`, that is s = 1 in every method, as the ASAM authors' code does for all
    parameters not named "weight". Here the line is drawn by shape, as is usual for weight decay: vectors and scalars
    are not scaled. Parameters that need no gradient are left out, tied ones are taken once.

    Args:
        model: The model.
        **unscaled_options: Options of the second group alone, such as `weight_decay=0.0`.

    Returns:
        The groups, in the form that every optimizer here takes; an empty group is left out.

    Examples:
        >>> model = nn.Linear(3, 2)
        >>> [(len(g["params"]), g["scaled"]) for g in param_groups(model, weight_decay=0.0)]
        [(1, True), (1, False)]
    """
    params = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.dim() > 1], "scaled": True},
        {"params": [p for p in params if p.dim() <= 1], "scaled": False, **unscaled_options},
    ]
    return [group for group in groups if group["params"]]


class _Guard:
    """The hook of `guard`, on one module. A copy of the module is another model: its hook guards nothing."""

    def __init__(self, optimizer: SharpnessAware | None = None) -> None:
        self._optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)

    def check(self, what: str) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._wants(False, what)

    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.check("state_dict() of the model")

    def __reduce__(self) -> tuple[type[_Guard], tuple[()]]:
        self.check("a copy of the model")
        return _Guard, ()


class Handle:
    """What `guard` returns.

    Args:
        handles: Those of the hooks.
    """

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Takes the guard away; once more does nothing."""
        for handle in self._handles:
            handle.remove()


def guard(model: nn.Module, optimizer: SharpnessAware) -> Handle:
    """Makes `state_dict()`, pickling and copying of a model an error while its weights stand perturbed.

    It is a hook on every module, so it also guards a part of the model, and the model within DistributedDataParallel
    or `torch.compile`. The optimizer is not kept alive. A pickled or deep copy of the model is not guarded.

    Args:
        model: The model.
        optimizer: Whose weights it has.

    Returns:
        What has `remove()`.

    Examples:
        >>> import torch, sharpkern
        >>> model = nn.Linear(3, 2)
        >>> optimizer = sharpkern.SAM(model.parameters(), lr=0.1)
        >>> handle = guard(model, optimizer)
        >>> model(torch.ones(3)).sum().backward()
        >>> with optimizer.perturbed():
        ...     try:
        ...         model.state_dict()
        ...     except RuntimeError as error:
        ...         str(error)[:66]
        'state_dict() of the model wants the weights themselves and they st'
    """
    register: Any = nn.Module.register_state_dict_pre_hook  # has no types
    return Handle([register(module, _Guard(optimizer)) for module in model.modules()])
