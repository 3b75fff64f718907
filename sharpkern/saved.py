"""An optimizer as a checkpoint, a pickle or a copy."""

from __future__ import annotations

from typing import Any

import torch

from sharpkern.base import update
from sharpkern.checkpoint import check_state, restore_state
from sharpkern.construct import (
    check_options,
)
from sharpkern.groups import Groups


class Saved(Groups):
    """What torch.save, pickle and deepcopy take, and give back."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to equal an uninterrupted one bit for bit, in torch's format.

        Returns:
            `state` (also the base update's) and `param_groups`.

        Raises:
            RuntimeError: The weights stand perturbed, so a checkpoint of the model would hold w + ε, or parts are
                accumulated.
        """
        self._wants_whole("state_dict()")
        saved: dict[str, Any] = super().state_dict()
        counts = self._counts()
        saved["param_groups"] = [{**group, **counts} for group in saved["param_groups"]]
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this optimizer, or of the plain base optimizer.

        Args:
            state_dict: As `state_dict()` gave it; tensors are copied.

        Raises:
            RuntimeError: The weights stand perturbed, or parts are accumulated.
            ValueError: Groups, parameters or shapes are others than here; nothing is changed then.
        """
        self._wants_whole("load_state_dict()")
        check_state(state_dict, self.param_groups)
        zero = dict.fromkeys(self._counts(), 0)
        own = [{**zero, **{name: group[name] for name in self._own}} for group in self.param_groups]
        groups = [{**kept, **saved} for kept, saved in zip(own, state_dict["param_groups"], strict=True)]
        draws, asked = (groups[0].get(name, 0) for name in ("draws", "asked"))
        for group in groups:
            for name in {"draws", "asked"} - zero.keys():
                group.pop(name, None)
            check_options(group, self._fisher is not None)
        super().load_state_dict({**state_dict, "param_groups": groups})
        fused = all(update(group, self._base_class) is not None for group in self.param_groups)
        restore_state(self.state, state_dict["param_groups"], self.param_groups, state_dict["state"], fused)
        self._clear()
        self._draws, self._asked = draws, asked

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy take: not the caches."""
        self._wants_whole("a copy of the optimizer")
        self._count_draws()
        kept = {name: getattr(self, name) for name in self._constructed}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_half" not in self.__dict__:
            self._clear()
        self._plan = None
        if self.base_optimizer is not None:
            self._join()
