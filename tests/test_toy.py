"""The toy of [F] 3.1 and [V] Fig. 1: the printed minima, who finds which, and what smoothing does."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from sharpkern.cli import main
from sharpkern.toy import SCENES, SMOOTHED, fisher, loss, minima, trajectory
from sharpkern.toy.loss import RHO


def points(count: int = 200) -> torch.Tensor:
    """Random (μ, σ), not near σ = 0."""
    draw = torch.Generator().manual_seed(3)
    return torch.rand(count, 2, generator=draw, dtype=torch.float64) * torch.tensor([80.0, 25.0]) + torch.tensor([
        -40.0,
        20.0,
    ])


def test_the_minima_are_the_printed_ones() -> None:
    flat, sharp = minima()
    assert flat.theta == pytest.approx((19.85, 29.95), abs=0.005)
    assert sharp.theta == pytest.approx((-15.94, 13.46), abs=0.005)
    assert (flat.loss, sharp.loss) == pytest.approx((0.51, 0.49), abs=0.005)
    assert (flat.trace, sharp.trace) == pytest.approx((0.001, 0.006), abs=0.0005)


def test_the_fisher_diagonal_is_that_of_a_gaussian() -> None:
    # the mean over the distribution of squared derivatives of the log-density
    theta = torch.tensor([3.0, 7.0], dtype=torch.float64)
    x = torch.linspace(-80, 86, 20001, dtype=torch.float64)
    normal = torch.distributions.Normal(*theta)
    score = torch.func.jacrev(lambda t: torch.distributions.Normal(t[0], t[1]).log_prob(x))(theta)
    mean = torch.trapezoid(normal.log_prob(x).exp()[:, None] * score**2, x, dim=0)
    torch.testing.assert_close(fisher(theta), mean)


@pytest.mark.parametrize("moved", [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
@pytest.mark.parametrize("name", SCENES)
def test_fisher_sam_alone_finds_the_flat_minimum(name: str, moved: tuple[float, float]) -> None:
    flat, sharp = minima()
    scene = SCENES[name]
    scene = dataclasses.replace(scene, start=(scene.start[0] + moved[0], scene.start[1] + moved[1]))
    assert scene.start[1] > 5
    ends = {method: trajectory(scene, method)[-1].theta for method in scene.rho}
    assert ends.pop("Fisher SAM") == pytest.approx(flat.theta, abs=0.05)
    assert len(ends) == 2
    for method, end in ends.items():
        assert end == pytest.approx(sharp.theta, abs=0.05), method


def test_a_probe_lies_on_the_edge_of_its_neighbourhood() -> None:
    for scene in SCENES.values():
        for method in scene.rho:
            for step in trajectory(scene, method)[:50]:
                if step.radii[0]:
                    length = sum((e / r) ** 2 for e, r in zip(step.probe, step.radii, strict=True))
                    assert length == pytest.approx(1.0), method
                else:
                    assert step.probe == (0.0, 0.0), method


def test_smoothed_losses() -> None:
    at = points()
    values = {title: smoothed(at) for title, smoothed in SMOOTHED.items()}
    plain, averaged, worst, linear = values.values()
    assert torch.equal(plain, loss(at))
    assert bool((worst >= plain).all())
    assert bool((worst >= linear - 0.02).all())  # which lies in the disc, between points of the grid
    draw = torch.Generator().manual_seed(5)
    noise = RHO / 2**0.5 * torch.randn(40000, 1, 2, generator=draw, dtype=torch.float64)
    samples = loss(at[:20] + noise)
    error = samples.std(0) / len(samples) ** 0.5
    assert bool(((averaged[:20] - samples.mean(0)).abs() < 5 * error).all())


def test_the_command_leaves_figures_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toy", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("the flat minimum") == 2
    assert printed.count("the sharp minimum") == 4
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{stem}.{ending}" for stem in ("paths", "smoothed") for ending in ("csv", "png", "pdf")}
    with (tmp_path / "paths.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["scene"], row["method"]) for row in rows} == {(n, m) for n, s in SCENES.items() for m in s.rho}
