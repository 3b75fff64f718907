"""A run that is saved, loaded and resumed equals the run that was not interrupted, bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from oracles import (
    VARIANTS,
    Adam,
    Sgd,
    build,
    closure_of,
    give_gradients,
    largest_gap,
    network_loss,
    network_weights,
    parameters,
    run,
    same,
    value_and_gradients,
)

import sharpkern

SEED = 70
BASES = ["sgd-dampening", "adam-decay", "adamw"]
DTYPES = [torch.float32, torch.bfloat16]


def through_a_file(state: Any) -> Any:
    """Save and load with torch's safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def state_tensors(optimizer: Any) -> dict[str, list[torch.Tensor]]:
    """Return the tensors of the optimizer's state by name, in parameter order."""
    found: dict[str, list[torch.Tensor]] = {}
    for _, entries in sorted(optimizer.state_dict()["state"].items()):
        for name, value in entries.items():
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(variant: str, base: str, dtype: torch.dtype, backend: str) -> None:
    whole = parameters(network_weights(SEED, dtype))
    expected = run(build(sharpkern, variant, base, whole, backend), whole, SEED, range(8))

    params = parameters(network_weights(SEED, dtype))
    optimizer = build(sharpkern, variant, base, params, backend)
    run(optimizer, params, SEED, range(3))
    saved = through_a_file({"weights": [p.detach() for p in params], "optimizer": optimizer.state_dict()})

    others = parameters(network_weights(SEED + 1, dtype))
    resumed = build(sharpkern, variant, base, others, backend, rho=9.0, lr=9.0)
    for p, w in zip(others, saved["weights"], strict=True):
        p.data.copy_(w)
    resumed.load_state_dict(saved["optimizer"])
    assert {k: same(v, state_tensors(optimizer)[k]) for k, v in state_tensors(resumed).items()} == dict.fromkeys(
        state_tensors(optimizer), True
    )
    assert same(run(resumed, others, SEED, range(3, 8)), expected)


@pytest.mark.parametrize("base", ["sgd-nesterov", "adamw"])
def test_loading_into_an_optimizer_that_has_stepped_replaces_its_state(base: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "fisher-average", base, params, backend)
    fresh, start = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    expected = run(optimizer, params, SEED, range(3))
    optimizer.load_state_dict(fresh)
    for p, w in zip(params, start, strict=True):
        p.data.copy_(w)
    assert same(run(optimizer, params, SEED, range(3)), expected)


def test_a_loaded_state_is_a_copy(backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", "adamw", params, backend)
    run(optimizer, params, SEED, range(2))
    saved = optimizer.state_dict()
    kept, others = copy.deepcopy(saved), parameters(network_weights(SEED))
    other = build(sharpkern, "sam", "adamw", others, backend)
    other.load_state_dict(saved)
    run(other, others, SEED, range(3))
    for index, entries in kept["state"].items():
        assert all(torch.equal(saved["state"][index][name], value) for name, value in entries.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("base", "names"),
    [("sgd-momentum", {"momentum_buffer"}), ("adam", {"exp_avg", "exp_avg_sq", "step"}), ("sgd", set())],
)
def test_state_has_torchs_names_and_float32_at_least(
    base: str, names: set[str], dtype: torch.dtype, backend: str
) -> None:
    params = parameters(network_weights(SEED, dtype))
    optimizer = build(sharpkern, "fisher-average", base, params, backend)
    run(optimizer, params, SEED, range(3))
    for state in (state_tensors(optimizer), state_tensors_after_loading(optimizer, base, dtype, backend)):
        assert set(state) - {"step"} == (names | {"fisher"}) - {"step"}
        assert "step" in state or "step" not in names
        for name, values in state.items():
            if name == "step":
                assert all(v.shape == () and v.item() == 3 for v in values)
                continue
            assert {v.dtype for v in values} == {torch.promote_types(dtype, torch.float32)}
            assert [v.shape for v in values] == [p.shape for p in params]


def state_tensors_after_loading(optimizer: Any, base: str, dtype: torch.dtype, backend: str) -> Any:
    """Return the state as a fresh optimizer has it after loading: torch would cast it to the weight's dtype."""
    fresh = build(sharpkern, "fisher-average", base, parameters(network_weights(SEED, dtype)), backend)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    return state_tensors(fresh)


PLAIN: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, Sgd(0.05, 0.9)),
    "adam": (torch.optim.Adam, {"lr": 0.02}, Adam(0.02)),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}, Adam(0.02, weight_decay=0.1, decoupled=True)),
}


@pytest.mark.parametrize("variant", ["sam", "asam", "fisher-average"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_checkpoint_of_the_plain_base_optimizer_loads(name: str, variant: str, backend: str) -> None:
    """Its moments are continued and rho stays what the new optimizer was given."""
    torch_class, options, base = PLAIN[name]
    params = parameters(network_weights(SEED))
    plain = torch_class(params, **options)
    oracle = VARIANTS[variant].oracle(params, base)
    for step in range(4):
        plain.step(closure_of(plain, params, network_loss(SEED, step)))
        oracle.descend(value_and_gradients(network_loss(SEED, step), oracle.w)[1])
    row = VARIANTS[variant]
    optimizer = getattr(sharpkern, row.name)(params, torch_class, backend=backend, **row.arguments(params), lr=7.0)
    optimizer.load_state_dict(through_a_file(plain.state_dict()))
    assert optimizer.param_groups[0]["rho"] == row.rho
    assert optimizer.param_groups[0]["lr"] == options["lr"]
    for step in range(4, 8):
        oracle.step(network_loss(SEED, step))
    assert largest_gap(run(optimizer, params, SEED, range(4, 8)), oracle.w) < 1e-5


@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("change", ["fewer", "more", "groups", "shape"])
def test_a_state_of_another_shape_is_refused_and_changes_nothing(change: str, base: str, backend: str) -> None:
    weights = network_weights(SEED)
    other: Any = {
        "fewer": weights[:-1],
        "more": [*weights, torch.ones(2)],
        "groups": weights,
        "shape": [weights[0].T.contiguous(), *weights[1:]],
    }[change]
    theirs = parameters(other)
    groups: Any = [{"params": theirs[:2]}, {"params": theirs[2:]}] if change == "groups" else theirs
    donor = build(sharpkern, "fisher-average", base, groups, backend)
    give_gradients(theirs, SEED, 1)
    donor.first_step()
    donor.second_step()

    params, twins = parameters(weights), parameters(weights)
    optimizer, untouched = (build(sharpkern, "fisher-average", base, p, backend) for p in (params, twins))
    for one, at in ((optimizer, params), (untouched, twins)):
        run(one, at, SEED, range(2))
    with pytest.raises(ValueError, match=r"(?i)shape|number|size|group|parameter"):
        optimizer.load_state_dict(donor.state_dict())
    assert same(run(optimizer, params, SEED, range(2, 4)), run(untouched, twins, SEED, range(2, 4)))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("variant", ["sam", "asam", "fisher-average"])
def test_a_copy_of_model_and_optimizer_goes_on_alike_and_apart(how: str, variant: str, base: str, backend: str) -> None:
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, variant, base, params, backend)
    run(optimizer, params, SEED, range(2))
    params_copy, optimizer_copy = COPIES[how]((params, optimizer))
    before = [p.detach().clone() for p in params_copy]
    expected = run(optimizer, params, SEED, range(2, 5))
    assert same(params_copy, before)
    assert same(run(optimizer_copy, params_copy, SEED, range(2, 5)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrapped_base_is_saved_too(dtype: torch.dtype, backend: str) -> None:
    def start() -> tuple[Any, Any]:
        params = parameters(network_weights(SEED, dtype))
        options: dict[str, Any] = {"lr": 0.01, "momentum": 0.5}
        return sharpkern.FisherSAM(params, torch.optim.RMSprop, fisher="average", backend=backend, **options), params

    expected = run(*start(), SEED, range(6))
    first, params = start()
    run(first, params, SEED, range(3))
    second, others = start()
    for p, w in zip(others, params, strict=True):
        p.data.copy_(w.detach())
    second.load_state_dict(through_a_file(first.state_dict()))
    assert {x.dtype for x in state_tensors(second)["fisher"]} == {torch.float32}
    assert same(run(second, others, SEED, range(3, 6)), expected)


def test_a_scheduler_is_resumed_with_the_optimizer(backend: str) -> None:
    def start() -> tuple[Any, Any, Any]:
        params = parameters(network_weights(SEED))
        optimizer = build(sharpkern, "asam", "sgd-momentum", params, backend)
        return params, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)

    def go(params: Any, optimizer: Any, schedule: Any, steps: range) -> None:
        for step in steps:
            run(optimizer, params, SEED, range(step, step + 1))
            schedule.step()

    whole, cut, rest = start(), start(), start()
    go(*whole, range(8))
    go(*cut, range(4))
    for p, w in zip(rest[0], cut[0], strict=True):
        p.data.copy_(w.detach())
    rest[1].load_state_dict(through_a_file(cut[1].state_dict()))
    rest[2].load_state_dict(cut[2].state_dict())
    go(*rest, range(4, 8))
    assert same(rest[0], whole[0])


@pytest.mark.parametrize("what", ["group", "scaler", "moved"])
def test_noise_goes_on_where_it_was(what: str, backend: str) -> None:
    """Also where the plan of the launches is made anew: the next noise is none that was drawn before."""
    params = parameters([torch.zeros(40)])
    optimizer = sharpkern.RandomSAM(params, rho=1.0, lr=0.0, backend=backend)
    seen = []
    for k in range(6):
        if k == 3 and what == "group":
            optimizer.add_param_group({"params": parameters([torch.zeros(3)])})
        elif k == 3 and what == "scaler":
            optimizer.scaler = torch.amp.grad_scaler.GradScaler("cpu")
        give_gradients(params, k)
        optimizer.first_step()
        seen.append(params[0].detach() / params[0].detach().norm())
        if k == 2 and what == "moved":
            params[0].data = params[0].data.clone()
            with pytest.raises(RuntimeError, match="moved"):
                optimizer.second_step()
        else:
            optimizer.second_step()
        if what == "scaler" and k >= 3:
            optimizer.scaler.update()  # type: ignore[union-attr]
    assert optimizer.state_dict()["param_groups"][0]["draws"] == 6
    gaps = [float((x - y).norm()) for i, x in enumerate(seen) for y in seen[:i]]
    assert min(gaps) > 0.1


@pytest.mark.parametrize("copied", [False, True])
def test_a_checkpoint_for_the_base_optimizer_goes_to_the_optimizer(copied: bool, backend: str) -> None:
    params = parameters([torch.ones(3)])
    optimizer = sharpkern.SAM(params, lr=0.1, momentum=0.9, backend=backend)
    optimizer = copy.deepcopy(optimizer) if copied else optimizer
    plain = torch.optim.SGD(parameters([torch.ones(3)]), lr=0.05, momentum=0.9).state_dict()
    with pytest.raises(RuntimeError, match="sharpness-aware optimizer"):
        optimizer.base_optimizer.load_state_dict(plain)  # type: ignore[union-attr]
    assert optimizer.base_optimizer.param_groups is optimizer.param_groups  # type: ignore[union-attr]
    optimizer.load_state_dict(plain)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
