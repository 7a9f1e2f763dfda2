"""The solver against literal Algorithm 2 and against exhaustive optima."""

import numpy as np
import pytest
from reference_solver import (
    algorithm2,
    canonical,
    grid_to_graph,
    is_feasible,
    objective,
    optimum,
    optimum_by_enumeration,
    random_graph,
    random_grid,
)

from amwc_d2.solver_cython import (
    amwc_objective,
    amwc_objective_graph,
    solve_amwc,
    solve_amwc_graph,
    solve_amwc_graph_batch,
    solve_mwc,
    solve_mwc_graph,
)

# Steps of the costs: 0 leaves them continuous; coarse steps are exact in float32 and make ties
# common, so that the tie rules are compared too.
STEPS = [0, 1 / 64, 1 / 2]


def _rounded(problem, step):
    if step:
        for name in ("node_costs", "edge_costs"):
            problem[name] = (np.round(problem[name] / step) * step).astype(np.float32)
    return problem


def _as_graph(problem):
    if "edges" in problem:
        return tuple(problem[k] for k in ("node_costs", "edges", "edge_costs", "partitionable"))
    costs = grid_to_graph(problem["node_costs"], problem["edge_costs"], problem["distances"])
    return (*costs, problem["partitionable"])


def _assert_same(solution, expected, case):
    classes, segments, value = expected
    np.testing.assert_array_equal(solution.classes.ravel(), classes, err_msg=case)
    np.testing.assert_array_equal(canonical(solution.segments).ravel(), segments, err_msg=case)
    assert solution.objective == pytest.approx(value, rel=1e-6, abs=1e-4), case


@pytest.mark.parametrize("step", STEPS)
def test_greedy_equals_literal_algorithm2_on_grids(step):
    rng = np.random.default_rng(11)
    for case in range(400):
        problem = _rounded(random_grid(rng, max_side=12, max_classes=8), step)
        solution = solve_amwc(**problem, method="greedy")
        _assert_same(solution, algorithm2(*_as_graph(problem)), f"case {case}, step {step}")


@pytest.mark.parametrize("step", STEPS)
def test_greedy_equals_literal_algorithm2_on_graphs(step):
    rng = np.random.default_rng(12)
    for case in range(400):
        problem = _rounded(random_graph(rng, max_nodes=60), step)
        solution = solve_amwc_graph(**problem, method="greedy")
        _assert_same(solution, algorithm2(*_as_graph(problem)), f"case {case}, step {step}")


def test_greedy_with_dropped_costs():
    """Cost dropout sets a tenth of the costs to zero: many exact ties."""
    rng = np.random.default_rng(13)
    for case in range(200):
        problem = random_grid(rng, max_side=10)
        for name in ("node_costs", "edge_costs"):
            problem[name][rng.random(problem[name].shape) < 0.1] = 0
        solution = solve_amwc(**problem, method="greedy")
        _assert_same(solution, algorithm2(*_as_graph(problem)), f"case {case}")


@pytest.mark.parametrize("method", ["greedy", "fast", "best"])
def test_never_below_the_optimum_on_graphs(method):
    rng = np.random.default_rng(14)
    reached = 0
    for case in range(200):
        problem = random_graph(rng, max_nodes=8, max_classes=4)
        value = optimum(*_as_graph(problem))[0]
        solution = solve_amwc_graph(**problem, method=method)
        assert solution.objective >= value - 1e-5, f"case {case}"
        reached += solution.objective <= value + 1e-5
    assert reached >= 120, f"{method} found {reached} of 200 optima"


@pytest.mark.parametrize("method", ["greedy", "fast", "best"])
def test_never_below_the_optimum_on_grids(method):
    rng = np.random.default_rng(15)
    for case in range(200):
        problem = random_grid(rng, max_side=3, max_classes=4)
        value, classes, segments = optimum(*_as_graph(problem))
        solution = solve_amwc(**problem, method=method)
        assert is_feasible(solution.classes, solution.segments, problem["partitionable"])
        assert solution.objective >= value - 1e-5, f"case {case}"
        shape = problem["node_costs"].shape[1:]
        own = amwc_objective(
            problem["node_costs"],
            problem["edge_costs"],
            problem["distances"],
            classes.reshape(shape),
            segments.reshape(shape),
        )
        assert own == pytest.approx(value, abs=1e-5)


def test_mwc_never_below_the_optimum():
    rng = np.random.default_rng(16)
    reached = 0
    for case in range(200):
        problem = random_grid(rng, max_side=3, max_classes=4)
        problem["partitionable"][:] = False
        value = optimum(*_as_graph(problem))[0]
        del problem["partitionable"]
        solution = solve_mwc(**problem)
        assert solution.objective >= value - 1e-5, f"case {case}"
        reached += solution.objective <= value + 1e-5
    assert reached >= 120, f"{reached} of 200 optima"


def test_two_cars_of_one_class():
    """The worked example of the method: things may split, stuff may not."""
    edges = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
    costs = np.array([2, -3, 2, -1], np.float32)
    nodes = np.tile(np.array([1, -1], np.float32), (4, 1))
    solution = solve_amwc_graph(nodes, edges, costs, [False, True], method="greedy")
    assert solution.objective == pytest.approx(-8)
    assert solution.segments.tolist() == [0, 0, 1, 1]
    stuff = solve_amwc_graph(nodes, edges, costs, [False, False], method="greedy")
    assert stuff.objective == pytest.approx(-4) and stuff.segments.max() == 0


def test_parallel_edges_are_always_added():
    """Merging 0 and 1 makes edges 0-2 (+1) and 1-2 (-3) one edge of cost -2: 2 stays apart."""
    edges = np.array([[0, 1], [0, 2], [1, 2]])
    solution = solve_amwc_graph(
        np.zeros((3, 1), np.float32), edges, np.array([5, 1, -3], np.float32), [True]
    )
    assert solution.segments.tolist() == [0, 0, 1]
    assert solution.objective == pytest.approx(-2)


def test_ties_at_zero_merge():
    solution = solve_amwc_graph(
        np.zeros((2, 1), np.float32), np.array([[0, 1]]), np.zeros(1, np.float32), [True]
    )
    assert solution.segments.tolist() == [0, 0]


def test_exhaustive_optimum_equals_enumeration():
    rng = np.random.default_rng(17)
    for _ in range(30):
        problem = _as_graph(random_graph(rng, max_nodes=5, max_classes=3))
        value, classes, segments = optimum(*problem)
        assert value == pytest.approx(optimum_by_enumeration(*problem), abs=1e-9)
        assert objective(*problem[:3], classes, segments) == pytest.approx(value, abs=1e-9)
        assert is_feasible(classes, segments, problem[3])


def test_graphs_fast_objective_batch_and_multiway_cut():
    rng = np.random.default_rng(18)
    problems = [random_graph(rng, max_classes=3) for _ in range(60)]
    for problem in problems:
        problem["partitionable"] = problem["partitionable"][:1].repeat(
            problem["node_costs"].shape[1]
        )
        nodes, edges, costs = (problem[k] for k in ("node_costs", "edges", "edge_costs"))
        greedy, fast, best = (
            solve_amwc_graph(**problem, method=method) for method in ("greedy", "fast", "best")
        )
        assert best.objective <= fast.objective + 1e-5 and fast.objective <= greedy.objective + 1e-5
        own = objective(nodes, edges, costs, fast.classes, fast.segments)
        value = amwc_objective_graph(nodes, edges, costs, fast.classes, fast.segments)
        assert value == pytest.approx(own, abs=1e-4) and value == pytest.approx(fast.objective)
        cut = solve_mwc_graph(nodes, edges, costs)
        assert is_feasible(cut.classes, cut.segments, np.zeros(nodes.shape[1], bool))
        if len(nodes) <= 9:
            assert (
                cut.objective
                >= optimum(nodes, edges, costs, np.zeros(nodes.shape[1], bool))[0] - 1e-4
            )
    same = [p for p in problems if p["node_costs"].shape[1] == 3 and p["partitionable"][0]]
    lists = [[p[k] for p in same] for k in ("node_costs", "edges", "edge_costs")]
    for solution, problem in zip(
        solve_amwc_graph_batch(*lists, [True] * 3, "fast", num_threads=2), same
    ):
        alone = solve_amwc_graph(**problem, method="fast")
        np.testing.assert_array_equal(solution.segments, alone.segments)


def test_multicut_without_classes():
    """One class of things that costs nothing: equal to the optimal partition on tiny graphs."""
    rng = np.random.default_rng(19)
    for _ in range(60):
        problem = random_graph(rng, max_nodes=7)
        nodes = np.zeros((len(problem["node_costs"]), 1), np.float32)
        graph = nodes, problem["edges"], problem["edge_costs"], np.array([True])
        best = solve_amwc_graph(*graph, method="best")
        assert best.objective == pytest.approx(optimum(*graph)[0], abs=1e-4)
        assert (best.classes == 0).all()
