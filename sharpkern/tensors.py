"""The tensors that one launch covers, with their cached addresses.

Between two steps weights, copies and state stay where they are, so their addresses are read once. Gradients are new
after every backward pass; reading them is the largest term of a small model's step, so the extension does it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpkern.sharded import Share, is_sharded, local, located, part_of

GROUP = 8  # elements: every tensor starts at a multiple of this in the flattened parameters, which random bits count
_EMPTY = 1  # stands for the address of a gradient without elements: 0 would say that there is no gradient
_LINE = 32  # elements: at least a cache line of every dtype
_HUGE = 4 << 20  # bytes from which huge pages are asked for


class Stale(Exception):
    """The parameters no longer are what the lists were made for: make them anew."""


def state_dtype(weight: Tensor) -> torch.dtype:
    """float64 for float64 weights, else float32: the arithmetic of every op, and of the state it keeps."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def gradient_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which the kernels read the gradient of `weight`."""
    grad = weight.grad
    if grad is None or torch.float64 in (weight.dtype, grad.dtype):
        return weight.dtype
    return grad.dtype


def taken(g: Tensor, take: Tensor | None) -> Tensor:
    """A gradient times a factor, clipped to ± a bound, which `take` holds; what is not finite stays so."""
    if take is None:
        return g
    factor, bound = take.to(g.dtype)
    g = factor * g
    return torch.where(g.isfinite(), g.clamp(-bound, bound), g)


def _layout(x: Tensor) -> tuple[int, ...]:
    """The strides that matter: those of dimensions longer than 1."""
    return tuple(stride for stride, n in zip(x.stride(), x.shape, strict=True) if n != 1)


def _reader(params: list[Tensor], dtype: torch.dtype) -> Any:
    """What reads gradients in one go, from torch 2.10 on and with the extension; otherwise they are read one by one."""
    exchange_api = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if exchange_api is None:
        return None
    try:
        from sharpkern.backend.native._kernels import Reader
    except ImportError:
        return None
    return Reader(exchange_api, params, str(dtype).removeprefix("torch."))


def _advise_huge_pages(flat: Tensor) -> None:
    """Huge pages under a large buffer on the CPU: fewer address translations, a third more bandwidth."""
    if flat.device.type == "cpu" and flat.nbytes >= _HUGE:
        try:
            from sharpkern.backend.native._kernels import advise_huge_pages
        except ImportError:
            return
        advise_huge_pages(flat.data_ptr(), flat.nbytes)


def empty_like(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A tensor for each weight, in its shape and layout, all in one allocation and each on a line of its own.

    Args:
        weights: Dense tensors on one device.
        dtype: Of the new tensors.

    Returns:
        The tensors, not initialised.
    """
    starts = [0]
    for w in weights:
        starts.append(starts[-1] + -(-w.numel() // _LINE) * _LINE)
    flat = torch.empty(starts[-1], dtype=dtype, device=weights[0].device)
    _advise_huge_pages(flat)
    return [flat.as_strided(w.shape, w.stride(), start) for w, start in zip(weights, starts, strict=False)]


class Tensors:
    """Parameters of one group, one device, one dtype and one gradient dtype.

    Lists run over the parameters. `weights` are the parameters themselves, or what of them this process holds; a dense
    stand-in where that is a view with gaps. `written` are all tensors whose versions a write moves. `gradients` have
    the layout of the weights, and None where there is none. `saved` is the copy w0. `fisher`, `m`, `v` hold state, or
    None. `source` is where w0 is read in the second pass. With `master` the copy is no copy but float32 weights, which
    are state. `draw` counts perturbations on the device where random numbers are drawn, which `seed`, it and the
    elements' indices (`start`, `rows`) determine; else it is None. With `stochastic` w + ε is rounded stochastically.
    `take` holds the factor and the bound with which gradients are read, float64, or is None: the ops take g ← factor g,
    clipped to ±bound; what is not finite stays so. `first` are copies of the gradients of the first pass where the
    second wants them. `pairs` holds the weights and the utilities of evolution strategies' pairs, float32.

    Args:
        params: The parameters, in the order of the group.
        group: Index of their group in `param_groups`.
        master: Whether `saved` holds float32 masters.
        share: What this process adds to sums over all processes.
    """

    def __init__(self, params: Sequence[Tensor], group: int, master: bool = False, share: Share | None = None) -> None:
        self.params = list(params)
        parts = [local(p) for p in params]
        self.written = [*params, *(part for p, part in zip(params, parts, strict=True) if is_sharded(p))]
        self.share = share or Share()
        self.group = group
        self.device = params[0].device
        self.master = master
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.draw: Tensor | None = None
        self.take: Tensor | None = None
        self.stochastic = False
        self.pairs: Tensor | None = None
        self.seed = 0
        self.start: list[int] = []
        self.rows: list[tuple[int, int]] = []  # of each tensor: run and pitch; none where all are in one piece
        self.versions: list[int] | None = None  # of the parameters, when their masters were last known to be theirs
        self.dtype = params[0].dtype
        self.gradient_dtype = gradient_dtype(params[0])
        self.state_dtype = state_dtype(params[0])
        self.weights = [p if _layout(p) == _layout(torch.empty_like(p)) else torch.empty_like(p) for p in parts]
        self._gaps = [(p, w) for p, w in zip(parts, self.weights, strict=True) if w is not p]
        self._located = [(p.data_ptr(), p.numel()) for p in parts]
        plain = not self._gaps and len(self.written) == len(self.params)
        self._reader = _reader(self.params, self.gradient_dtype) if plain else None
        self.gradient_bytes = sum(p.numel() for p in parts) * self.gradient_dtype.itemsize
        self.steps = torch.zeros(len(params), dtype=torch.float32, device=self.device)
        self.attached: dict[str, tuple[str | None, bool]] = {}  # by slot: name in the state, whether all have it
        self.saved: list[Tensor] = []
        self._first: list[Tensor] = []
        self.fisher: list[Tensor | None] = [None] * len(params)
        self.m: list[Tensor | None] = [None] * len(params)
        self.v: list[Tensor | None] = [None] * len(params)
        self.first: list[Tensor | None] = [None] * len(params)
        self.source: list[Tensor] = self.weights
        self.gradients: list[Tensor | None] = []
        self.gradient_addresses: Collection[int] = []
        self.complete = False  # every parameter has the gradient
        self.revision = 0  # of gradients
        self.bases: dict[str, list[Tensor]] = {}  # by slot, the allocations behind its tensors; see `sharpkern.library`
        self.moved = ctypes.c_bool(False)  # whether w + ε is written and w0 kept; set after an op, on the CPU within
        self.handle: Any = None  # what a backend caches of the other lists; None once one of them changes

    def rows_of(self, index: int) -> tuple[int, int]:
        """Run and pitch of one tensor."""
        return self.rows[index] if self.rows else (0, 0)

    def read_gradients(self) -> None:
        """Takes up the gradients as they stand.

        Raises:
            RuntimeError: One is sparse.
            Stale: A parameter was moved or resized, or a gradient has another dtype than before.
        """
        read = self._reader.read() if self._reader is not None else None
        if read is not None:
            self.gradients, self.gradient_addresses = read
            self.complete = True
        else:
            if list(map(located, self.params)) != self._located:
                raise Stale
            self.gradients = [self._read(i, p.grad) for i, p in enumerate(self.params)]
            self.gradient_addresses = [0 if g is None else g.data_ptr() or _EMPTY for g in self.gradients]
            self.complete = all(g is not None for g in self.gradients)
        self.revision += 1

    def _read(self, index: int, gradient: Tensor | None) -> Tensor | None:
        """One gradient in the dtype and the layout of its weight; a copy where it is not."""
        if gradient is None:
            return None
        weight = self.weights[index]
        if gradient.layout != torch.strided:
            msg = (
                f"the gradient of a parameter of shape {tuple(weight.shape)} is sparse ({gradient.layout}); sharpkern "
                "wants dense gradients: build the layer with sparse=False, or give it an optimizer of its own"
            )
            raise RuntimeError(msg)
        gradient = part_of(gradient, self.params[index])
        if gradient_dtype(self.params[index]) != self.gradient_dtype or gradient.shape != weight.shape:
            raise Stale
        if gradient.dtype == self.gradient_dtype and _layout(gradient) == _layout(weight):
            return gradient
        return torch.empty_like(weight, dtype=self.gradient_dtype).copy_(gradient.detach())

    def taken(self, gradient: Tensor) -> Tensor:
        """A gradient in the arithmetic's dtype as the ops take it."""
        return taken(gradient.to(self.state_dtype), self.take)

    def fit(self, state: Tensor, weight: Tensor) -> Tensor:
        """A state tensor in the state dtype and the layout of its weight; a copy where it is not; one size for both."""
        if state.shape != weight.shape:
            raise RuntimeError(
                f"a parameter has the size {tuple(weight.shape)} and its state {tuple(state.shape)}: it was resized; "
                "give the new parameter to a new optimizer"
            )
        if state.dtype == self.state_dtype and state.device == weight.device and _layout(state) == _layout(weight):
            return state
        return torch.empty_like(weight, dtype=self.state_dtype).copy_(state)

    def rescue(self) -> None:
        """Writes w0 into the parameters wherever they lie now."""
        for param, source, weight in zip(self.params, self.source, self.weights, strict=True):
            part = local(param)
            if source is not weight and part.shape == source.shape:
                part.copy_(source)

    def release(self) -> None:
        """Forgets the gradients, so that they are freed as soon as the user frees them."""
        self.gradients = []

    def allocate_saved(self) -> None:
        """Makes room for the copy w0."""
        if not self.saved:
            self.saved = empty_like(self.weights, self.dtype)
            self.handle = None

    def allocate_first(self) -> None:
        """Makes room for copies of the gradients, where there are gradients."""
        if not self._first:
            self._first = empty_like(self.weights, self.gradient_dtype)
        first: list[Tensor | None] = [
            None if g is None else x for x, g in zip(self._first, self.gradients, strict=True)
        ]
        if any(x is not y for x, y in zip(first, self.first, strict=True)):
            self.first, self.handle = first, None

    def set_source(self, everything: bool = False) -> None:
        """After the perturbation: w0 is the copy, but without `everything` the weight where it has no gradient."""
        if everything or self.complete or self.master:
            source = self.saved
        else:
            triples = zip(self.saved, self.weights, self.gradients, strict=True)
            source = [w0 if g is not None else w for w0, w, g in triples]
        if source is not self.source and any(x is not y for x, y in zip(source, self.source, strict=True)):
            self.source, self.handle = source, None

    def follow(self) -> None:
        """Where somebody else wrote the weights since, the masters become what was written."""
        versions = [p._version for p in self.written]
        if versions != self.versions:
            for weight, master in zip(self.weights, self.saved, strict=True):
                master.copy_(torch.where(master.to(weight.dtype) == weight, master, weight.to(master.dtype)))

    def note(self) -> None:
        """Remembers that the masters are those of the weights as they stand."""
        if self.master:
            self.versions = [p._version for p in self.written]

    def gather(self) -> None:
        """Takes weights with gaps into their stand-ins."""
        for param, weight in self._gaps:
            weight.copy_(param)

    def scatter(self) -> None:
        """Takes the stand-ins back into the weights with gaps."""
        for param, weight in self._gaps:
            param.copy_(weight)
