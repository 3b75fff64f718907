"""Where a step cannot be made: torch.inference_mode, and the transforms of torch.func."""

from __future__ import annotations

import torch
from torch import Tensor


def check_mode(what: str) -> None:
    """Checks that weights and state can be written in place where the call stands.

    Args:
        what: The call, for the message.

    Raises:
        RuntimeError: They cannot.
    """
    if torch.compiler.is_dynamo_compiling():
        return  # neither can be asked there; the ops ask
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{what} stands inside torch.inference_mode(), where the state that it makes could not be written "
            "afterwards and nothing can be differentiated: call it outside, or use torch.no_grad()"
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{what} stands inside a transform of torch.func (grad, vmap, jvp, ...), which cannot follow weights that "
            "are written in place: transform the loss alone, write the gradients into .grad and call it outside"
        )


def check_tensor(p: Tensor) -> None:
    """Checks that a parameter can be written in place.

    Args:
        p: The parameter.

    Raises:
        ValueError: It cannot.
    """
    if p.is_inference():
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} was made in torch.inference_mode() and cannot be trained: make the "
            "model outside of it, or clone the parameter there"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(p):
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is a tensor inside a transform of torch.func (grad, vmap, jvp, "
            "...): make the optimizer outside, with the tensors that go into the transform"
        )
