"""The contract of the ops: every backend, formula, dtype and size against float64, and what must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import oracles
import pytest
import torch
from cases import (
    COVARIANCES,
    DTYPES,
    MANY,
    NATURAL,
    UPDATES,
    Lists,
    check_ascend,
    check_descend,
    check_sq_norm,
    exactly,
    scalar,
)
from torch import Tensor

from sharpkern import ops
from sharpkern.base import SGD, Adam, Update
from sharpkern.correction import Natural
from sharpkern.covariance import Covariance, Fisher
from sharpkern.tensors import Tensors

SMALL = (0, 1, 3, 8, 17, 257, 2049, 4097)
NONFINITE = (float("nan"), float("inf"), float("-inf"))
MOMENTUM = SGD(0.1, momentum=0.9)
ADAM = Adam(0.01, (0.9, 0.999), 1e-8, 0.01, decoupled=True, maximize=False)

dtypes = pytest.mark.parametrize("dtypes", DTYPES)
covariances = pytest.mark.parametrize("covariance", COVARIANCES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Formulas are checked on one thread; that more give the same bits is a test of its own."""
    torch.set_num_threads(1)


# Every formula, dtype and size ------------------------------------------------------------------------------------


@dtypes
@covariances
def test_sq_norm(covariance: str, dtypes: str, backend: str) -> None:
    check_sq_norm(ops.load(backend), covariance, dtypes)


@dtypes
@covariances
def test_ascend(covariance: str, dtypes: str, backend: str) -> None:
    check_ascend(ops.load(backend), covariance, dtypes)


@dtypes
@pytest.mark.parametrize("natural", NATURAL)
@pytest.mark.parametrize("update", UPDATES)
def test_descend(update: str, natural: str, dtypes: str, backend: str) -> None:
    check_descend(ops.load(backend), update, natural, dtypes)


@dtypes
def test_gradients_are_unscaled_and_clipped(dtypes: str, backend: str) -> None:
    take = (0.37, 0.1)
    for covariance in ("identity", "adaptive", "inverse-average"):
        check_sq_norm(ops.load(backend), covariance, dtypes, take=take)
        check_ascend(ops.load(backend), covariance, dtypes, take=take)
    for update, natural in (("sgd", "plain"), ("adamw", "inverse"), ("nesterov", "additive")):
        check_descend(ops.load(backend), update, natural, dtypes, take=take)


@dtypes
@pytest.mark.parametrize("wrong", NONFINITE)
def test_what_is_not_finite_stays_so_when_clipped(wrong: float, dtypes: str, backend: str) -> None:
    for tensor, place in ((1, 0), (4, 16), (6, 2048), (7, 1000)):
        case, total = Lists(dtypes, 9, SMALL, perturbed=True, take=(0.5, 1.0)), scalar(0.0)
        case.arenas["gradient"].views[tensor][place] = wrong
        ops.load(backend).sq_norm(case.t, COVARIANCES["identity"][0], total)
        assert not total.isfinite()
        ops.load(backend).descend_(case.t, SGD(0.1), None, scalar(1.0), None)
        views = case.arenas["weight"].views
        finite = [bool(view.isfinite().all()) for view in views]
        assert finite == [i != tensor for i in range(len(views))]
        assert int(views[tensor].isfinite().logical_not().sum()) == 1


@dtypes
def test_the_copy_and_the_way_back_keep_every_bit(dtypes: str, backend: str) -> None:
    case, more = Lists(dtypes, 4), Lists(dtypes, 5)
    for arena in (case.arenas["weight"], more.arenas["saved"]):
        for view in arena.views:
            view.copy_(torch.randint(256, (view.nbytes,), dtype=torch.uint8).view(view.dtype))
    wanted = case.arenas["weight"].flat(), more.arenas["saved"].flat()
    ops.load(backend).ascend_(case.t, COVARIANCES["identity"][0], 0.5, scalar(1.0), True)
    assert exactly(case.arenas["saved"].flat(), wanted[0])
    ops.load(backend).restore_(more.t, scalar(1.0))
    assert exactly(more.arenas["weight"].flat(), wanted[1])
    assert case.changed() == {"weight", "saved"}
    assert more.changed() == {"weight", "saved"}  # the copy was changed here


def test_many_tensors_in_one_list(backend: str) -> None:
    sizes = [1 + 7 * i % 41 for i in range(MANY)]
    check_sq_norm(ops.load(backend), "inverse-average", "f32", sizes)
    check_ascend(ops.load(backend), "inverse-average", "bf16", sizes)
    check_descend(ops.load(backend), "adam", "inverse", "f32", sizes)


def test_an_empty_tensor_counts_its_updates(backend: str) -> None:
    case = Lists("f32", 6, (0, 5, 0), perturbed=True)
    ops.load(backend).descend_(case.t, ADAM, None, scalar(1.0), None)
    assert case.t.steps.tolist() == [1, 4, 1]  # as torch counts them


# Nothing happens --------------------------------------------------------------------------------------------------


def descend(backend: str, case: Lists, update: Update, total: float, second: float | None = None) -> None:
    """The update, given these sums."""
    ops.load(backend).descend_(case.t, update, None, scalar(total), None if second is None else scalar(second))


@dtypes
@covariances
def test_a_gradient_that_is_not_finite_changes_nothing(covariance: str, dtypes: str, backend: str) -> None:
    chosen, core = ops.load(backend), COVARIANCES[covariance][0]
    places = [(i, place) for i, n in enumerate(SMALL) for place in {0, n // 2, n - 1} if n]
    for number, (tensor, place) in enumerate(places):
        case, total = Lists(dtypes, number, SMALL), scalar(0.0)
        case.arenas["gradient"].views[tensor][place] = NONFINITE[number % 3]
        case.before["gradient"] = case.arenas["gradient"].flat()
        chosen.sq_norm(case.t, core, total)
        assert not total.isfinite()
        chosen.ascend_(case.t, core, 0.5, total, True)
        assert case.changed() <= {"saved"}
        chosen.descend_(case.t, ADAM, None, total, None)
        chosen.restore_(case.t, total)
        assert case.changed() <= {"saved"}


@pytest.mark.parametrize("total", NONFINITE)
@pytest.mark.parametrize("update", [SGD(0.1), MOMENTUM, ADAM], ids=lambda update: update.kernel)
def test_no_update_where_the_first_sum_is_not_finite(update: Update, total: float, backend: str) -> None:
    case = Lists("f32", 7, SMALL, perturbed=True)
    descend(backend, case, update, total)
    descend(backend, case, update, total, float("nan"))
    assert not case.changed()


@dtypes
@pytest.mark.parametrize("second", NONFINITE)
def test_only_the_way_back_where_the_second_sum_is_not_finite(second: float, dtypes: str, backend: str) -> None:
    case = Lists(dtypes, 8, SMALL, perturbed=True)
    descend(backend, case, ADAM, 1.0, second)
    assert exactly(case.arenas["weight"].flat(), case.before["saved"])
    assert case.changed() == {"weight"}
    descend(backend, case, ADAM, 1.0, 1.0)
    assert case.changed() == {"weight", "m", "v", "steps"}


@dtypes
@covariances
@pytest.mark.parametrize(("rho", "total"), [(0.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_weights_keep_their_bits_at_scale_zero(
    rho: float, total: float, covariance: str, dtypes: str, backend: str
) -> None:
    case, (core, _) = Lists(dtypes, 9, SMALL), COVARIANCES[covariance]
    case.arenas["weight"].views[-1].fill_(-0.0)
    case.before["weight"] = case.arenas["weight"].flat()
    ops.load(backend).ascend_(case.t, core, rho, scalar(total), True)
    assert exactly(case.arenas["saved"].flat(), case.before["weight"])
    moved = {"fisher"} if core.state and core.scalars[-1] else set()  # with beta = 0 it was given
    assert case.changed() == {"saved"} | moved


@dtypes
@covariances
def test_the_fisher_diagonal_stays_without_track(covariance: str, dtypes: str, backend: str) -> None:
    still, moving = Lists(dtypes, 10, SMALL), Lists(dtypes, 10, SMALL)
    for case, track in ((still, False), (moving, True)):
        ops.load(backend).ascend_(case.t, COVARIANCES[covariance][0], 0.5, scalar(1.7), track)
    assert still.changed() == {"weight", "saved"}
    assert exactly(still.arenas["weight"].flat(), moving.arenas["weight"].flat())


# Missing gradients, strides ---------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("update", [MOMENTUM, ADAM], ids=lambda update: update.kernel)
def test_missing_gradients(update: Update, dtypes: str, backend: str) -> None:
    """Tensors with a gradient in both passes, in the second only, in the first only, in none."""
    chosen, core, sizes = ops.load(backend), COVARIANCES["inverse-average"][0], (257, 257, 17, 17)
    case = Lists(dtypes, 11, sizes, missing=(1, 3))
    full = Lists(dtypes, 11, sizes)
    total, sums = scalar(0.0), [scalar(0.0), scalar(0.0)]
    chosen.sq_norm(case.t, core, total)
    for i, t in enumerate(full.alone()):
        if i in {0, 2}:
            chosen.sq_norm(t, core, sums[i // 2])
    assert total == sum(sums)

    chosen.ascend_(case.t, core, 0.5, total, True)
    for i in range(4):
        for row in ("weight", "saved", "fisher"):
            now, before = case.arenas[row].views[i], full.arenas[row].views[i]
            assert exactly(now, before) == (i in {1, 3}), f"{row} {i}"

    case.t.params[1].grad = case.arenas["gradient"].views[1]
    case.t.params[2].grad = None
    case.t.read_gradients()
    chosen.descend_(case.t, update, None, scalar(1.0), None)
    after_all = Lists(dtypes, 11, sizes, perturbed=True)
    for to, start in zip(after_all.arenas["saved"].views, full.arenas["weight"].views, strict=True):
        to.copy_(start)
    chosen.descend_(after_all.t, update, None, scalar(1.0), None)
    for i in range(4):
        for row in ("weight", "m", "v"):
            wanted = after_all if i in {0, 1} else full
            assert exactly(case.arenas[row].views[i], wanted.arenas[row].views[i]), f"{row} {i}"
    assert case.t.steps.tolist() == [1, 4, 0, 3]


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "channels_last weights": (lambda x: x.to(memory_format=torch.channels_last), lambda x: x.contiguous()),
    "channels_last gradients": (lambda x: x.contiguous(), lambda x: x.to(memory_format=torch.channels_last)),
    "both channels_last": (lambda x: x.to(memory_format=torch.channels_last),) * 2,
    "transposed weights": (lambda x: x.transpose(0, 3).contiguous().transpose(0, 3), lambda x: x.contiguous()),
    "permuted otherwise": (
        lambda x: x.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1),
        lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    ),
    "gradient with gaps": (lambda x: x.contiguous(), lambda x: x.repeat_interleave(2, -1)[..., ::2]),
    "expanded gradient": (lambda x: x.contiguous(), lambda x: x[:1, :1].expand(x.shape)),
}


@dtypes
@pytest.mark.parametrize("shape", [(5, 3, 7, 4), (1, 6, 1, 1), (4, 1, 3, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout: str, shape: tuple[int, ...], dtypes: str, backend: str) -> None:
    of_weight, of_gradient = LAYOUTS[layout]
    weight, gradient = DTYPES[dtypes]
    w, g = (torch.randn(shape).to(oracles.DEVICE, dtype) for dtype in (weight, gradient))
    g = of_gradient(g)
    results = []
    for place, gradient_ in ((of_weight, g), (torch.clone, g.contiguous())):
        p = torch.nn.Parameter(place(w).clone())
        p.grad_dtype = gradient
        p.grad = gradient_
        results.append(step(ops.load(backend), [p], COVARIANCES["inverse-average"][0]))
        assert p.stride() == place(w).stride()
    for x, y in zip(*results, strict=True):
        assert exactly(x, y)


def test_dimensions_of_size_one_are_no_reason_to_copy(backend: str) -> None:
    p = torch.nn.Parameter(torch.empty_strided((4, 1, 3), (3, 77, 1)).normal_())
    p.grad = torch.randn(4, 1, 3)
    t = Tensors([p], 0)
    t.read_gradients()
    assert t.weights[0].data_ptr() == p.data_ptr()
    assert t.gradients[0] is not None
    assert t.gradients[0].data_ptr() == p.grad.data_ptr()


def step(backend: ops.Ops, params: Sequence[torch.nn.Parameter], covariance: Covariance) -> list[Tensor]:
    """A whole step of ops on zero state: the perturbed weights, the new ones, all state."""
    t = Tensors(params, 0)
    t.read_gradients()
    t.allocate_saved()
    t.set_source()
    t.fisher, t.m, t.v = ([torch.zeros_like(w, dtype=t.state_dtype) for w in t.weights] for _ in range(3))
    total = scalar(0.0)
    backend.sq_norm(t, covariance, total)
    assert total > 0
    total.fill_(1.0)
    backend.ascend_(t, covariance, 0.5, total, True)
    perturbed = [w.clone() for w in t.weights]
    assert isinstance(covariance, Fisher)
    backend.descend_(t, ADAM, Natural(covariance), total, None)
    state = [x for row in (t.fisher, t.m, t.v) for x in row if x is not None]
    return [*perturbed, *(w.clone() for w in t.weights), *state]


# Like torch, and like itself --------------------------------------------------------------------------------------


@dtypes
@covariances
def test_the_norm_is_repeatable(covariance: str, dtypes: str, backend: str) -> None:
    case, first, again = Lists(dtypes, 12, SMALL), scalar(0.0), scalar(0.0)
    for total in (first, again):
        ops.load(backend).sq_norm(case.t, COVARIANCES[covariance][0], total)
    assert exactly(first, again)


@dtypes
@pytest.mark.parametrize("update", [MOMENTUM, ADAM], ids=lambda update: update.kernel)
def test_a_step_has_the_same_bits_on_any_number_of_threads(update: Update, dtypes: str, backend: str) -> None:
    results, covariance = [], COVARIANCES["additive-average"][0]
    for threads in (1, 2, 3):
        case = Lists(dtypes, 13, (0, 17, 2049, 65537))
        torch.set_num_threads(threads)
        ops.load(backend).ascend_(case.t, covariance, 0.5, scalar(1.9), True)
        descend(backend, case, update, 1.9)
        torch.set_num_threads(1)
        results.append([arena.flat() for arena in case.arenas.values()])
        assert case.changed() <= {"weight", "saved", "fisher", "m", "v", "steps"}
    for one, *others in zip(*results, strict=True):
        assert all(exactly(one, other) for other in others)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam], ids=lambda base: base.__name__)
def test_an_infinite_weight_stays_without_decay(base: type[torch.optim.Optimizer], backend: str) -> None:
    """torch adds no weight decay of 0, so masks of -inf among the parameters survive."""
    wanted = torch.nn.Parameter(torch.tensor([float("-inf"), 1.0, float("inf")]))
    wanted.grad = torch.tensor([0.0, 1.0, 0.5])
    case = Lists("f32", 14, (3,), perturbed=True)
    case.arenas["saved"].views[0].copy_(wanted.detach())
    case.arenas["gradient"].views[0].copy_(wanted.grad)
    case.arenas["m"].views[0].zero_()
    case.arenas["v"].views[0].zero_()
    update = SGD(0.1) if base is torch.optim.SGD else Adam(0.1, (0.9, 0.999), 1e-8, 0.0, False, False)
    descend(backend, case, update, 1.0)
    base([wanted], lr=0.1).step()
    torch.testing.assert_close(case.arenas["weight"].flat(), wanted.detach())
