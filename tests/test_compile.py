"""Compiled steps are the eager ones, bit for bit, in one graph that is compiled once."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import sharpkern
from sharpkern import compiled, library
from sharpkern.library import OPS, optimizers

# torch warns of itself: when its compilers are first imported, and of a loss after the graph break at its backward
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
METHODS: dict[str, tuple[type[sharpkern.SharpnessAware], dict[str, Any]]] = {
    "SAM": (sharpkern.SAM, {}),
    "SAM-plain": (sharpkern.SAM, {"momentum": 0.0}),
    "SAM-AdamW": (sharpkern.SAM, {"base_optimizer": ADAMW}),
    "ASAM": (sharpkern.ASAM, {"weight_decay": 0.01}),
    "SAM-clip": (sharpkern.SAM, {"max_norm": 0.1, "clip_value": 0.05}),
    "MFVI-clip": (sharpkern.MFVI, {"max_norm": 0.1}),
    "ASAM-skip": (sharpkern.ASAM, {"skip_nonfinite": True}),
    "FisherSAM": (sharpkern.FisherSAM, {}),
    "FisherSAM-average": (sharpkern.FisherSAM, {"fisher": "average"}),
    "FisherSAM-natural": (sharpkern.FisherSAM, {"natural_gradient": True, "base_optimizer": ADAM}),
    "RandomSAM": (sharpkern.RandomSAM, {}),
    "MixSAM": (sharpkern.MixSAM, {"covariance": sharpkern.covariance.Adaptive(0.1)}),
    "MixSAM-noise": (sharpkern.MixSAM, {"mix": 1.0}),
    "VariationalSAM": (sharpkern.VariationalSAM, {"kl_weight": 0.01}),
    "MFVI": (sharpkern.MFVI, {"base_optimizer": ADAM}),
    "SGD-TRACER": (sharpkern.TRACER, {"rho": 1e-2}),
    "Adam-TRACER": (sharpkern.TRACER, {"base_optimizer": ADAM, "precondition": True}),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before, counters at zero."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def make(method: str, model: nn.Module, /, **options: Any) -> sharpkern.SharpnessAware:
    cls, own = METHODS[method]
    given = {**({} if "base_optimizer" in own else {"momentum": 0.9}), "lr": 0.05, **own, **options}
    return cls(model.parameters(), **given)


def batches(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(8, 5, dtype=dtype) for _ in range(n)]


def backward(model: nn.Module, x: Tensor) -> Tensor:
    loss = model(x).square().mean()
    loss.backward()
    return loss


def halves(
    model: nn.Module, optimizer: sharpkern.SharpnessAware, data: list[Tensor], backend: str | None = None
) -> None:
    """One step a batch, by halves; compiled by a backend."""
    first: Callable[..., None] = optimizer.first_step
    second: Callable[..., None] = optimizer.second_step
    if backend is not None:
        first = torch.compile(first, backend=backend, fullgraph=True)
        second = torch.compile(second, backend=backend, fullgraph=True)
    for x in data:
        backward(model, x)
        first(zero_grad=True)
        backward(model, x)
        second(zero_grad=True)


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same(a: nn.Module, one: sharpkern.SharpnessAware, b: nn.Module, other: sharpkern.SharpnessAware) -> None:
    assert same(a.state_dict(), b.state_dict())
    assert same(one.state_dict(), other.state_dict())


# The ops ----------------------------------------------------------------------------------------------------------


def ready(optimizer: sharpkern.SharpnessAware) -> None:
    """Makes the state, with no NaN where it is padded: those are not equal to themselves."""
    compiled.prepare(optimizer)
    assert optimizer._plan is not None
    for t in optimizer._plan.tensors:
        for bases in t.bases.values():
            for x in bases:
                x.nan_to_num_()


@pytest.mark.parametrize("method", ["SAM", "FisherSAM-average", "Adam-TRACER", "RandomSAM"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_ops_are_what_their_schemas_say(op: Any, method: str) -> None:
    """They write what the schema says and nothing else, on real tensors, fake ones and through functionalization."""
    model = network()
    optimizer = make(method, model)
    calls: list[tuple[Any, ...]] = []

    class Keep(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is getattr(torch.ops.sharpkern, op.name).default:
                calls.append(copy.deepcopy(args))
            return func(*args, **(kwargs or {}))

    backward(model, batches(1)[0])
    ready(optimizer)
    with torch.no_grad(), Keep():
        compiled.perturb(optimizer, "first_step()", True)
        compiled.restore(optimizer)
        compiled.descend(optimizer)
    assert len(calls) == (op.name != "sq_norm" or method != "RandomSAM")
    for args in calls:
        torch.library.opcheck(getattr(torch.ops.sharpkern, op.name).default, args)


def test_ops_are_functions_of_what_they_are_given() -> None:
    """With other tensors the outcome is the same, and the optimizer's own are not touched."""
    model = network()
    optimizer = make("Adam-TRACER", model, curvature="difference")
    backward(model, batches(1)[0])
    calls: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []

    class Keep(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace != "sharpkern":
                return func(*args, **(kwargs or {}))
            before = copy.deepcopy(args)
            func(*args)
            calls.append((func, before, copy.deepcopy(args)))

    ready(optimizer)
    with torch.no_grad(), Keep():
        compiled.perturb(optimizer, "first_step()", True)
        compiled.descend(optimizer)
    assert [str(func) for func, *_ in calls] == [
        f"sharpkern.{name}.default" for name in ("sq_norm", "ascend_", "descend_")
    ]
    own = [x for kept in optimizer.state.values() for x in kept.values()]
    with torch.no_grad():
        for x in (*model.parameters(), *own):
            x.fill_(float("nan"))
        for func, before, after in calls:
            func(*before)
            assert same(before, after)
    assert all(x.isnan().all() for x in (*model.parameters(), *own))


# A step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("method", METHODS)
def test_halves_are_those_of_the_eager_step_and_compiled_once(method: str, compiler: str) -> None:
    data, (a, b) = batches(20), (network(), network())
    one, other = make(method, a), make(method, b)
    halves(a, one, data)
    halves(b, other, data, compiler)
    assert_same(a, one, b, other)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize("method", ["SAM", "FisherSAM-average", "Adam-TRACER", "MFVI"])
def test_inductor_copies_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(*_: Any) -> Any:
        raise AssertionError("an op was given copies")

    monkeypatch.setattr(library, "_stand_in", stand_in)
    data, (a, b) = batches(4), (network(), network())
    one, other = make(method, a), make(method, b)
    halves(a, one, data)
    halves(b, other, data, "inductor")
    assert_same(a, one, b, other)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("base", [SGD, ADAM])
def test_schedule_of_tensors_compiles_once(base: type[torch.optim.Optimizer]) -> None:
    data, models = batches(20), (network(), network())
    for model, backend in zip(models, (None, "aot_eager"), strict=True):
        lr, rho = torch.tensor(0.05), torch.tensor(0.1)
        optimizer = sharpkern.SAM(model.parameters(), base, lr=lr, rho=rho)
        first: Any = optimizer.first_step
        second: Any = optimizer.second_step
        if backend is not None:
            first, second = (torch.compile(half, backend=backend, fullgraph=True) for half in (first, second))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for x in data:
            backward(model, x)
            first(zero_grad=True)
            backward(model, x)
            second(zero_grad=True)
            scheduler.step()
            rho.mul_(0.95)
        assert optimizer.param_groups[0]["lr"] is lr
        assert float(lr) < 0.01
    assert same(models[0].state_dict(), models[1].state_dict())
    assert counters["stats"]["unique_graphs"] == 2


def test_schedule_of_numbers_is_followed() -> None:
    data, models = batches(4), (network(), network())
    for model, backend in zip(models, (None, "aot_eager"), strict=True):
        optimizer = make("SAM", model)
        for i, x in enumerate(data):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
            halves(model, optimizer, [x], backend)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_options_changed_in_the_graph() -> None:
    """A tensor among the options counts as it stands in the graph, gradients too."""
    models, x = (network(), network()), batches(1)[0]
    for model, compiler in zip(models, (None, "aot_eager"), strict=True):
        lr = torch.tensor(0.5)
        optimizer = make("SAM", model, lr=lr)

        def half(optimizer: Any = optimizer, lr: Tensor = lr) -> None:
            with torch.no_grad():
                lr.mul_(0.1)
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        p.grad.mul_(3.0)
            optimizer.second_step()

        backward(model, x)
        optimizer.first_step()
        (half if compiler is None else torch.compile(half, backend=compiler, fullgraph=True))()
    assert same(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize("method", ["SAM", "FisherSAM-average", "Adam-TRACER", "MFVI"])
def test_eager_and_compiled_halves_alternate(method: str) -> None:
    data, (a, b) = batches(8), (network(), network())
    one, other = make(method, a), make(method, b)
    halves(a, one, data)
    first = torch.compile(other.first_step, backend="aot_eager", fullgraph=True)
    second = torch.compile(other.second_step, backend="aot_eager", fullgraph=True)
    for i, x in enumerate(data):
        backward(b, x)
        (first if i % 2 else other.first_step)(zero_grad=True)
        backward(b, x)
        (second if i // 2 % 2 else other.second_step)(zero_grad=True)
    assert_same(a, one, b, other)
    assert counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("method", ["SAM", "FisherSAM-average", "Adam-TRACER", "MFVI"])
def test_resumed(method: str) -> None:
    data, a = batches(6), network()
    one = make(method, a)
    halves(a, one, data)
    b = network()
    other = make(method, b)
    halves(b, other, data[:3], "aot_eager")
    c = copy.deepcopy(b)
    third = make(method, c)
    third.load_state_dict(copy.deepcopy(other.state_dict()))
    halves(c, third, data[3:5], "aot_eager")
    third.load_state_dict(copy.deepcopy(third.state_dict()))
    halves(c, third, data[5:], "aot_eager")
    assert_same(a, one, c, third)


@pytest.mark.parametrize("method", ["SAM", "SGD-TRACER", "RandomSAM", "SAM-AdamW"])
def test_missing_gradients(method: str) -> None:
    """Which parameters have gradients changes from step to step, and within one."""
    models = (network(), network())
    data = [torch.randn(4, 7) for _ in range(6)]
    runs = []
    for model, backend in zip(models, (None, "aot_eager"), strict=True):
        optimizer = make(method, model)
        first: Any = optimizer.first_step
        second: Any = optimizer.second_step
        if backend is not None:
            first, second = (torch.compile(half, backend=backend, fullgraph=True) for half in (first, second))
        for i, x in enumerate(data):
            backward(model[1:] if i % 3 else model, x if i % 3 else x[:, :5])
            first(zero_grad=True)
            backward(model[1:] if i % 2 else model, x if i % 2 else x[:, :5])
            second(zero_grad=True)
        runs.append(optimizer)
    assert_same(models[0], runs[0], models[1], runs[1])


@pytest.mark.parametrize("options", [{"master_weights": True}, {"stochastic_rounding": True}])
def test_weights_of_16_bits(options: dict[str, Any]) -> None:
    data, (a, b) = batches(5, torch.bfloat16), (network(torch.bfloat16), network(torch.bfloat16))
    one, other = make("SAM", a, **options), make("SAM", b, **options)
    for model, optimizer, backend in ((a, one, None), (b, other, "aot_eager")):
        halves(model, optimizer, data[:3], backend)
        with torch.no_grad():
            model[0].weight.mul_(2)  # whoever writes the weights is followed
        halves(model, optimizer, data[3:], backend)
    assert_same(a, one, b, other)


def test_parameters_with_gaps_and_gradients_of_other_strides() -> None:
    base = torch.randn(6, 10)
    runs = []
    for backend in (None, "aot_eager"):
        wide = base.clone()
        p = nn.Parameter(wide[:, ::2])
        optimizer = sharpkern.ASAM([p], lr=0.1, momentum=0.9)
        first: Any = optimizer.first_step
        second: Any = optimizer.second_step
        if backend is not None:
            first, second = (torch.compile(half, backend=backend, fullgraph=True) for half in (first, second))
        for i in range(3):
            p.grad = torch.arange(30.0).view(5, 6).t() + i
            first()
            p.grad = torch.arange(30.0).view(5, 6).t().cos() + i
            second()
        runs.append((wide, optimizer.state_dict()))
    assert same(runs[0], runs[1])
    assert torch.equal(runs[0][0][:, 1::2], base[:, 1::2])


def test_running_statistics_are_those_of_the_first_pass() -> None:
    data, runs = batches(4), []
    for backend in (None, "aot_eager"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
        optimizer = make("SAM", model, model=model)
        halves(model, optimizer, data, backend)
        runs.append(model.state_dict())
    assert same(runs[0], runs[1])
    assert int(runs[0]["1.num_batches_tracked"]) == 4


@pytest.mark.parametrize("skip", [False, True])
def test_gradients_that_are_not_finite(skip: bool) -> None:
    models, x = (network(), network()), batches(1)[0]
    for model, backend in zip(models, (None, "aot_eager"), strict=True):
        optimizer = make("SAM", model, skip_nonfinite=skip)
        first: Any = optimizer.first_step
        second: Any = optimizer.second_step
        if backend is not None:
            first, second = (torch.compile(half, backend=backend, fullgraph=True) for half in (first, second))
        for bad in ((False, False), (True, False), (False, skip)):
            for half, is_bad in zip((first, second), bad, strict=True):
                optimizer.zero_grad()
                backward(model, x)
                model[0].weight.grad[0, 0] = float("inf") if is_bad else 1.0
                half()
    assert same([p.detach() for p in models[0].parameters()], [p.detach() for p in models[1].parameters()])
    assert all(p.isfinite().all() for p in models[0].parameters())


# Whole steps ------------------------------------------------------------------------------------------------------


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, compiler: str | None, closure: bool
) -> Callable[[Tensor], Any]:
    """A step on a batch: `step` with a closure, or a function of forward, backward and both halves; compiled."""
    at: list[Tensor] = []

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        return backward(model, at[0])

    def train(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = backward(model, x)
        if isinstance(optimizer, sharpkern.SharpnessAware):
            optimizer.first_step(zero_grad=True)
            backward(model, x)
            optimizer.second_step()
        else:
            optimizer.step()
        return loss

    step: Any = optimizer.step if closure else train
    if compiler is not None:
        step = torch.compile(step, backend=compiler)

    def run(x: Tensor) -> Any:
        at[:] = [x]
        return step(evaluate) if closure else step(x)

    return run


@pytest.mark.parametrize(
    ("method", "closure"), [("SAM", True), ("SAM", False), ("FisherSAM-average", False), ("MFVI", True)]
)
def test_whole_steps_break_the_graph_at_backward_alone(method: str, closure: bool) -> None:
    data, (a, b) = batches(20), (network(), network())
    one, other = make(method, a), make(method, b)
    eager, compiled_step = loop(a, one, None, closure), loop(b, other, "aot_eager", closure)
    losses = [(eager(x), compiled_step(x)) for x in data[:3]]
    graphs = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses += [(eager(x), compiled_step(x)) for x in data[3:]]
    assert all(torch.equal(x, y) for x, y in losses)
    assert_same(a, one, b, other)
    assert counters["stats"]["unique_graphs"] == graphs
    assert counters["graph_break"]
    assert all("Tensor.backward()" in reason for reason in counters["graph_break"])


def test_a_step_breaks_the_graph_less_often_than_torchs() -> None:
    breaks = []
    for make_one in (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: sharpkern.SAM(p, lr=0.1)):
        torch._dynamo.reset()
        counters.clear()
        model = network()
        step = loop(model, make_one(model.parameters()), "eager", closure=False)
        for x in batches(3):
            step(x)
        breaks.append(len(counters["graph_break"]))
    assert breaks[1] < breaks[0]


def test_a_compiled_model_with_an_eager_optimizer() -> None:
    data, (a, b) = batches(5), (network(), network())
    one, other = make("SAM", a), make("SAM", b)
    halves(a, one, data)
    halves(torch.compile(b, backend="aot_eager", fullgraph=True), other, data)
    assert_same(a, one, b, other)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    "options",
    [{"base_optimizer": torch.optim.RMSprop, "momentum": 0.9}, {"base_optimizer": ADAM, "amsgrad": True}],
)
def test_a_base_optimizer_that_is_not_fused_runs_eagerly(options: dict[str, Any]) -> None:
    data, (a, b) = batches(5), (network(), network())
    one, other = (sharpkern.ASAM(model.parameters(), lr=0.01, **options) for model in (a, b))
    eager, step = loop(a, one, None, True), loop(b, other, "aot_eager", True)
    for x in data:
        eager(x)
        step(x)
    assert_same(a, one, b, other)
    backward(b, data[0])
    torch.compile(other.first_step, backend="eager", fullgraph=True)()
    with pytest.raises(RuntimeError, match="sharpkern runs them eagerly"):
        torch.compile(other.second_step, backend="eager", fullgraph=True)()
    other.restore()
    assert same([p.detach() for p in a.parameters()], [p.detach() for p in b.parameters()])


def test_a_callable_fisher_runs_eagerly() -> None:
    data, (a, b) = batches(5), (network(), network())

    def build(model: nn.Module) -> sharpkern.FisherSAM:
        return sharpkern.FisherSAM(model.parameters(), fisher=lambda: [p.detach().square() for p in model.parameters()])

    one, other = build(a), build(b)
    eager, step = loop(a, one, None, True), loop(b, other, "aot_eager", True)
    for x in data:
        eager(x)
        step(x)
    assert_same(a, one, b, other)
    backward(b, data[0])
    with pytest.raises(RuntimeError, match="sharpkern runs them eagerly"):
        torch.compile(other.first_step, backend="eager", fullgraph=True)()
    assert same([p.detach() for p in a.parameters()], [p.detach() for p in b.parameters()])


def test_a_scaled_step_runs_eagerly() -> None:
    data, runs = batches(4), []
    for compiler in (None, "aot_eager"):
        model = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        optimizer = make("SAM", model, scaler=scaler)
        first: Any = optimizer.first_step
        second: Any = optimizer.second_step
        if compiler is not None:
            first, second = (torch.compile(half, backend=compiler) for half in (first, second))
        for i, x in enumerate(data):
            for half in (first, second):
                scaler.scale(model(x).square().mean()).backward()
                if i == 2:
                    model[0].weight.grad[0, 0] = float("inf")
                half(zero_grad=True)
            scaler.update()
        runs.append((model.state_dict(), optimizer.state_dict(), scaler.state_dict()))
    assert same(runs[0], runs[1])
    assert int(runs[0][2]["scale"]) == 1 << 10  # grown after two steps, halved by the infinity
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="sharpkern runs them eagerly"):
        torch.compile(optimizer.first_step, backend="eager", fullgraph=True)()


@pytest.mark.parametrize(
    "build",
    [
        lambda p: sharpkern.EvolutionStrategies(p, pairs=2, lr=0.1),
        lambda p: sharpkern.TRACER(p, curvature="exact", lr=0.1),
    ],
)
def test_other_steps_run_eagerly(build: Any) -> None:
    x, runs = batches(1)[0], []
    for compiler in (False, True):
        model = network()
        optimizer = build(model.parameters())

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            if loss.requires_grad:
                loss.backward(create_graph=True)
            return loss

        step: Any = torch.compile(optimizer.step, backend="eager") if compiler else optimizer.step
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward")
            runs.append([step(closure), step(closure), model.state_dict(), optimizer.state_dict()])
            if compiler:
                torch._dynamo.reset()  # or the graphs with breaks are taken
                with pytest.raises(RuntimeError, match="sharpkern runs them eagerly"):
                    torch.compile(optimizer.step, backend="eager", fullgraph=True)(closure)
    assert same(runs[0], runs[1])


# Errors -----------------------------------------------------------------------------------------------------------


def test_misuse_is_refused_as_in_an_eager_step() -> None:
    model = network()
    optimizer = make("SAM", model)
    x = batches(1)[0]
    first, second = (
        torch.compile(half, backend="eager", fullgraph=True) for half in (optimizer.first_step, optimizer.second_step)
    )
    before = copy.deepcopy(model.state_dict())
    backward(model, x)
    with pytest.raises(RuntimeError, match="call first_step"):
        second()
    first()
    with pytest.raises(RuntimeError, match=r"call second_step\(\) or restore\(\) first"):
        first()
    assert not same(model.state_dict(), before)
    torch.compile(optimizer.restore, backend="eager", fullgraph=True)()
    assert same(model.state_dict(), before)
    with pytest.raises(RuntimeError, match="wants a closure"):
        torch.compile(optimizer.step, backend="eager")()
    assert same(model.state_dict(), before)


def test_a_closure_that_fails_leaves_the_weights_restored() -> None:
    model = network()
    optimizer = make("SAM", model)
    before, calls = copy.deepcopy(model.state_dict()), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("of the user")
        return backward(model, torch.ones(2, 5))

    with pytest.raises(KeyError, match="of the user"):
        torch.compile(optimizer.step, backend="aot_eager")(closure)
    assert len(calls) == 2
    assert same(model.state_dict(), before)
    optimizer.first_step()  # nothing stands perturbed


def test_a_sparse_gradient_is_refused() -> None:
    layer = nn.Embedding(4, 3, sparse=True)
    optimizer = sharpkern.SAM(layer.parameters(), lr=0.1)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        torch.compile(optimizer.first_step, backend="eager", fullgraph=True)()


def test_figures_of_a_compiled_step() -> None:
    """What wants the gradients of a step is not there; what does not is right."""
    model = network()
    optimizer = make("FisherSAM-average", model)
    halves(model, optimizer, batches(2), "eager")
    stored = [optimizer.state[p]["fisher"] for p in model.parameters()]
    assert all(torch.allclose(s, 1 / (1 + f)) for s, f in zip(optimizer.covariance(), stored, strict=True))
    with pytest.raises(RuntimeError, match="eager"):
        optimizer.diagnostics()


def test_perturbed_by_compiled_halves() -> None:
    model = network()
    optimizer = make("ASAM", model)
    backward(model, batches(1)[0])
    before = copy.deepcopy(model.state_dict())
    with optimizer.perturbed():
        expected = copy.deepcopy(model.state_dict())
    torch.compile(optimizer.perturb, backend="aot_eager", fullgraph=True)()
    assert same(model.state_dict(), expected)
    optimizer.restore()
    assert same(model.state_dict(), before)


def test_a_compiled_optimizer_is_freed() -> None:
    model = network()
    optimizer = make("SAM", model)
    halves(model, optimizer, batches(1), "eager")
    number = optimizer._number
    assert number in optimizers
    del optimizer
    torch._dynamo.reset()
    gc.collect()
    assert number not in optimizers


def test_a_copy_has_a_number_of_its_own() -> None:
    data, a = batches(4), network()
    one = make("SAM", a)
    halves(a, one, data[:2], "aot_eager")
    b, other = copy.deepcopy((a, one))
    halves(a, one, data[2:])
    halves(b, other, data[2:], "aot_eager")
    assert_same(a, one, b, other)
    assert one._number != other._number
