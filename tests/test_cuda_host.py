"""The CUDA kernels without a GPU: the same sources, compiled for the host, a fiber a thread (`cuda_host/`).

The whole contract of the ops runs on them, and what only launches have: alignment, tickets, several launches. Not shown
here: races between blocks that really run at once, the order in which memory becomes visible, speed, and whatever nvcc
and the GPU make of the sources (`test_nvcc.py` looks at registers and loads).
"""

from __future__ import annotations

import importlib.util
import itertools
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import cases
import pytest
import torch
from cases import (
    COVARIANCES,
    NATURAL,
    UPDATES,
    Lists,
    check_ascend,
    check_descend,
    check_sq_norm,
    exactly,
    scalar,
)
from compiled import CUDA, HOST, compiler, folder, run
from conftest import ON_CPU
from oracles import spacing
from test_evolution import (  # ruff: ignore[unused-import]  these run here too, with the backend below
    test_a_loss_that_is_not_finite_skips_the_step,
    test_a_resumed_run_is_the_same,
    test_in_place_estimates_alike,
    test_in_place_keeps_no_copy_and_drifts_by_rounding,
    test_learned_s_moves_as_stated,
    test_learned_s_narrows_where_the_loss_is_steep,
    test_passes_are_forward_alone_and_antithetic,
    test_the_estimate_is_the_same_on_every_backend,
    test_the_loss_falls,
    test_the_way_back_is_exact,
)
from test_family import (  # ruff: ignore[unused-import]
    Problem,
    test_a_mixture_is_the_sum_of_its_parts,
    test_a_resumed_run_draws_the_same_noise,
    test_adam_tracer_is_its_definition,
    test_backends_draw_the_same_noise,
    test_every_method_keeps_masters,
    test_every_method_lowers_the_loss,
    test_mfvi_descends_the_reparametrised_loss,
    test_mixtures_end_at_sam_and_random_sam,
    test_noise_has_the_length_rho_and_differs_everywhere,
    test_one_part_is_the_step,
    test_one_pass_gives_the_loss_where_it_was,
    test_s_stays_positive_and_finite,
    test_sgd_tracer_is_its_definition,
    test_the_difference_agrees_to_the_order_of_the_radius,
    test_the_first_step_is_the_simpler_method,
    test_the_prior_on_the_mean_is_weight_decay_that_is_not_decoupled,
    test_tracer_and_missing_gradients,
    test_tracer_does_not_see_the_scale_of_coordinates,
    test_tracer_without_penalty_is_the_base_optimizer,
    test_variational_sam_descends_its_own_loss,
    test_without_learning_it_stays_the_simpler_method,
    weights,
)
from test_ops import (  # ruff: ignore[unused-import]  these run here too, with the backend below
    test_a_gradient_that_is_not_finite_changes_nothing,
    test_an_empty_tensor_counts_its_updates,
    test_an_infinite_weight_stays_without_decay,
    test_ascend,
    test_descend,
    test_many_tensors_in_one_list,
    test_missing_gradients,
    test_no_update_where_the_first_sum_is_not_finite,
    test_only_the_way_back_where_the_second_sum_is_not_finite,
    test_sq_norm,
    test_the_copy_and_the_way_back_keep_every_bit,
    test_the_fisher_diagonal_stays_without_track,
    test_the_norm_is_repeatable,
    test_weights_keep_their_bits_at_scale_zero,
)
from torch import Tensor

import sharpkern
from sharpkern import TRACER, EvolutionStrategies, MixSAM, RandomSAM, VariationalSAM, ops
from sharpkern.base import SGD, Number, Update
from sharpkern.correction import Correction, Drawn, Estimated, Natural, Traced
from sharpkern.covariance import Adaptive, Covariance, Fisher, Identity, Learned, Tracer
from sharpkern.tensors import Tensors

FLAGS = (
    "-std=c++17 -O1 -fPIC -ffp-contract=off -fvisibility=hidden -U_FORTIFY_SOURCE"  # which dislikes a jump to a fiber
    f" -Wno-unknown-pragmas -I {HOST} -include cuda_runtime.h"
)
SIZES = (0, 1, 3, 4, 7, 8, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097)
NAME = "cuda on the host"
CPU = ops.load("native" if ON_CPU["native"].usable else "reference")
REFERENCE = ops.load("reference")


@pytest.fixture(scope="session")
def extension(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The CUDA half of the extension, on the host."""
    pybind11 = pytest.importorskip("pybind11")
    include = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    cxx = [compiler(), *FLAGS.split(), *include]
    built = folder(pytestconfig, tmp_path_factory, cxx)
    library = built / f"_cuda_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        sources = [*CUDA, HOST / "module.cpp"]
        objects = [str(built / f"{source.stem}.o") for source in sources]
        run(*([*cxx, "-x", "c++", "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)))
        run([cxx[0], "-shared", *objects, "-o", str(library)])
    spec = importlib.util.spec_from_file_location("_cuda_host", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Kernels:
    """The ops of the CUDA kernels on host memory."""

    def __init__(self, extension: ModuleType, partials: int = 8192) -> None:
        self.extension, self.launches, self.partials = extension, 0, partials

    def why_not(self, device: torch.device, dtypes: Collection[torch.dtype] = ()) -> str | None:
        """It runs on host memory."""
        return None if device.type == "cpu" else f"not on {device.type}"

    def table(self, t: Tensors) -> Any:
        """A table with all that is known of the list, and a workspace of its own."""
        names = [str(dtype).removeprefix("torch.") for dtype in (t.dtype, t.gradient_dtype)]
        table = self.extension.CudaTable([w.numel() for w in t.weights], *names, t.master, 0)
        rows: dict[str, Sequence[Tensor | None]] = {"weight": t.weights, "saved": t.saved, "source": t.source}
        rows |= {"first": t.first, "fisher": t.fisher, "m": t.m, "v": t.v}
        for row, tensors in rows.items():
            if tensors:
                table.set(row, [0 if x is None else x.data_ptr() for x in tensors])
        if t.gradient_addresses:
            table.set("gradient", list(t.gradient_addresses))
        table.set_steps(t.steps.data_ptr())
        if t.take is not None:
            table.set_take(t.take.data_ptr())
        if t.draw is not None:
            table.set_noise(t.draw.data_ptr(), t.seed, t.start, t.stochastic)
        if t.rows:
            table.set_runs(*zip(*t.rows, strict=True))
        if t.pairs is not None:
            table.set_pairs(t.pairs.data_ptr(), t.pairs.shape[1])
        self.workspace = torch.zeros(2 + self.partials, dtype=torch.float64)
        table.set_workspace(self.workspace.data_ptr(), self.workspace.nbytes)
        return table

    def _done(self, table: Any) -> None:
        self.launches += table.launches
        assert self.workspace[0].view(torch.int64) == 0, "the counter is not back at 0"

    def _number(self, x: Number) -> float | tuple[int, bool]:
        return (x.data_ptr(), x.dtype == torch.float64) if isinstance(x, Tensor) else x

    def sq_norm(self, t: Tensors, covariance: Covariance, total: Tensor, add: bool = False) -> None:
        """total ← Σ s g², or with `add` total + Σ s g²."""
        table = self.table(t)
        table.sq_norm(0, covariance.kernel, covariance.scalars, total.data_ptr(), add)
        self._done(table)

    def ascend_(
        self,
        t: Tensors,
        covariance: Covariance,
        rho: Number,
        total: Tensor | None,
        track: bool,
        worst: float = 1.0,
        noise: float = 0.0,
        again: int | None = None,
    ) -> None:
        """w0 ← w, w ← w + rho (worst s g / sqrt(total) + noise sqrt(s) η)."""
        table, formula = self.table(t), (covariance.kernel, covariance.scalars)
        address, number = 0 if total is None else total.data_ptr(), -1 if again is None else again
        table.ascend(0, *formula, self._number(rho), address, track, worst, noise, number)
        self._done(table)

    def descend_(
        self, t: Tensors, update: Update, correction: Correction | None, total: Tensor, second: Tensor | None
    ) -> None:
        """w ← update(w0, g)."""
        table, name = self.table(t), "" if correction is None else correction.kernel
        scalars = () if correction is None else [self._number(x) for x in correction.scalars]
        sums = total.data_ptr(), 0 if second is None else second.data_ptr()
        table.descend(0, update.kernel, [self._number(x) for x in update.options], name, scalars, *sums)
        self._done(table)

    def restore_(self, t: Tensors, total: Tensor) -> None:
        """w ← w0."""
        table = self.table(t)
        table.restore(0, total.data_ptr())
        self._done(table)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whole methods run once; the ops run with all tensors at 16-byte boundaries, and with none."""
    if "kernels" in metafunc.fixturenames:
        whole = metafunc.function.__module__ in {"test_family", "test_evolution"}
        metafunc.parametrize("kernels", ["aligned"] if whole else ["aligned", "misaligned"], indirect=True)


@pytest.fixture
def kernels(request: pytest.FixtureRequest, extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """The ops, with all tensors at 16-byte boundaries or none."""
    if request.param == "aligned":
        monkeypatch.setattr(cases, "OFFSETS", (0, 1))
    return Kernels(extension)


@pytest.fixture
def backend(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the tests of the contract run on: a backend of that name, besides the others."""
    load = ops.load
    monkeypatch.setattr(ops, "load", lambda name: kernels if name == NAME else load(name))
    return NAME


@pytest.fixture(autouse=True)
def one_thread(extension: ModuleType) -> Iterator[None]:
    """The wanted values are computed on one thread; threads of a block are shuffled, but the same way every time."""
    torch.set_num_threads(1)
    extension.shuffle(7)
    yield
    extension.shuffle(0)


def test_the_emulation_notices(extension: ModuleType) -> None:
    assert extension.faults() == ["threads wait at different barriers", "a misaligned vector is read"]


# The order of threads and blocks, the number of launches ----------------------------------------------------------


AVERAGE = COVARIANCES["additive-average"][0]
ADAMW = UPDATES["adamw"][0](**UPDATES["adamw"][2])


def whole_step(kernels: Kernels, case: Lists) -> list[Tensor]:
    """All three ops of a step; the sum, the steps, and every row of the list."""
    total = scalar(0.0)
    kernels.sq_norm(case.t, AVERAGE, total)
    kernels.ascend_(case.t, AVERAGE, 0.5, total, True)
    kernels.descend_(case.t, ADAMW, NATURAL["inverse"][0], total, total)
    assert case.changed() <= {"weight", "saved", "fisher", "m", "v", "steps"}
    return [total, case.t.steps, *(arena.flat() for arena in case.arenas.values())]


@pytest.mark.parametrize("dtypes", cases.DTYPES)
def test_every_order_of_threads_and_blocks_gives_the_same_bits(
    dtypes: str, kernels: Kernels, extension: ModuleType
) -> None:
    results = []
    for seed in (0, 1, 2, 3):
        extension.shuffle(seed)
        results.append(whole_step(kernels, Lists(dtypes, 40, (*SIZES, 65537))))
    for one, *others in zip(*results, strict=True):
        assert all(exactly(one, other) for other in others)


@pytest.mark.parametrize("times", [1, 10])
def test_a_step_is_three_launches(times: int, kernels: Kernels) -> None:
    whole_step(kernels, Lists("f32", 41, SIZES * times))
    assert kernels.launches == 3


def test_more_tensors_than_a_launch_takes(kernels: Kernels) -> None:
    """Each launch adds to the sum, and counts the steps of its own tensors."""
    sizes = [1 + i % 9 for i in range(1500)]  # one launch takes 1347 of two lists
    case, alone = Lists("bf16", 42, sizes), Lists("bf16", 42, sizes)
    kernels.launches = 0
    total, *_ = whole_step(kernels, case)
    assert kernels.launches == 2 + 2 + 3
    assert case.t.steps.tolist() == [step + 1 for step in case.steps]
    sums = scalar(0.0)
    for t, step in zip(alone.alone(), alone.steps, strict=True):
        t.steps.fill_(step)
        kernels.sq_norm(t, AVERAGE, sums, add=True)
        kernels.ascend_(t, AVERAGE, 0.5, total, True)
        kernels.descend_(t, ADAMW, NATURAL["inverse"][0], total, total)
    torch.testing.assert_close(total, sums, rtol=1e-12, atol=0.0)
    for row, arena in case.arenas.items():
        assert exactly(arena.flat(), alone.arenas[row].flat()), row


def test_a_block_sums_several_chunks_where_room_is_short(extension: ModuleType) -> None:
    for partials in (1, 2, 3, 7):
        check_sq_norm(Kernels(extension, partials), "inverse-average", "bf16-f32", (*SIZES, 65537))


def test_a_launch_takes_as_many_tensors_as_it_says(kernels: Kernels) -> None:
    for tensors, launches in ((2000, 1), (2040, 2)):
        kernels.launches = 0
        kernels.sq_norm(Lists("f32", 43, [1] * tensors).t, Identity(), scalar(0.0))
        assert kernels.launches == launches


# Dtypes, masters, stochastic rounding, scalars --------------------------------------------------------------------


@pytest.mark.parametrize("formula", ["adaptive", "additive-average"])
def test_float16_gradients_of_float32_weights(formula: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.DTYPES, "f32-f16", (torch.float32, torch.float16))
    check_sq_norm(kernels, formula, "f32-f16", SIZES)
    check_ascend(kernels, formula, "f32-f16", SIZES)
    for update in ("nesterov", "adam"):
        check_descend(kernels, update, "inverse", "f32-f16", SIZES)


def both(kernels: Kernels, other: ops.Ops | None = None) -> tuple[ops.Ops, ops.Ops]:
    """The kernels, and what they are compared with: those of the CPU, or another backend."""
    return kernels, other or CPU


def short(sizes: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Random tensors whose products with powers of 2 and sums are exact in float32."""
    return [(torch.randint(-127, 128, (n,)) / 64).to(dtype) for n in sizes]


def draws(t: Tensors) -> None:
    """Lets a list draw random numbers."""
    t.draw, t.seed = torch.tensor(41), 0x123456789ABCDEF
    t.start = [0, *itertools.accumulate(-(-w.numel() // 8) * 8 for w in t.weights[:-1])]


class Pair:
    """Two equal lists with masters, or with the draws of stochastic rounding: for the kernels and for the reference."""

    def __init__(self, weight: torch.dtype, gradient: torch.dtype, *, master: bool, draw: bool, offset: int) -> None:
        sizes = SIZES
        weights, gradients = short(sizes, torch.float32), short(sizes, gradient)
        rest = [torch.rand(n) * 2.0**-9 for n in sizes]
        self.lists = []
        for _ in range(2):
            params = []
            for w, g in zip(weights, gradients, strict=True):
                p = torch.nn.Parameter(torch.cat([torch.zeros(offset), w]).to(weight)[offset:])
                p.grad_dtype = gradient
                p.grad = g.clone()
                params.append(p)
            params[3].grad = None
            t = Tensors(params, 0, master)
            t.read_gradients()
            if master:
                t.saved = [(w.float() + r).contiguous() for w, r in zip(t.weights, rest, strict=True)]
            else:
                t.saved = [torch.zeros_like(w) for w in t.weights]
            t.set_source()
            t.m = [torch.zeros(n) for n in sizes]
            t.fisher = [torch.arange(n) % 2 * 2.0 + 1 for n in sizes]  # 1 and 3: 1/(1 + f) is exact
            if draw:
                draws(t)
                t.stochastic = True
            self.lists.append(t)

    def equal(self) -> None:
        """All that the ops write is equal bit for bit."""
        one, other = self.lists
        for x, y in zip(one.weights + one.saved + one.m, other.weights + other.saved + other.m, strict=True):
            assert x is not None
            assert y is not None
            assert exactly(x, y)
        assert torch.equal(one.steps, other.steps)
        assert one.draw == other.draw


@pytest.mark.parametrize("gradient", ["own", "float32"])
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("draw", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("master", [False, True], ids=["copy", "master"])
def test_masters_and_stochastic_rounding_are_the_references(
    master: bool, draw: bool, weight: torch.dtype, gradient: str, extension: ModuleType
) -> None:
    kernels = Kernels(extension)
    for offset in (0, 3):
        pair = Pair(weight, weight if gradient == "own" else torch.float32, master=master, draw=draw, offset=offset)
        sums = [scalar(0.0), scalar(0.0)]
        for backend, t, total in zip(both(kernels, REFERENCE), pair.lists, sums, strict=True):
            backend.sq_norm(t, Adaptive(0.25), total)
            for track in (True, False):
                backend.ascend_(t, Identity(), 2.0**-8, scalar(1.0), track)
        assert sums[0].item() == pytest.approx(sums[1].item(), rel=1e-6)
        pair.equal()
        assert not draw or pair.lists[0].draw == 42
        for backend, t in zip(both(kernels, REFERENCE), pair.lists, strict=True):
            for natural in (None, Natural(Fisher(1.0, "inverse", 1.0))):
                backend.descend_(t, SGD(2.0**-7, momentum=0.5), natural, scalar(1.0), None)
        pair.equal()
        for backend, t in zip(both(kernels, REFERENCE), pair.lists, strict=True):
            backend.ascend_(t, Identity(), 2.0**-8, scalar(1.0), False)
            backend.restore_(t, scalar(1.0))
        pair.equal()


def test_no_draw_is_counted_where_the_sum_is_not_finite(extension: ModuleType) -> None:
    t = Pair(torch.bfloat16, torch.bfloat16, master=False, draw=True, offset=0).lists[0]
    Kernels(extension).ascend_(t, Identity(), 0.5, scalar(float("nan")), True)
    assert t.draw == 41


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scalars_are_read_where_they_lie(dtype: torch.dtype, kernels: Kernels) -> None:
    number = torch.tensor(0.1, dtype=dtype)
    cases_ = []
    for x in (number, number.item()):
        case = Lists("f32", 44, SIZES)
        kernels.ascend_(case.t, Identity(), x, scalar(1.3), True)
        for update in (SGD(x, momentum=0.9), UPDATES["adamw"][0](**{**UPDATES["adamw"][2], "lr": x})):
            kernels.descend_(case.t, update, None, scalar(1.0), None)
        cases_.append(case)
    for row, arena in cases_[0].arenas.items():
        assert exactly(arena.flat(), cases_[1].arenas[row].flat()), row


# Noise, corrections, evolution strategies, against the CPU's kernels ------------------------------------------------

FAMILY: dict[str, Covariance] = {
    "identity": Identity(),
    "adaptive": Adaptive(0.01),
    "fisher": Fisher(10.0),
    "average": Fisher(0.5, "additive", 0.3),
    "learned": Learned(0.3, 0.2, 0.5),
    "learned-direct": Learned(0.01, 0.2, 0.5, log=False),
    "tracer": Tracer(0.3, 0.2),
    "tracer-adam": Tracer(0.3, adam=0.9),
}
CORRECTIONS: dict[str, tuple[Correction, Iterable[str]]] = {
    "drawn": (Drawn(Learned(0.3, 0.2, 0.5)), UPDATES),
    "drawn-direct": (Drawn(Learned(0.01, 0.2, 0.5, log=False)), ("momentum",)),
    "traced": (Traced(Tracer(0.3, 0.2), 0.1, 20.0, False), UPDATES),
    "traced-preconditioned": (Traced(Tracer(0.3, 0.2), 0.1, 20.0, True), ("sgd", "nesterov", "adam")),
    "traced-exact": (Traced(Tracer(0.3, 0.2), 0.1, 0.0, True), ("momentum",)),
    "traced-adam": (Traced(Tracer(0.3, adam=0.9), 0.1, 20.0, True), ("adam", "adam-decay", "adamw")),
}
MAIN = ("f32", "bf16", "f64", "f16", "bf16-f32", "f32-bf16")
main = pytest.mark.parametrize("dtypes", MAIN)


def twice(dtypes: str, seed: int, sizes: Sequence[int] = SIZES, perturbed: bool = False) -> list[Lists]:
    """Two equal lists that draw and keep first gradients, for the kernels and the CPU's; one gradient is missing."""
    cases_ = []
    for _ in range(2):
        case = Lists(dtypes, seed, sizes, perturbed, missing=(6,))
        draws(case.t)
        case.t.first = [None if g is None or i == 9 else torch.zeros_like(g) for i, g in enumerate(case.t.gradients)]
        cases_.append(case)
    return cases_


def close(one: Lists, other: Lists) -> None:
    """Everything is equal, but for what normal numbers of float32 and narrow weights are rounded by."""
    assert exactly(one.t.steps, other.t.steps)
    assert one.t.draw == other.t.draw
    firsts = [(x, y) for x, y in zip(one.t.first, other.t.first, strict=True) if x is not None and y is not None]
    assert all(exactly(x, y) for x, y in firsts)
    assert one.changed() == other.changed()
    for row, arena in one.arenas.items():
        got, wanted = arena.flat().double(), other.arenas[row].flat().double()
        assert torch.equal(got.isnan(), wanted.isnan()), row
        got, wanted = got.nan_to_num(), wanted.nan_to_num()
        allowed = 2e-6 * wanted.abs().max() + 1e-5 * wanted.abs()
        if arena.buffer.dtype.itemsize == 2 and row == "weight":
            allowed = allowed + spacing(torch.maximum(got.abs(), wanted.abs()), arena.buffer.dtype)
        wrong = (got - wanted).abs() > allowed
        assert not wrong.any(), (row, wrong.nonzero()[:5], got[wrong][:5], wanted[wrong][:5])


@main
@pytest.mark.parametrize("covariance", ["learned", "tracer", "tracer-adam"])
def test_the_norms_of_the_family(covariance: str, dtypes: str, kernels: Kernels) -> None:
    sums = [scalar(3.0), scalar(3.0)]
    for backend, case, total in zip(both(kernels), twice(dtypes, 50, (*SIZES, 9000)), sums, strict=True):
        backend.sq_norm(case.t, FAMILY[covariance], total, add=True)
        assert not case.changed()
    assert sums[0].item() == pytest.approx(sums[1].item(), rel=3e-6)


def test_a_norm_over_several_chunks_knows_each_tensors_updates(extension: ModuleType) -> None:
    one, other = twice("f32", 51, (*SIZES, 9000))
    sums = [scalar(0.0), scalar(0.0)]
    Kernels(extension, 2).sq_norm(one.t, FAMILY["tracer-adam"], sums[0])
    CPU.sq_norm(other.t, FAMILY["tracer-adam"], sums[1])
    assert sums[0].item() == pytest.approx(sums[1].item(), rel=3e-6)


@main
@pytest.mark.parametrize("total", [1.7, 0.0])
@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.6, 0.8), (0.0, 0.8)], ids=["worst", "mixed", "gaussian"])
@pytest.mark.parametrize("covariance", FAMILY)
def test_the_perturbations_of_the_family(
    covariance: str, shares: tuple[float, float], total: float, dtypes: str, kernels: Kernels
) -> None:
    one, other = twice(dtypes, 52)
    for backend, case in zip(both(kernels), (one, other), strict=True):
        sums = scalar(total) if shares[0] else None
        backend.ascend_(case.t, FAMILY[covariance], 0.7, sums, total > 0, *shares)
    close(one, other)
    assert one.t.draw == (42 if total else 41)
    assert shares == (0.0, 0.8) or all(
        exactly(x, g) for x, g in zip(one.t.first, one.t.gradients, strict=True) if x is not None and g is not None
    )


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 0.8)], ids=["worst", "gaussian"])
@pytest.mark.parametrize("place", ["copy", "in place"])
@main
def test_again(dtypes: str, place: str, shares: tuple[float, float], kernels: Kernels) -> None:
    """Another draw from where the weights stood, without a copy, or on top of what they are."""
    pair = twice(dtypes, 53)
    for backend, case in zip(both(kernels), pair, strict=True):
        t, total = case.t, scalar(1.7) if shares[0] else None
        if place == "copy":
            backend.ascend_(t, FAMILY["learned"], 0.3, None, False, 0.0, 1.0)
            t.set_source(everything=True)
        else:
            t.saved, t.source, t.handle = [], t.weights, None
        for number in (0, 3):
            backend.ascend_(t, FAMILY["learned"], 0.7, total, False, *shares, number)
    close(*pair)
    assert pair[0].t.draw == 41


@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("worst", [0.0, 0.6])
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("master", [False, True], ids=["copy", "master"])
def test_noise_with_masters_and_stochastic_rounding(
    master: bool, weight: torch.dtype, worst: float, stochastic: bool, extension: ModuleType
) -> None:
    for offset in (0, 3):
        pair = Pair(weight, weight, master=master, draw=True, offset=offset)
        for backend, t in zip(both(Kernels(extension)), pair.lists, strict=True):
            t.stochastic = stochastic
            backend.ascend_(t, Learned(0.1), 0.5, scalar(1.0) if worst else None, True, worst, 0.8)
            t.set_source(everything=True)
        one, other = pair.lists
        for x, y in zip(one.weights, other.weights, strict=True):
            ulp = spacing(torch.maximum(x.double().abs(), y.double().abs()), weight)
            assert ((x.double() - y.double()).abs() <= ulp).all()
            assert (x == y).double().mean() > 0.9 or x.numel() < 100
        if not worst:
            for backend, t in zip(both(Kernels(extension)), pair.lists, strict=True):
                backend.descend_(t, SGD(0.1, momentum=0.5), Drawn(Learned(0.1)), scalar(1.0), None)
            exact = [t.saved if master else t.weights for t in pair.lists]
            torch.testing.assert_close(*exact, rtol=1e-6 if master else 1e-2, atol=1e-6)
            # epsilon may differ by a unit of the weight
            torch.testing.assert_close(one.fisher, other.fisher, rtol=1e-2, atol=0.0)


@main
@pytest.mark.parametrize(
    ("correction", "update"), [(name, update) for name, (_, updates) in CORRECTIONS.items() for update in updates]
)
def test_the_corrections_of_the_family(correction: str, update: str, dtypes: str, kernels: Kernels) -> None:
    core, (make, _, options) = CORRECTIONS[correction][0], UPDATES[update]
    pair = twice(dtypes, 54)
    for backend, case in zip(both(kernels), pair, strict=True):
        t = case.t
        CPU.ascend_(t, Identity(), 0.7, scalar(1.7), True, 0.6, 0.8)  # the copy, first gradients
        t.set_source()
        for g in case.arenas["gradient"].views:
            g.mul_(1.25)
        if correction == "traced-adam":
            t.fisher, t.handle = t.v, None  # the same memory, which is the second moment
        backend.descend_(t, make(**options), core, scalar(1.7), scalar(1.0))
    close(*pair)


@main
@pytest.mark.parametrize("update", ["sgd", "momentum", "nesterov", "adam"])
def test_evolution_strategies_estimate(update: str, dtypes: str, kernels: Kernels) -> None:
    """Of a tensor without gradient too, and of one whose s is not learned."""
    make, _, options = UPDATES[update]
    pair = twice(dtypes, 55, perturbed=True)
    pairs = torch.randn(2, 5)
    for backend, case in zip(both(kernels), pair, strict=True):
        t = case.t
        for f in case.arenas["fisher"].views:
            f.add_(0.5)
        t.fisher[8], t.pairs = None, pairs
        t.set_source(everything=True)
        softly = {"eps": 0.1} if update == "adam" else {}  # the sign of an estimate near 0 is anyone's
        backend.descend_(t, make(**{**options, **softly}), Estimated(0.7, 0.5, 0.3), scalar(1.0), scalar(2.0))
    close(*pair)
    assert pair[0].t.draw == 46
    assert pair[0].t.steps.tolist() == [step + 1 for step in pair[0].steps]


@pytest.mark.parametrize("sums", [(float("nan"), 1.0), (1.0, float("inf"))], ids=["first", "second"])
def test_nothing_is_learned_where_a_sum_is_not_finite(sums: tuple[float, float], kernels: Kernels) -> None:
    total, second = map(scalar, sums)
    for correction in (Estimated(0.7, 0.5, 0.3), CORRECTIONS["drawn"][0], CORRECTIONS["traced"][0]):
        case = twice("f32", 56, perturbed=True)[0]
        case.t.pairs = torch.randn(2, 3)
        case.t.set_source(everything=True)
        kernels.descend_(case.t, ADAMW, correction, total, second)
        assert case.changed() == ({"weight"} if total.isfinite() else set())
        assert not total.isfinite() or exactly(case.arenas["weight"].flat(), case.before["saved"])
        assert case.t.draw == 41
    case = twice("f32", 56)[0]
    kernels.ascend_(case.t, FAMILY["learned"], 0.7, scalar(float("nan")), True, 0.5, 0.5)
    assert not case.changed()
    assert case.t.draw == 41


@pytest.mark.parametrize("rows", [(0, 0), (3, 10), (8, 24), (1000, 1003), (5000, 5001)], ids=str)
@pytest.mark.parametrize("start", [0, 3, 16])
@main
def test_shards_draw_what_the_whole_draws(start: int, rows: tuple[int, int], dtypes: str, kernels: Kernels) -> None:
    """Not from a multiple of 8 on, or in runs; one tensor is no shard."""
    pair, pairs = twice(dtypes, 59), torch.randn(2, 2)
    for backend, case in zip(both(kernels), pair, strict=True):
        t = case.t
        t.start = [x + start for x in t.start]
        t.rows = [(0, 0) if i == 12 else rows for i in range(len(t.params))]
        t.stochastic = t.dtype.itemsize == 2
        backend.ascend_(t, Identity(), 0.7, None, True, 0.0, 0.8)
        backend.ascend_(t, FAMILY["learned"], 0.7, scalar(1.7), True, 0.5, 0.5)
        t.pairs = pairs
        t.set_source(everything=True)
        backend.descend_(t, SGD(0.1, momentum=0.9), Estimated(0.7, 0.5, 0.3), scalar(1.0), None)
    close(*pair)


def test_noise_for_more_tensors_than_a_launch_takes(kernels: Kernels) -> None:
    """Every launch finds the indices of its own tensors; the draws are counted once."""
    sizes = [1 + i % 9 for i in range(1500)]
    pair, pairs = twice("f32", 57, sizes), torch.randn(2, 2)
    for backend, case in zip(both(kernels), pair, strict=True):
        backend.ascend_(case.t, Identity(), 0.7, None, True, 0.0, 0.8)
        backend.ascend_(case.t, FAMILY["learned"], 0.7, scalar(1.7), True, 0.5, 0.5)
    close(*pair)
    assert kernels.launches == 2 + 3
    for backend, case in zip(both(kernels), pair, strict=True):
        case.t.pairs = pairs
        case.t.set_source(everything=True)
        backend.descend_(case.t, SGD(0.1, momentum=0.9), Estimated(0.7, 0.5, 0.3), scalar(1.0), None)
    close(*pair)
    assert kernels.launches == 2 + 3 + 3
    assert pair[0].t.draw == 45


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rho_of_a_correction_is_read_where_it_lies(dtype: torch.dtype, kernels: Kernels) -> None:
    number, pairs = torch.tensor(0.1, dtype=dtype), torch.randn(2, 3)
    makers: list[Callable[[Number], Correction]] = [
        lambda x: Traced(Tracer(0.3, 0.2), x, 20.0, False),
        lambda x: Estimated(x, 0.5, 0.3),
    ]
    for make in makers:
        one, other = twice("f32", 58, perturbed=True)
        for case, x in ((one, number), (other, number.item())):
            case.t.pairs = pairs
            case.t.set_source(everything=True)
            kernels.descend_(case.t, SGD(0.1), make(x), scalar(1.7), None)
            kernels.ascend_(case.t, Identity(), x, None, True, 0.0, 0.8)
        for row, arena in one.arenas.items():
            assert exactly(arena.flat(), other.arenas[row].flat()), row


# Whole methods -----------------------------------------------------------------------------------------------------


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "random": (RandomSAM, {}),
    "mixed": (MixSAM, {"covariance": Adaptive(0.1)}),
    "variational": (VariationalSAM, {"kl_weight": 0.1}),
    "variational-direct": (VariationalSAM, {"parametrization": "direct"}),
    "mfvi": (sharpkern.MFVI, {"kl_weight": 0.1, "lr_covariance": 0.3}),
    "tracer": (TRACER, {"delta": 0.5}),
    "tracer-preconditioned": (TRACER, {"delta": 0.5, "precondition": True}),
    "evolution": (EvolutionStrategies, {"pairs": 3}),
    "evolution-learned": (EvolutionStrategies, {"pairs": 3, "learned": True}),
    "evolution-in-place": (EvolutionStrategies, {"pairs": 3, "in_place": True}),
}


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda b: b.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_that_of_the_reference(method: str, dtype: torch.dtype, base: Any, extension: ModuleType) -> None:
    make, options = METHODS[method]
    options = {"rho": 0.3, "lr": 0.02, **({"momentum": 0.9} if base is torch.optim.SGD else {"eps": 0.01}), **options}
    results = []
    for backend in both(Kernels(extension), REFERENCE):
        problem = Problem(dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "load", {"native": backend}.__getitem__)
            optimizer = make(problem.params, base, backend="native", **options)
            for _ in range(3):
                optimizer.step(problem.loss if make is EvolutionStrategies else problem.closure(optimizer))
        results.append(weights(problem))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    assert not exactly(results[0], weights(Problem(dtype)))


def test_launches_of_a_step(kernels: Kernels, backend: str) -> None:
    for method, launches in (("random", 2), ("mfvi", 2), ("mixed", 3), ("tracer", 3), ("evolution-learned", 7)):
        make, options = METHODS[method]
        problem = Problem(torch.float32)
        optimizer = make(problem.params, backend=backend, lr=0.1, **options)
        for _ in range(2):
            kernels.launches = 0
            optimizer.step(problem.loss if make is EvolutionStrategies else problem.closure(optimizer))
            assert kernels.launches == launches, method


# What is refused --------------------------------------------------------------------------------------------------


def test_what_a_table_refuses(extension: ModuleType) -> None:
    def table(weight: str = "float32", gradient: str = "float32", workspace: bool = True) -> Any:
        made = extension.CudaTable([3], weight, gradient, False, 0)
        if workspace:
            made.set_workspace(memory.data_ptr(), memory.nbytes)
        return made

    memory, total = torch.zeros(10, dtype=torch.float64), scalar(1.0).data_ptr()
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: table("bfloat16", "float16").sq_norm(0, "adaptive", (0.0,), total, False), "bfloat16 and float16"),
        (lambda: table().sq_norm(0, "no such", (), total, False), "no formula no such"),
        (lambda: table().ascend(0, "identity", [0.0] * 7, 0.1, total, False, 1.0, 0.0, -1), "more scalars"),
        (lambda: table().ascend(0, "identity", (), 0.1, total, False, 0.5, 0.5, -1), "want set_noise before"),
        (lambda: table().ascend(0, "identity", (), 0.1, 0, False, 0.0, 1.0, -1), "want set_noise before"),
        (lambda: table().descend(0, "sgd", [0.0] * 5, "estimated", (), total, 0), "want set_pairs and set_noise"),
        (lambda: table().descend(0, "sgd", [0.0] * 5, "no such", (), total, 0), "no formula no such"),
        (lambda: table(workspace=False).restore(0, total), "set_workspace comes first"),
        (lambda: table().set_workspace(memory.data_ptr(), 16), "more bytes"),
        (lambda: table().set_workspace(memory.data_ptr() + 8, 64), "multiple of 16"),
        (lambda: table("int8"), "no kernel for dtype int8"),
        (lambda: extension.CudaTable([], "float32", "float32", False, 0), "at least one tensor"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_architectures_are_named(extension: ModuleType) -> None:
    assert extension.cuda_architectures() == ["80", "90", "100"]
    assert extension.CudaTable.workspace_bytes == 16 + 8 * 8192


@pytest.mark.skipif(not ON_CPU["native"].usable, reason=str(ON_CPU["native"].why_not))
@pytest.mark.parametrize(
    ("compiled", "capability", "reason"),
    [
        ([], (9, 0), "SHARPKERN_CUDA=1"),
        (["80", "90", "100"], None, "finds no NVIDIA GPU"),
        (["80", "90", "100"], (7, 5), "compiled for sm_80, sm_90, sm_100, this GPU is sm_75"),
        (["90"], (8, 9), "compiled for sm_90, this GPU is sm_89"),
        (["80", "90", "100"], (8, 9), None),
        (["80", "90", "100"], (9, 0), None),
        (["80", "90"], (12, 0), None),
    ],
)
def test_why_the_extension_cannot_run_on_a_gpu(
    compiled: list[str], capability: tuple[int, int] | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharpkern.backend.native import _kernels, why_not

    monkeypatch.setattr(_kernels, "cuda_architectures", lambda: compiled)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = why_not(torch.device("cuda"))
    assert said is None if reason is None else reason in str(said)
