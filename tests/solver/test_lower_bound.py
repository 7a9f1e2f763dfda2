"""Lower bounds: valid, tight enough to certify, and in agreement with what is known."""

import json
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from reference_solver import grid_to_graph, objective, optimum, random_graph, random_grid
from solver_instances import make_instance

from amwc_d2.solver_cython import (
    lower_bound,
    lower_bound_graph,
    solve_amwc,
    solve_amwc_graph,
    solve_mwc,
)

PROVEN = Path(__file__).parent / "instances" / "proven"


def _trivial(node_costs, edge_costs):
    return node_costs.min(1).sum(dtype=float) + np.minimum(edge_costs, 0).sum(dtype=float)


def _graph(problem):
    return tuple(problem[k] for k in ("node_costs", "edges", "edge_costs", "partitionable"))


@pytest.mark.parametrize("kind", ["mixed", "stuff", "things"])
def test_never_above_the_optimum_on_graphs(kind):
    rng = np.random.default_rng(21)
    closed = []
    for case in range(150):
        problem = random_graph(rng, max_nodes=9, max_classes=4)
        if kind != "mixed":
            problem["partitionable"][:] = kind == "things"
        value, bound = optimum(*_graph(problem))[0], lower_bound_graph(*_graph(problem))
        trivial = _trivial(problem["node_costs"], problem["edge_costs"])
        assert bound <= value, f"case {case}: {bound} above the optimum {value}"
        assert bound >= trivial - 1e-5, f"case {case}: {bound} below the trivial {trivial}"
        if value - trivial > 1e-4:
            closed.append((bound - trivial) / (value - trivial))
    assert np.mean(closed) > 0.9


@pytest.mark.parametrize("tight", [False, True])
def test_a_solution_guides_but_never_breaks_the_bound(tight):
    rng = np.random.default_rng(23)
    for case in range(200):
        problem = random_grid(rng, max_side=3, max_classes=5)
        costs = grid_to_graph(problem["node_costs"], problem["edge_costs"], problem["distances"])
        best = optimum(*costs, problem["partitionable"])[0]
        good = solve_amwc(**problem)
        bad = good._replace(segments=rng.integers(0, 3, good.segments.shape))
        for solution in (good, bad):
            bound = lower_bound(**problem, tight=tight, solution=solution)
            assert bound <= best, f"case {case}"
    made = make_instance("street", 48, 64, 0, "medium")
    solution = solve_amwc(*made.problem, method="good")
    plain, guided = (lower_bound(*made.problem, solution=s) for s in (None, solution))
    assert plain < guided <= solution.objective
    with pytest.raises(ValueError, match="segments: expected shape"):
        lower_bound(**problem, solution=solution)


@pytest.mark.parametrize("tight", [False, True])
def test_never_above_the_optimum_on_grids(tight):
    rng = np.random.default_rng(22)
    for case in range(300):
        problem = random_grid(rng, max_side=3, max_classes=5, scale=10.0 ** rng.integers(-6, 7))
        costs = grid_to_graph(problem["node_costs"], problem["edge_costs"], problem["distances"])
        bound = lower_bound(**problem, tight=tight)
        assert bound <= optimum(*costs, problem["partitionable"])[0], f"case {case}"
        trivial = _trivial(costs[0], costs[2])
        assert bound >= trivial - 1e-5 * abs(trivial), f"case {case}"


@pytest.mark.parametrize("seed", range(6))
def test_below_every_solution(seed):
    rng = np.random.default_rng(seed)
    problem = random_grid(rng, max_side=24, max_classes=9)
    loose, tight = lower_bound(**problem), lower_bound(**problem, tight=True)
    assert loose <= tight + 1e-3 * abs(tight)
    for method in ("greedy", "fast", "best"):
        assert max(loose, tight) <= solve_amwc(**problem, method=method).objective
    problem["partitionable"][:] = False
    bound = lower_bound(**problem)
    del problem["partitionable"]
    assert bound <= solve_mwc(**problem).objective


def test_exact_without_conflict():
    """Where the trivial bound is attained, so is this one (less its rounding allowance)."""
    rng = np.random.default_rng(23)
    node_costs = rng.normal(size=(3, 9, 11)).astype(np.float32)
    node_costs[1] -= 20
    edge_costs = np.abs(rng.normal(size=(2, 2, 9, 11))).astype(np.float32)
    expected = node_costs.min(0).sum(dtype=float)
    bound = lower_bound(node_costs, edge_costs, [1, 4], [True, True, False])
    assert bound <= expected and bound == pytest.approx(expected, rel=1e-9)


def test_repulsion_inside_stuff_is_paid():
    """One stuff class far ahead: every repulsive edge is uncut, and the bound knows."""
    rng = np.random.default_rng(24)
    node_costs = np.stack([np.full((8, 8), -50.0), np.full((8, 8), 50.0)]).astype(np.float32)
    edge_costs = rng.normal(size=(1, 2, 8, 8)).astype(np.float32)
    bound = lower_bound(node_costs, edge_costs, [1], [False, True])
    assert bound == pytest.approx(-50.0 * 64, rel=1e-6)


def test_conflicted_cycle_is_packed():
    """Triangle +2 +2 -1 of one thing class: the optimum is 0, the pairwise relaxation says -1."""
    edges = np.array([[0, 1], [1, 2], [0, 2]])
    costs = np.array([2, 2, -1], np.float32)
    bound = lower_bound_graph(np.zeros((3, 1), np.float32), edges, costs, [True])
    assert bound <= 0 and bound == pytest.approx(0, abs=1e-6)


def test_scale():
    rng = np.random.default_rng(25)
    problem = random_grid(rng, max_side=12)
    bound = lower_bound(**problem)
    for scale in (2.0**-20, 2.0**20):
        scaled = dict(problem)
        scaled["node_costs"] = problem["node_costs"] * np.float32(scale)
        scaled["edge_costs"] = problem["edge_costs"] * np.float32(scale)
        assert lower_bound(**scaled) == pytest.approx(scale * bound, rel=1e-6)


def test_bad_input():
    problem = random_grid(np.random.default_rng(26), max_side=4)
    with pytest.raises(ValueError, match="node_costs"):
        lower_bound(**{**problem, "node_costs": problem["node_costs"] * np.nan})
    with pytest.raises(ValueError, match="partitionable"):
        lower_bound(**{**problem, "partitionable": [True] * 99})
    with pytest.raises(ValueError, match="edges"):
        lower_bound_graph(np.zeros((2, 1), np.float32), [[0, 2]], np.zeros(1, np.float32), [True])


def test_interrupt(ctrl_c):
    """Ctrl-C ends a long search instead of waiting for it."""
    rng = np.random.default_rng(27)
    node_costs = rng.normal(size=(8, 128, 128)).astype(np.float32)
    edge_costs = rng.normal(0.3, 1, size=(4, 2, 128, 128)).astype(np.float32)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        lower_bound(node_costs, edge_costs, [1, 2, 4, 8], np.ones(8, bool), tight=True)
    timer.join()


def test_proven_instances():
    """Never above a proven optimum; more than four fifths of the trivial bound's gap closed."""
    for path in sorted(PROVEN.glob("*.json")):
        data = json.loads(path.read_text())
        node_costs = np.array(data["node_costs"], np.float32)
        edges, edge_costs = np.array(data["edges"]), np.array(data["edge_costs"], np.float32)
        # The optimal labelling under the costs as rounded to float32.
        labels, clusters = np.array(data["labels"]), np.array(data["clusters"])
        value = objective(node_costs, edges, edge_costs, labels, clusters)
        bound = lower_bound_graph(node_costs, edges, edge_costs, data["partitionable"])
        trivial = _trivial(node_costs, edge_costs)
        assert bound <= value, path.name
        assert bound - trivial >= 0.8 * (value - trivial), path.name
        found = solve_amwc_graph(node_costs, edges, edge_costs, data["partitionable"])
        assert bound <= found.objective, path.name


def test_proven_grids():
    for path in sorted(PROVEN.glob("grid*.json")):
        data = json.loads(path.read_text())
        height, width, count = map(int, re.findall(r"\d+", path.name)[:3])
        distances = [1, 4, 16][:count]
        node_costs = np.array(data["node_costs"], np.float32).T.reshape(-1, height, width)
        edge_costs = np.zeros((count, 2, height, width), np.float32)
        for (i, j), cost in zip(data["edges"], data["edge_costs"]):
            (y, x), step = divmod(min(i, j), width), abs(i - j)
            direction = int(step % width == 0)
            distance = step // width if direction else step
            edge_costs[distances.index(distance), direction, y, x] = cost
        trivial = _trivial(np.array(data["node_costs"]), np.array(data["edge_costs"]))
        gap = data["optimum"] - trivial
        arguments = (node_costs, edge_costs, distances, data["partitionable"])
        loose, tight = lower_bound(*arguments), lower_bound(*arguments, tight=True)
        assert loose <= data["optimum"] + 1e-4 and tight <= data["optimum"] + 1e-4, path.name
        assert loose - trivial >= 0.9 * gap, path.name
        assert tight - trivial >= 0.97 * gap, path.name
