"""The solver's tools: instances, peers, benchmark, pictures."""

import json
import subprocess
import sys

import numpy as np
import pytest
from reference_solver import is_feasible
from solver_instances import make_instance, panoptic_quality
from solver_peers import with_classes

from amwc_d2.solver_cython import solve_amwc


@pytest.mark.parametrize("kind", ["street", "objects"])
def test_instances(kind):
    instance = make_instance(kind, 48, 64, 5, "medium")
    again = make_instance(kind, 48, 64, 5, "medium")
    for one, other in zip(instance, again):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(instance.segments, make_instance(kind, 48, 64, 6, "easy").segments)
    assert is_feasible(instance.classes, instance.segments, instance.partitionable)
    assert panoptic_quality(instance, instance.classes, instance.segments) == 1.0
    one_segment = np.zeros_like(instance.segments)
    assert panoptic_quality(instance, one_segment, one_segment) < 0.1
    solution = solve_amwc(*instance.problem)
    cheapest = instance.node_costs.argmin(0)
    by_class = panoptic_quality(instance, cheapest, cheapest)
    assert panoptic_quality(instance, solution.classes, solution.segments) > by_class


def test_peers_get_the_best_classes():
    instance = make_instance("street", 32, 48, 0, "easy")
    classes, segments = with_classes(instance, instance.segments)
    assert is_feasible(classes, segments, instance.partitionable)
    for segment in np.unique(instance.segments):
        chosen = instance.segments == segment
        assert len(np.unique(classes[chosen])) == 1
        sums = instance.node_costs[:, chosen].sum(1, dtype=float)
        assert sums[classes[chosen][0]] == sums.min()


@pytest.mark.slow
def test_benchmark_and_pictures(repository, tmp_path):
    """The benchmark's figures are those of the solver, and the pictures can be drawn from them."""
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        "tools/benchmarks/benchmark_solver.py",
        "--repeats",
        "1",
        "--no-memory",
    ]
    command += ["--sections", "table", "refinement", "scaling", "warm", "scenes", "--json", figures]
    command += ["--instances", "street_24x32_easy_0", "--scaling-sizes", "1", "--scenes", "2"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: a bar about time was missed
    assert "closes" in done.stdout and "zero perturbation" in done.stdout
    data = json.loads(figures.read_text())
    rows = {row["method"]: row for row in data["table"]}
    assert rows["lower_bound"]["objective"] <= rows["best"]["objective"]
    assert rows["best"]["objective"] <= rows["fast"]["objective"] + 1e-3
    assert rows["greedy"]["removed"] == 0 and rows["fast"]["gap"] >= 0
    page = tmp_path / "solver.md"
    page.write_text("before\n<!-- figures -->\nstale\n<!-- end of figures -->\nafter\n")
    draw = [sys.executable, "tools/benchmarks/plot_solver.py", figures, "--output", tmp_path]
    subprocess.run(draw, cwd=repository, check=True, capture_output=True)
    for name in ("example", "scaling", "tradeoff"):
        assert (tmp_path / f"solver_{name}.png").stat().st_size < 150_000
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert f"| {rows['fast']['objective']:.1f} |" in text


def test_benchmark_refuses_unknown_instances(repository):
    command = [
        sys.executable,
        "tools/benchmarks/benchmark_solver.py",
        "--instances",
        "moon_1x1_easy_0",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode != 0 and "KIND_HxW_LEVEL_SEED" in done.stderr
