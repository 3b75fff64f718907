"""Fisher diagonals of a model: the mean of squared gradients, one gradient an example.

The default of `FisherSAM`, f = g², squares the mean gradient of the batch; it is up to the batch size smaller than what
stands here, so eta means something else with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

# Per-example gradients of a chunk of the batch take no more than this many bytes.
CHUNK_BYTES = 256 << 20

Loss = Callable[[Any, Any], Tensor]


def _check(model: nn.Module) -> None:
    """Raises RuntimeError where examples of a batch do not have gradients of their own."""
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and (module.training or not module.track_running_stats):
            raise RuntimeError(
                f"{type(module).__name__} {name!r} normalises with the statistics of the batch, so one example has no "
                "gradient of its own: call model.eval(), or only that of this layer, around the Fisher diagonal, or "
                "use GroupNorm or LayerNorm"
            )


def _call(model: nn.Module, values: Mapping[Tensor, Tensor], inputs: Any) -> Any:
    """The model's output with these values of its parameters; a tuple of inputs are arguments, a mapping keywords."""
    from torch.func import functional_call

    # Every place of a parameter by one name: where a layer stands in the model twice, torch's own tying of weights does
    # not take the values out again.
    places = {
        f"{prefix}.{name}" if prefix else name: values[p]
        for prefix, module in model.named_modules()
        for name, p in module._parameters.items()
        if p is not None and p in values
    }
    arguments, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    return functional_call(model, places, arguments, keywords, tie_weights=False)


def _size(batch: Any) -> int:
    sizes = {leaf.shape[0] for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
    if len(sizes) != 1:
        raise ValueError(f"inputs and targets have first dimensions {sorted(sizes)}: wanted one, the batch's")
    size: int = sizes.pop()
    if size == 0:
        raise ValueError("the batch is empty: a mean over no example is not defined")
    return size


def _chunks(batch: Any, size: int, count: int) -> Iterator[Any]:
    for first in range(0, size, count):
        yield pytree.tree_map(lambda x, i=first: x[i : i + count], batch)


def per_example(model: nn.Module, loss_fn: Loss, inputs: Any, targets: Any) -> tuple[Tensor, ...]:
    """f = (1/|B|) Σ_i g_i², g_i the gradient of the loss of example i alone ([F] 11, [G] 56).

    Args:
        model: Without batch normalisation in training mode; other modes (dropout) are as they stand.
        loss_fn: Of (output, target), each a batch of one example, so whether it takes the mean or the sum is the same.
        inputs: A tensor, a tuple (the model's arguments) or a mapping (its keywords); the first dimension is the batch.
        targets: A tensor, or anything of tensors that `loss_fn` takes; the first dimension is the batch.

    Returns:
        One tensor a trainable parameter, in the order of `model.parameters()`, in its shape and dtype, in units of the
        loss squared over those of the weight squared. Parameters, gradients and buffers of the model are not touched.

    Raises:
        RuntimeError: A layer normalises with the statistics of the batch.
        ValueError: The first dimensions differ or are 0, or no parameter is trainable.

    Examples:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> y = model(x).detach() + torch.tensor([[0.5], [-0.5]])  # gradients -1 and 2
        >>> torch.round(per_example(model, torch.nn.functional.mse_loss, x, y)[0], decimals=3)
        tensor([[2.5000]])
    """
    from torch.func import grad, vmap  # here: its import would double the time of that of sharpkern

    _check(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model is trainable")

    def loss(values: list[Tensor], x: Any, y: Any) -> Tensor:
        one = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), (x, y))
        return loss_fn(_call(model, dict(zip(parameters, values, strict=True)), one[0]), one[1])

    size = _size((inputs, targets))
    count = max(1, CHUNK_BYTES // sum(p.nbytes for p in parameters))
    values = [p.detach() for p in parameters]
    sums = [torch.zeros_like(p) for p in values]
    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    for x, y in _chunks((inputs, targets), size, count):
        for total, g in zip(sums, each(values, x, y), strict=True):
            total += g.square().sum(0)
    return tuple(total / size for total in sums)


def _nll(output: Tensor, target: Tensor) -> Tensor:
    """Minus the logarithm of the categorical likelihood, summed over all places of the example."""
    return nn.functional.cross_entropy(output, target, reduction="sum")


def _half_square(output: Tensor, target: Tensor) -> Tensor:
    """Minus the logarithm of a Gaussian of variance 1, but for its constant."""
    return (output - target).square().sum() / 2


def sampled(
    model: nn.Module, inputs: Any, generator: torch.Generator | None = None, *, likelihood: str = "categorical"
) -> tuple[Tensor, ...]:
    """f as `per_example`, with -log p(y|x) as the loss and labels y drawn from the model's own p(y|x) ([G] 50).

    This is an unbiased estimate of the Fisher diagonal itself; with the labels of the data it is the empirical one.

    Args:
        model: Its output are logits of shape (batch, classes, ...), or the mean of the Gaussian.
        inputs: As for `per_example`.
        generator: Where the labels are drawn from; torch's own if None.
        likelihood: "categorical" (classification), or "gaussian" (regression: y = output + standard normal noise).

    Returns:
        As `per_example`.

    Raises:
        RuntimeError: A layer normalises with the statistics of the batch.
        ValueError: There is no such likelihood, or as for `per_example`.
    """
    if likelihood not in {"categorical", "gaussian"}:
        raise ValueError(f"likelihood={likelihood!r}: wanted 'categorical' or 'gaussian'")
    _check(model)
    with torch.no_grad():
        output = _call(model, {}, inputs)
        if likelihood == "gaussian":
            noise = torch.randn(output.shape, dtype=output.dtype, device=output.device, generator=generator)
            return per_example(model, _half_square, inputs, output + noise)
        logits = output.movedim(1, -1)
        chances = logits.float().softmax(-1).reshape(-1, logits.shape[-1])
        labels = torch.multinomial(chances, 1, generator=generator).reshape(logits.shape[:-1])
    return per_example(model, _nll, inputs, labels)
