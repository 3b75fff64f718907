"""Single ops as calls, for every covariance and base update, and the copy that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from sharpkern import ops
from sharpkern.base import SGD, Adam, Update
from sharpkern.bench import traffic
from sharpkern.bench.measure import Step, parameters
from sharpkern.bench.shapes import Shape
from sharpkern.bench.traffic import Sizes
from sharpkern.covariance import Adaptive, Covariance, Fisher, Identity, Learned, Tracer
from sharpkern.tensors import GROUP, Tensors, empty_like

COVARIANCES: tuple[Covariance, ...] = (
    Identity(),
    Adaptive(0.01),
    Fisher(1.0),
    Fisher(1.0, beta=0.9),
    Learned(0.01),
    Tracer(0.1),
)
BASES: dict[str, Update] = {
    "sgd": SGD(1e-3, weight_decay=5e-4),
    "momentum": SGD(1e-3, 0.9, weight_decay=5e-4),
    "nesterov": SGD(1e-3, 0.9, weight_decay=5e-4, nesterov=True),
    "adam": Adam(1e-3, (0.9, 0.999), 1e-8, 5e-4, decoupled=False, maximize=False),
    "adamw": Adam(1e-3, (0.9, 0.999), 1e-8, 0.01, decoupled=True, maximize=False),
}
STILL = 1e-6  # a radius that leaves weights and what is kept where they are, however often an op is called
COPY_ELEMENTS = 1 << 28  # float32: 1 GiB read and 1 GiB written


def lists(shapes: Sequence[Shape], dtype: torch.dtype, device: str) -> Tensors:
    """Tensors with everything that an op may want, random."""
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters(shapes, device)]
    t = Tensors(params, 0)
    for p in params:
        p.grad = torch.randn_like(p).mul_(0.01)
    t.read_gradients()
    t.allocate_saved()
    for w0, w in zip(t.saved, t.weights, strict=True):
        w0.copy_(w)
    t.set_source()
    for slot in ("fisher", "m", "v"):
        setattr(t, slot, [x.fill_(1e-4) for x in empty_like(t.weights, t.state_dtype)])
    t.steps += 1
    t.seed, t.draw = 1, torch.zeros((), dtype=torch.int64, device=device)
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + -(-math.prod(shape) // GROUP) * GROUP)
    t.start = starts[:-1]
    return t


def calls(backend: ops.Ops, t: Tensors, names: Sequence[str] = ()) -> dict[str, Step]:
    """Ops by name, each as a call on the same tensors; all or those named."""
    total = torch.ones_like(t.total)
    found: dict[str, Step] = {}
    for c in COVARIANCES:
        found[f"sq_norm {c.kernel}"] = partial(backend.sq_norm, t, c, t.total)
        found[f"ascend {c.kernel}"] = partial(backend.ascend_, t, c, STILL, total, True)
    found["ascend noise"] = partial(backend.ascend_, t, COVARIANCES[0], STILL, None, True, 0.0, 1.0)
    for name, u in BASES.items():
        found[f"descend {name}"] = partial(backend.descend_, t, u, None, total, None)
    found["restore"] = partial(backend.restore_, t, total)
    return {name: found[name] for name in names} if names else found


def sizes(dtype: torch.dtype) -> dict[str, int]:
    """Bytes a parameter of every op."""
    each = Sizes.of(dtype)
    found = {f"sq_norm {c.kernel}": traffic.sq_norm(c, each) for c in COVARIANCES}
    found |= {f"ascend {c.kernel}": traffic.ascend(c, each) for c in COVARIANCES}
    found["ascend noise"] = traffic.ascend(COVARIANCES[0], each, gradient=False)
    found |= {f"descend {name}": traffic.descend(u, each) for name, u in BASES.items()}
    return {**found, "restore": traffic.restore(each)}


def copy(elements: int, device: str = "cpu") -> Step:
    """A copy of so many float32: with streaming stores by all threads where our extension is there, else torch's."""
    source, target = torch.ones(elements, device=device), torch.zeros(elements, device=device)
    if device != "cpu" or ops.load("native").why_not(torch.device("cpu")):
        return lambda: target.copy_(source)
    from sharpkern.backend.native import _kernels
    from sharpkern.backend.native.ops import STREAMING_BYTES

    streaming = elements * 4 >= STREAMING_BYTES
    table = _kernels.Table([elements], "float32", "float32", False, _kernels.instruction_sets()[0], streaming)
    table.set("weight", [target.data_ptr()])
    table.set("source", [source.data_ptr()])
    kept = source, target, torch.zeros((), dtype=torch.float64)
    return lambda: table.restore(torch.get_num_threads(), kept[2].data_ptr())
