"""What only a GPU can show: graphs, launches, streams, waiting, size. What needs none of these runs on the CPU too."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import same
from torch import Tensor

import sharpkern
from sharpkern import ops
from sharpkern.covariance import Identity
from sharpkern.tensors import Tensors

pytestmark = [
    pytest.mark.filterwarnings("default"),  # torch's own warnings differ by version and GPU
    pytest.mark.filterwarnings("ignore:.*swallow the perturbation"),
]
CUDA = torch.device("cuda")
SHAPES = ((17, 33), (17,), (5, 17), (3, 4, 5, 2), (1,), (4097,))
SECOND = 1_000_000_000  # cycles: half a second, or more, of a busy GPU


def place(name: str, device: str) -> str:
    """The backend, if it can run on the device."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if name not in ops.NAMES:
        pytest.skip(f"there is no backend {name}")
    if reason := ops.load(name).why_not(torch.device(device)):
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=["native", "triton"])
def gpu(request: pytest.FixtureRequest) -> str:
    """Each backend with kernels for a GPU."""
    return place(request.param, "cuda")


@pytest.fixture(params=[("native", "cpu"), ("native", "cuda"), ("triton", "cuda")], ids="-".join)
def anywhere(request: pytest.FixtureRequest) -> tuple[str, torch.device]:
    """Each backend with kernels, on each device that it has them for."""
    name, device = request.param
    return place(name, device), torch.device(device)


Gradients = Sequence[Tensor]


def draws(count: int, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 1) -> list[list[Tensor]]:
    """Lists of random tensors in these shapes, on the CPU."""
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(count)]


def parameters(values: Sequence[Tensor], device: torch.device = CUDA) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(x.to(device, copy=True)) for x in values]


def give(params: Sequence[torch.nn.Parameter], gradients: Gradients) -> None:
    """New gradients, at new addresses."""
    for p, g in zip(params, gradients, strict=True):
        p.grad = g.to(p, copy=True)


def two_passes(optimizer: Any, params: Sequence[torch.nn.Parameter], first: Gradients, second: Gradients) -> None:
    give(params, first)
    optimizer.first_step()
    give(params, second)
    optimizer.second_step()


def everything(optimizer: Any) -> list[Tensor]:
    """Copies of all parameters and all state."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [x for p in params for _, x in sorted(optimizer.state[p].items())]
    return [x.detach().clone() for x in (*params, *state)]


def sam(params: Sequence[Tensor], **options: Any) -> Any:
    return sharpkern.SAM(params, torch.optim.SGD, **{"lr": 0.1, "rho": 0.2, "momentum": 0.9, **options})


def fisher(params: Sequence[Tensor], **options: Any) -> Any:
    mine = {"lr": 0.01, "rho": 0.2, "fisher": "average", "natural_gradient": True}
    return sharpkern.FisherSAM(params, torch.optim.AdamW, **{**mine, **options})


MAKERS: dict[str, Callable[..., Any]] = {"SAM SGD": sam, "Fisher AdamW": fisher}
makers = pytest.mark.parametrize("maker", MAKERS)

# Graphs -----------------------------------------------------------------------------------------------------------


def loss_of(params: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """A small network without a matrix product: a library might take another one in a graph."""
    w1, b1, w2, *others = params
    hidden = torch.tanh((inputs[:, None, :] * w1).sum(-1) + b1)
    value = (hidden[:, None, :] * w2).sum(-1).square().mean()
    return value + sum(0.1 * (x * x).mean() for x in others)


GRAPHED: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "SAM SGD": ("SAM SGD", torch.float32, {}),
    "Fisher AdamW": ("Fisher AdamW", torch.float32, {}),
    "skip_nonfinite": ("SAM SGD", torch.float32, {"skip_nonfinite": True}),
    "stochastic masters": (
        "SAM SGD",
        torch.bfloat16,
        {"master_weights": True, "stochastic_rounding": True},
    ),
}


class Training:
    """Whole steps on a small network, whose batch, learning rate and radius lie on the device."""

    WARM_UP, STEPS = 3, 6

    def __init__(self, backend: str, graphed: str) -> None:
        maker, dtype, options = GRAPHED[graphed]
        self.params = parameters([0.3 * x.to(dtype) for x in draws(1)[0]])
        draw = torch.Generator().manual_seed(2)
        self.batches = [torch.randn(8, 33, generator=draw).to(CUDA, dtype) for _ in range(self.WARM_UP + self.STEPS)]
        self.lr, self.rho = torch.tensor(0.1, device=CUDA), torch.tensor(0.2, device=CUDA)
        self.optimizer = MAKERS[maker](self.params, lr=self.lr, rho=self.rho, backend=backend, **options)
        self.inputs = self.batches[0].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for batch in self.batches[: self.WARM_UP]:
                self.inputs.copy_(batch)
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()

    def closure(self) -> Tensor:
        """Backward pass and loss."""
        self.optimizer.zero_grad()
        value = loss_of(self.params, self.inputs)
        value.backward()
        return value

    def step(self) -> Tensor:
        """One whole step and its loss."""
        loss: Tensor = self.optimizer.step(self.closure)
        return loss.detach()

    def run(self, step: Callable[[], Tensor], between: Callable[[], None] = lambda: None) -> list[Tensor]:
        """The rest of the steps, each with its own rate and radius; losses, parameters and state."""
        losses = []
        for i, batch in enumerate(self.batches[self.WARM_UP :]):
            self.inputs.copy_(batch)
            self.lr.fill_(0.1 / (i + 1))
            self.rho.fill_(0.2 + 0.1 * i)
            losses.append(step().clone())
            between()
        torch.cuda.synchronize()
        return [*losses, *everything(self.optimizer)]

    def capture(self) -> Callable[[], Tensor]:
        """What replays a step: forward and backward passes and the optimizer."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.step()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


@pytest.mark.parametrize("graphed", GRAPHED)
def test_a_captured_step_replays_what_eager_steps_do(graphed: str, gpu: str) -> None:
    eager, captured = Training(gpu, graphed), Training(gpu, graphed)
    assert same(captured.run(captured.capture()), eager.run(eager.step))


@pytest.mark.parametrize("graphed", GRAPHED)
def test_what_happens_between_replays_does_not_reach_the_graph(graphed: str, gpu: str) -> None:
    """Other gradients of the same optimizer, other optimizers, memory that is freed and written again."""
    eager, captured, other = Training(gpu, graphed), Training(gpu, graphed), Training(gpu, graphed)
    replay = captured.capture()

    def disturb() -> None:
        give(captured.params, draws(1, seed=5)[0])
        with captured.optimizer.perturbed():
            pass
        captured.optimizer.zero_grad()
        other.step()
        for size in (8, 600, 20_000, 1 << 20):
            torch.full((size,), float("nan"), device=CUDA)

    assert same(captured.run(replay, disturb), eager.run(eager.step))


# Launches, waiting, streams ---------------------------------------------------------------------------------------


def on_device(run: Callable[[], None], folder: Path) -> list[tuple[str, str]]:
    """Kind and name of everything that the device did meanwhile."""
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        run()
        torch.cuda.synchronize()
    path = folder / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    return [(e["cat"], e["name"]) for e in events if e.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}]


@makers
def test_a_step_is_three_kernels_and_nothing_else(maker: str, gpu: str, tmp_path: Path) -> None:
    params = parameters(draws(1)[0])
    optimizer = MAKERS[maker](params, backend=gpu)
    give(params, draws(1, seed=2)[0])

    def steps() -> None:
        for _ in range(4):
            optimizer.first_step()
            optimizer.second_step()

    steps()
    seen = on_device(steps, tmp_path)
    assert [kind for kind, _ in seen] == ["kernel"] * 12, seen
    assert len({name for _, name in seen}) == 3, seen


@makers
def test_gradients_that_move_cost_nothing(maker: str, gpu: str, tmp_path: Path) -> None:
    """Triton's kernels read tables of addresses, of which a few are kept; the native ones get them by value."""
    params = parameters(draws(1)[0])
    optimizer = MAKERS[maker](params, backend=gpu)
    sets = [[g.to(CUDA) for g in row] for row in draws(4 if gpu == "triton" else 8, seed=2)]

    def steps() -> None:
        for i, row in zip(range(8), itertools.cycle(sets), strict=False):
            for p, g in zip(params, row, strict=True):
                p.grad = g
            (optimizer.second_step if i % 2 else optimizer.first_step)()

    steps()
    seen = on_device(steps, tmp_path)
    assert [kind for kind, _ in seen] == ["kernel"] * 12, seen


@contextmanager
def no_waiting() -> Generator[None]:
    """An error where torch waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@makers
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize(
    "options", [{}, {"skip_nonfinite": True}, {"max_norm": 0.5, "clip_value": 0.1}], ids=["", "skip_nonfinite", "clip"]
)
def test_a_step_does_not_wait_for_the_device(options: dict[str, Any], scaled: bool, maker: str, gpu: str) -> None:
    params = parameters(draws(1)[0])
    scaler = torch.amp.GradScaler("cuda", enabled=scaled)
    optimizer = MAKERS[maker](params, backend=gpu, scaler=scaler if scaled else None, **options)
    sets = [[g.to(CUDA) for g in row] for row in draws(4, seed=2)]
    for first, second in itertools.pairwise(sets):
        two_passes(optimizer, params, first, second)
        scaler.update()
    done = torch.cuda.Event()
    with no_waiting():
        torch.cuda._sleep(SECOND)
        done.record()
        for first, second in itertools.pairwise(sets):
            optimizer.param_groups[0]["lr"] *= 0.7
            optimizer.param_groups[0]["rho"] *= 0.9
            two_passes(optimizer, params, first, second)
            scaler.update()
        assert not done.query(), "the steps took as long as the device was busy: something waited for it"
    torch.cuda.synchronize()


@makers
def test_scaled_gradients_give_the_same_bits(maker: str, anywhere: tuple[str, torch.device]) -> None:
    backend, device = anywhere
    one, two = (parameters(draws(1)[0], device) for _ in range(2))
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=2)
    plain = MAKERS[maker](one, backend=backend, max_norm=0.5, clip_value=0.1)
    scaled = MAKERS[maker](two, backend=backend, max_norm=0.5, clip_value=0.1, scaler=scaler)
    sets = [[g.to(device) for g in row] for row in draws(6, seed=2)]
    for first, second in itertools.pairwise(sets):
        scale = scaler.get_scale()
        two_passes(plain, one, first, second)
        two_passes(scaled, two, [scale * g for g in first], [scale * g for g in second])
        scaler.update()
    assert same(everything(plain), everything(scaled))


@makers
def test_the_current_stream_is_used(maker: str, gpu: str) -> None:
    """A gradient that is late on a side stream is waited for there, and only there."""
    results = []
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        params, (start, *rest) = parameters(draws(1)[0]), draws(4, seed=2)
        optimizer = MAKERS[maker](params, backend=gpu)
        two_passes(optimizer, params, start, start)
        sets = [[g.to(CUDA) for g in row] for row in rest]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for row in sets:
                torch.cuda._sleep(SECOND // 10)
                for half in (optimizer.first_step, optimizer.second_step):
                    for p, g in zip(params, row, strict=True):
                        assert p.grad is not None
                        p.grad.copy_(g)
                    half()
        torch.cuda.synchronize()
        results.append(everything(optimizer))
    assert same(*results)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@makers
def test_a_gradient_that_is_not_finite_skips_the_step_on_the_device(maker: str, value: float, gpu: str) -> None:
    params = parameters(draws(1)[0])
    optimizer = MAKERS[maker](params, backend=gpu)
    good = [[g.to(CUDA) for g in row] for row in draws(2, seed=2)]
    bad = [g.clone() for g in good[0]]
    bad[-1][-1] = value
    two_passes(optimizer, params, *good)
    before = everything(optimizer)
    with no_waiting():
        two_passes(optimizer, params, bad, good[1])
    assert same(everything(optimizer), before)
    two_passes(optimizer, params, *good)
    assert not same(everything(optimizer), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_has_the_same_bits_in_twenty_runs(dtype: torch.dtype, gpu: str) -> None:
    params = [torch.nn.Parameter(torch.randn(n, device=CUDA, dtype=dtype)) for n in (3_000_001, 5, 700_000, 4097)]
    t = Tensors(params, 0)
    for p in params:
        p.grad = torch.randn_like(p)
    t.read_gradients()
    totals = [torch.full((), float("nan"), dtype=torch.float64, device=CUDA) for _ in range(20)]
    for total in totals:
        ops.load(gpu).sq_norm(t, Identity(), total)
    assert same(totals, totals[:1] * 20)
    exact = sum(float(g.double().square().sum()) for g in t.gradients if g is not None)
    assert float(totals[0]) == pytest.approx(exact, rel=1e-6)


# Lists, layouts, sizes --------------------------------------------------------------------------------------------


def assert_like_the_reference(params: Sequence[torch.nn.Parameter], optimizer: Any, maker: str, sets: Any) -> None:
    """Steps with these gradients end where those of the reference on the CPU end."""
    twins = parameters([p.detach() for p in params], torch.device("cpu"))
    reference = MAKERS[maker](twins, backend="reference")
    for row in sets:
        two_passes(reference, twins, row, row)
        give_views(params, row)
        optimizer.first_step()
        give_views(params, row)
        optimizer.second_step()
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach().cpu(), twin.detach(), rtol=2e-5, atol=2e-6)


def give_views(params: Sequence[torch.nn.Parameter], gradients: Gradients) -> None:
    """Gradients that are views into one buffer, as DDP's buckets make them, at addresses of every alignment."""
    starts = list(itertools.accumulate((g.numel() + 1 for g in gradients), initial=1))
    bucket = torch.full((starts[-1],), float("nan"), device=params[0].device)
    for p, g, start in zip(params, gradients, starts, strict=False):
        p.grad = bucket[start : start + g.numel()].view(g.shape).copy_(g)


@makers
def test_more_tensors_than_one_launch_takes(maker: str, anywhere: tuple[str, torch.device]) -> None:
    backend, device = anywhere
    start, *sets = draws(3, [(1 + 7 * i % 41,) for i in range(4000)])
    params = parameters(start, device)
    assert_like_the_reference(params, MAKERS[maker](params, backend=backend), maker, sets)


@makers
def test_layouts_and_misaligned_gradients(maker: str, anywhere: tuple[str, torch.device]) -> None:
    backend, device = anywhere
    start, *sets = draws(4, [(5, 3, 7, 4), (257,), (9, 8, 3, 3), (), (33, 65)])
    start[0], start[2] = (x.to(memory_format=torch.channels_last) for x in (start[0], start[2]))
    start[4] = start[4].t().contiguous().t()
    params = parameters(start, device)
    assert_like_the_reference(params, MAKERS[maker](params, backend=backend), maker, sets)


def test_a_tensor_of_more_than_2_31_elements(gpu: str) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < 40 << 30:
        pytest.skip(f"{free >> 30} GiB of memory are free, 40 wanted")
    n, rate = 2**31 + 4099, 0.5
    p = torch.nn.Parameter(torch.empty(n, dtype=torch.bfloat16, device=CUDA))
    p.grad = torch.empty_like(p)
    for x in (p.detach(), p.grad):
        for part in x.split(1 << 28):
            part.normal_()
    total = sum(float(part.double().square().sum()) for part in p.grad.split(1 << 26))
    optimizer = sharpkern.SAM([p], rho=0.1 * total**0.5, lr=rate, momentum=0.9, backend=gpu)
    places = [slice(middle - 500, middle + 500) for middle in (500, 2**30, 2**31, n - 500)]
    before = [p.detach()[place].double() for place in places]
    kept = p.detach().clone()
    optimizer.first_step()
    assert float(optimizer._plan.total) == pytest.approx(total, rel=1e-5)
    for place, w in zip(places, before, strict=True):
        torch.testing.assert_close(p.detach()[place].double(), w + 0.1 * p.grad[place].double(), rtol=2**-7, atol=1e-5)
    optimizer.restore()
    assert torch.equal(p.detach(), kept)
    del kept
    optimizer.first_step()
    optimizer.second_step()
    for place, w in zip(places, before, strict=True):
        g = p.grad[place]
        assert torch.equal(optimizer.state[p]["momentum_buffer"][place], g.float())
        torch.testing.assert_close(p.detach()[place].double(), w - rate * g.double(), rtol=2**-7, atol=1e-5)
    del optimizer, p, x, part, g
    torch.cuda.empty_cache()


@makers
def test_two_devices_share_one_norm(maker: str, gpu: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    start, *sets = draws(4)
    params = parameters(start)
    spread = [torch.nn.Parameter(x.to(torch.device("cuda", i % 2))) for i, x in enumerate(start)]
    one, two = MAKERS[maker](params, backend=gpu), MAKERS[maker](spread, backend=gpu)
    for row in sets:
        two_passes(one, params, row, row)
        two_passes(two, spread, row, row)
    for p, twin in zip(params, spread, strict=True):
        torch.testing.assert_close(p.detach().cpu(), twin.detach().cpu(), rtol=1e-5, atol=1e-6)


# Bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"master_weights": True}, {"stochastic_rounding": True}, {"master_weights": True, "stochastic_rounding": True}],
    ids="-".join,
)
def test_masters_and_random_bits_are_those_of_the_reference(
    options: dict[str, bool], dtype: torch.dtype, anywhere: tuple[str, torch.device]
) -> None:
    """Σ g² is 16 and every factor a power of two: no product is rounded, so fused arithmetic changes nothing."""
    backend, device = anywhere
    shapes = [(1,), (7,), (8, 127), (120, 128)]
    start, *sets = draws(13, shapes)
    params, twins = ([torch.nn.Parameter((0.05 * x).to(place, dtype)) for x in start] for place in (device, "cpu"))
    settings: dict[str, Any] = {"rho": 0.25, "lr": 0.125, "momentum": 0.5, **options}
    ours = sharpkern.SAM(params, backend=backend, **settings)
    reference = sharpkern.SAM(twins, backend="reference", **settings)
    for first, second in zip(sets[::2], sets[1::2], strict=True):
        halves = []
        for optimizer, own in ((ours, params), (reference, twins)):
            give(own, [g.sign() / 32 for g in first])
            optimizer.first_step()
            halves.append([p.detach().clone() for p in own])
            give(own, [g.sign() / 32 for g in second])
            optimizer.second_step()
        assert ours._plan.total == 16
        assert same(*halves)
        assert same(everything(ours), everything(reference))


@makers
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(maker: str, anywhere: tuple[str, torch.device]) -> None:
    backend, device = anywhere
    start, *sets = draws(7)
    params = parameters(start, device)
    optimizer = MAKERS[maker](params, backend=backend)
    for row in sets[:3]:
        two_passes(optimizer, params, row, row)
    file = io.BytesIO()
    torch.save({"weights": params, "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=True)
    again = parameters([p.detach() for p in saved["weights"]], device)
    resumed = MAKERS[maker](again, backend=backend)
    resumed.load_state_dict(saved["optimizer"])
    for row in sets[3:]:
        two_passes(optimizer, params, row, row)
        two_passes(resumed, again, row, row)
    assert same(everything(optimizer), everything(resumed))


def test_auto_takes_native_before_triton(gpu: str) -> None:
    usable = [name for name in ("native", "triton") if name in ops.NAMES and not ops.load(name).why_not(CUDA)]
    optimizer = sharpkern.SAM(parameters(draws(1)[0]), lr=0.1)
    assert optimizer.backend == usable[0]
