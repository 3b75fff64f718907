"""The benchmark: that it counts, measures, records, compares and draws what it says. No time is tested."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sharpkern
from sharpkern import cli, ops
from sharpkern.bench import (
    candidates,
    fresh,
    measure,
    operations,
    options,
    overhead,
    peers,
    provenance,
    suite,
    traffic,
)
from sharpkern.bench.candidates import GROUPS, Candidate, Pool
from sharpkern.bench.shapes import SHAPES, find, spread_over
from sharpkern.bench.traffic import Sizes
from sharpkern.covariance import Adaptive, Fisher, Identity

ROOT = Path(__file__).resolve().parent.parent
EVERY: dict[str, Candidate] = {c.name: c for group in GROUPS.values() for c in group}
SOME = [(33, 17), (5,), (2, 3, 4)]


# Shapes and bytes -----------------------------------------------------------------------------------------------------

COUNTS = {
    "resnet20": (269_722, 59),
    "wrn28_10": (36_479_194, 80),
    "resnet50": (25_557_032, 161),
    "vit_b": (86_567_656, 152),
    "bert_base": (109_482_240, 199),
    "gpt2": (124_439_808, 148),
    "small": (161 * 256, 161),
    "many": (2_000_000, 2000),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_networks(name: str) -> None:
    shapes = find(name)
    assert (sum(map(math.prod, shapes)), len(shapes)) == COUNTS[name]


def test_bert_base_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig())
    assert sorted(find("bert_base")) == sorted(tuple(p.shape) for p in model.parameters())


def test_shapes_by_size() -> None:
    assert find("3x50") == [(50,)] * 3
    assert spread_over(2_000_000, 65) == "65x30769"
    for wrong in ("resnet18", "0x5", "3x", "3 x 5"):
        with pytest.raises(ValueError, match=r"wanted one of resnet20.*65x1000"):
            find(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("method", "options", "covariance"),
    [
        ("SAM", {}, Identity()),
        ("ASAM", {}, Adaptive(0.01)),
        ("FisherSAM", {}, Fisher(1.0)),
        ("FisherSAM", {"fisher": "average"}, Fisher(1.0, beta=0.9)),
    ],
    ids=["SAM", "ASAM", "FisherSAM", "average"],
)
def test_bytes_are_those_of_the_tensors(
    method: str, options: dict[str, Any], covariance: Any, base: str, dtype: torch.dtype
) -> None:
    """The tensors that an optimizer really holds, each counted as often as the op reads and writes it."""
    params = [torch.nn.Parameter(torch.randn(1000).to(dtype))]
    params[0].grad = torch.randn_like(params[0])
    kind, given = candidates.BASES[base]
    optimizer = getattr(sharpkern, method)(params, kind, rho=1.0, backend="reference", **options, **given)
    optimizer.first_step()
    optimizer.second_step()
    t = optimizer._plan.tensors[0]
    w, w0, g = params[0].nbytes, t.saved[0].nbytes, params[0].grad.nbytes
    kept = sum(x.nbytes for x in t.fisher if x is not None)
    state = sum(x.nbytes for slot in (t.m, t.v) for x in slot if x is not None)
    sizes, update = Sizes.of(dtype), candidates.base_update(base)
    norm = g + kept + (w if method == "ASAM" else 0)
    ascend, descend = w + g + w0 + w + 2 * kept, w0 + g + w + 2 * state
    assert 1000 * traffic.sq_norm(covariance, sizes) == norm
    assert 1000 * traffic.ascend(covariance, sizes) == ascend
    assert 1000 * traffic.descend(update, sizes) == descend
    assert 1000 * traffic.step(covariance, update, sizes) == norm + ascend + descend
    assert 1000 * traffic.held(update, sizes) == w + g + state


def test_the_bytes_that_are_stated() -> None:
    stated = {
        "sharpkern SAM sgd": 40,
        "sharpkern SAM adamw": 48,
        "sharpkern ASAM sgd": 44,
        "sharpkern FisherSAM sgd": 40,
        "sharpkern RandomSAM sgd": 32,
        "sharpkern SAM sgd bfloat16": 24,
        "sharpkern SAM sgd scaled, clipped": 44,
        "sharpkern sgd update alone": 20,
        "torch fused adamw": 28,
    }
    assert {name: EVERY[name].bytes for name in stated} == stated


# Candidates -----------------------------------------------------------------------------------------------------------


def after(optimizer: str, base: str, start: list[torch.Tensor], gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Weights after three steps of a peer's SAM whose gradients are the same in both halves."""
    params = [torch.nn.Parameter(x.clone()) for x in start]
    for p, g in zip(params, gradients, strict=True):
        p.grad = g.clone()
    step: Any
    if optimizer.startswith("optax"):
        step = (peers.OptaxHalves if "halves" in optimizer else peers.Optax)(params, base)
    elif optimizer == "sharpkern":
        kind, options = candidates.BASES[base]
        step = measure.two_passes(sharpkern.SAM(params, kind, rho=candidates.RHO, **options))
    else:
        step = peers.pytorch_optimizer(params, base, False, **{optimizer: True})
    for _ in range(3):
        step()
    if optimizer.startswith("optax"):
        return [torch.tensor(x.tolist()).reshape(p.shape) for x, p in zip(step.weights, params, strict=True)]
    return [p.detach() for p in params]


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("peer", ["optax", "optax in halves", "foreach", "fused"])
def test_the_peers_do_the_same_step(peer: str, base: str) -> None:
    pytest.importorskip("optax" if peer.startswith("optax") else "pytorch_optimizer")
    start, gradients = ([torch.randn(shape) for shape in SOME] for _ in range(2))
    ours, theirs = (after(who, base, start, gradients) for who in ("sharpkern", peer))
    assert not torch.equal(ours[0], start[0])
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, c in EVERY.items() if not c.slow and c.dtype == torch.float32])
def test_every_candidate_moves_its_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = EVERY[name]
    if reason := candidate.why_not("cpu"):
        pytest.skip(reason)
    made: list[torch.nn.Parameter] = []
    before: list[torch.Tensor] = []
    parameters = Pool.parameters

    def noted(pool: Pool, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        made.extend(parameters(pool, dtype))
        before.extend(p.detach().clone() for p in made)
        return made

    monkeypatch.setattr(Pool, "parameters", noted)
    step = candidate.make(Pool(SOME))
    weights = getattr(step, "weights", None)  # JAX has its own
    old = None if weights is None else [x.tolist() for x in weights]
    step()
    if weights is None:
        assert all(not torch.equal(p.detach(), x) for p, x in zip(made, before, strict=True))
    else:
        assert all(x.tolist() != y for x, y in zip(step.weights, old or [], strict=True))


def test_ops_stay_where_they_are_however_often_they_are_called() -> None:
    """Otherwise one op would change the numbers, and in the end the time, of the others."""
    t = operations.lists([(300,), (7, 5)], torch.float32, "cpu")
    before = [x.clone() for x in (*t.weights, *t.fisher) if x is not None]
    calls = operations.calls(ops.load("reference"), t)
    assert set(calls) == set(operations.sizes(torch.float32))
    for _ in range(30):
        for call in calls.values():
            call()
    for x, y in zip((*t.weights, *t.fisher), before, strict=True):
        assert x is not None
        assert bool(x.isfinite().all())
        assert float((x - y).abs().max()) < 0.1


@pytest.mark.parametrize("elements", [1000, 5_000_000])  # the second one is streamed
def test_the_copy_copies(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: made.append(zeros(*a, **k)) or made[-1])
    step = operations.copy(elements)
    assert not made[0].any()
    step()
    assert bool((made[0] == 1).all())


def test_turns_are_taken_by_all_and_ratios_pair_by_pair() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = measure.in_turns(steps, 5, 1)
    turns = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(turns) == 7
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 1
    assert {name: len(times) for name, times in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    assert measure.ratio([1.0, 30.0, 2.0], [2.0, 10.0, 4.0]) == {"p20": 0.5, "p50": 0.5, "p80": pytest.approx(2.0)}


@pytest.mark.skipif(len(provenance.affinity()) < 2, reason="one core")
def test_pinned_takes_as_many_cores_as_threads_and_gives_them_back() -> None:
    threads, cores = torch.get_num_threads(), provenance.affinity()
    with provenance.pinned(1):
        assert torch.get_num_threads() == 1
        assert len(provenance.affinity()) == 1
    assert (torch.get_num_threads(), provenance.affinity()) == (threads, cores)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
def test_extra_memory_is_the_copy_of_the_weights() -> None:
    assert fresh.extra_bytes("sharpkern SAM sgd", "3x4000000", "cpu", 1) == pytest.approx(4, abs=0.7)
    assert fresh.extra_bytes("torch fused sgd", "3x4000000", "cpu", 1) == pytest.approx(0, abs=0.7)


# The command ----------------------------------------------------------------------------------------------------------


def test_bench_leaves_table_figure_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    arguments = ["bench", "--shapes", "resnet20", "--repeats", "2", "--threads", "1", "--dtype", "float32"]
    assert cli.main([*arguments, "--out", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "steps: sgd: resnet20, 269,722 elements in 59 tensors, float32, 1 thread" in printed
    for package, names in {"optax": ("jax", "optax"), "pytorch_optimizer": ("pytorch_optimizer",)}.items():
        assert (f"{package} SAM sgd: left out" in " ".join(printed.split())) == bool(
            package == "optax" and peers.missing(*names)
        )
    with (tmp_path / "runs" / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(r["date"] and r["torch"] and r["cpu"] and r["cores"] and r["threads"] == "1" for r in rows)
    found = {(r["table"], r["candidate"]): r for r in rows if not r["against"]}
    assert int(found["steps", "sharpkern SAM sgd"]["bytes"]) == 40 * 269_722
    assert int(found["ops", "descend adamw"]["bytes"]) == 28 * 269_722
    assert float(found["import", "import sharpkern"]["p50"]) > 0
    for r in rows:
        assert float(r["p20"]) <= float(r["p50"]) <= float(r["p80"])
    pairs = {(r["candidate"], r["against"]) for r in rows if r["unit"] == "ratio"}
    assert ("sharpkern SAM sgd", "eager SAM sgd") in pairs
    assert ("ascend noise", "ascend identity") in pairs
    for name in ("roofline.pdf", "speedup.pdf", "speedup.png"):
        assert (tmp_path / "runs" / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "resnet19"], "shapes 'resnet19': wanted one of resnet20"),
        (["--dtype", "int8"], "dtype 'int8': wanted some of float32"),
        (["--threads", "0"], "threads=0: wanted 1 to"),
        (["--repeats", "-1"], "repeats=-1: wanted a number of turns"),
        (["--overhead", "--full"], "overhead takes the training steps of one network"),
        (["--device", "tpu"], "device='tpu': wanted cpu or cuda"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert f"sharpkern bench: {said}" in capsys.readouterr().err


@pytest.mark.skipif(len(provenance.affinity()) < 2, reason="one core")
def test_jax_is_measured_at_the_first_number_of_threads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(fresh, "import_seconds", lambda repeats: [1e-3])
    monkeypatch.setattr(peers, "missing", lambda *packages: None)
    monkeypatch.setattr(candidates, "_optax", lambda kind, base, pool: lambda: None)
    monkeypatch.setattr(peers, "pytorch_optimizer", lambda *a, **k: lambda: None)
    some = {"sgd": tuple(replace(c, make=lambda pool: lambda: None) for c in GROUPS["sgd"])}
    monkeypatch.setattr(suite, "GROUPS", some)
    arguments = ["--shapes", "3x50", "--repeats", "2", "--threads", "1", "2", "--dtype", "float16"]
    monkeypatch.setattr(suite.Bench.steps, "__defaults__", (("sgd",),))
    assert cli.main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    threads = [r["threads"] for r in rows]
    assert threads == sorted(threads, reverse=True)
    assert {r["threads"] for r in rows if r["candidate"] == "eager SAM sgd"} == {"1", "2"}
    assert {r["threads"] for r in rows if r["candidate"].startswith("optax")} == {"2"}
    assert [r["threads"] for r in rows if r["table"] == "import"] == ["2"]
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("optax SAM sgd", "optax in halves SAM sgd"):
        assert (
            f"{name}: left out, JAX keeps the threads of the first count in a process; run --threads 1 alone" in printed
        )
    assert printed.count("whole steps of float16: left out, they are measured in float32") == 1


def test_whatever_runs_in_jax_is_marked() -> None:
    assert {c.name for c in EVERY.values() if c.jax} == {name for name in EVERY if name.startswith("optax")} != set()


def test_the_most_threads_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "affinity", lambda: set(range(6)))
    assert options.Options(threads=(1, 4, 2, 4)).chosen_threads() == (4, 2, 1)
    assert options.Options(full=True).chosen_threads() == (6, 4, 2, 1)


@pytest.mark.parametrize(("dtypes", "told"), [((torch.float64, torch.float16), True), ((torch.bfloat16,), False)])
def test_dtypes_without_whole_steps_are_told(dtypes: tuple[torch.dtype, ...], told: bool) -> None:
    said: list[str] = []
    assert list(suite.Bench("cpu", 1, dtypes, 1, 1.0, False, said.append).steps("3x50", ())) == []
    names = ("float64", "float16") if told else ()
    assert said == [
        f"whole steps of {name}: left out, they are measured in float32 and bfloat16 only" for name in names
    ]


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["bench"], "from sharpkern import cli; sys.exit(cli.main())"),
        ([], "import runpy; runpy.run_path('bench/step.py', run_name='__main__')"),
    ],
    ids=["sharpkern bench", "bench/step.py"],
)
def test_a_csv_that_cannot_be_written_is_found_before_anything_is_measured(
    arguments: list[str], start: str, tmp_path: Path
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    for name in ("bench.csv", "cpu.csv"):
        (tmp_path / name).write_text("a,b\n")
    (tmp_path / "file").touch()
    program = f"""
import sys
from sharpkern.bench import suite
suite.Bench.ops = suite.Bench.steps = lambda *a: print("measured")
sys.argv = ["x", *{arguments!r}, "--shapes", "3x50", "--out", sys.argv[1]]
{start}
"""
    for out, said in ((tmp_path, "has the columns a,b: wanted date,cpu"), (tmp_path / "file" / "x", "Not a directory")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(out)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "measured" not in done.stdout
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


# Training steps -------------------------------------------------------------------------------------------------------


def tiny() -> torch.nn.Sequential:
    """A network that takes no time, with the same weights each time."""
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, overhead.CLASSES))


def test_the_network_is_the_one_whose_shapes_are_listed() -> None:
    network = overhead.resnet20()
    assert [tuple(p.shape) for p in network.parameters()] == find("resnet20")
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, overhead.CLASSES)


def test_training_steps_are_those_of_the_methods() -> None:
    pytest.importorskip("pytorch_optimizer")
    images = torch.randn(4, 3, 32, 32)
    after = {}
    for name, make in overhead.OPTIMIZERS.items():
        training = overhead.Training(tiny, images, partial(fast, make))
        for _ in range(3):
            training()
        after[name] = [p.detach() for p in training.network.parameters()]
        assert len(training.spent) == 3
    for same in ("eager SAM sgd", overhead.PEER):
        torch.testing.assert_close(after[same], after[overhead.SAM], rtol=1e-4, atol=1e-6)
    for other in (overhead.PLAIN, overhead.FISHER):
        assert float((after[other][0] - after[overhead.SAM][0]).abs().max()) > 1e-4


def fast(make: overhead.Make, params: Any) -> Any:
    """The optimizer with a learning rate at which three steps are seen."""
    optimizer = make(params)
    for group in getattr(optimizer, "base", optimizer).param_groups:
        group["lr"] = 0.1
    return optimizer


def test_the_time_of_the_optimizer_is_counted_apart() -> None:
    class Slow:
        def step(self) -> None:
            time.sleep(0.02)

    training = overhead.Training(tiny, torch.randn(4, 3, 32, 32), lambda params: Slow())
    begin = time.perf_counter()
    training()
    assert 0.02 <= training.spent[0] < time.perf_counter() - begin


def test_overhead_leaves_a_table_and_a_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(overhead, "measure", partial(overhead.measure, network=tiny, batch=4))
    monkeypatch.setattr(peers, "missing", lambda *packages: "pytorch_optimizer not installed")
    arguments = ["bench", "--overhead", "--repeats", "3", "--threads", "1", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "overhead: tiny, 4 images, 30,730 elements in 2 tensors, float32, 1 thread" in printed
    assert f"{overhead.PEER}: left out, pytorch_optimizer not installed" in printed
    assert "of SAM's time; [F] 5.7 has" in printed
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = {(r["group"], r["candidate"], r["against"]): r for r in csv.DictReader(file)}
    assert ("step", overhead.FISHER, overhead.SAM) in rows
    assert {candidate for _, candidate, _ in rows} == overhead.OPTIMIZERS.keys() - {overhead.PEER}
    for name in overhead.OPTIMIZERS.keys() - {overhead.PEER}:
        step, work, share = (float(rows[group, name, ""]["p50"]) for group in ("step", "optimizer", "share"))
        assert 0 < work < step
        assert 0 < share < 1
        assert f"{share:.2%}" in printed


def test_the_suite_of_ops_runs(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    chosen = [
        "-k",
        "float32-1e+03-1 and momentum",
        "-p",
        "no:cacheprovider",
        "--benchmark-json",
        str(tmp_path / "x.json"),
    ]
    command = [sys.executable, "-m", "pytest", "-q", "bench/test_ops.py", *chosen]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"percent_of_copy"' in (tmp_path / "x.json").read_text()
