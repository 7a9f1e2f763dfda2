"""Offset lists and volumes: equal to the literal reference, and to axis distances said in offsets.

Shapes: K classes, O offsets, H x W pixels, D planes.
"""

import numpy as np
import pytest
from reference_solver import (
    algorithm2,
    canonical,
    grid_to_graph,
    is_feasible,
    objective,
    optimum,
    random_offsets,
)

from amwc_d2.solver_cython import (
    amwc_objective,
    lower_bound,
    refine_labels,
    solve_amwc,
    solve_amwc_batch,
    solve_mwc,
)

# The default run looks at the first problems, 'make test-all' at a thousand of each kind.
CASES = [range(100), pytest.param(range(100, 1000), marks=pytest.mark.slow)]


def _graph(problem):
    return grid_to_graph(problem["node_costs"], problem["edge_costs"], problem["distances"])


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("dims", [2, 3])
def test_greedy_equals_literal_algorithm2(dims, cases):
    for case in cases:
        rng = np.random.default_rng([dims, case])
        problem = random_offsets(rng, dims, max_side=9 if dims == 2 else 5)
        if case % 2:  # steps that are exact in float32 make ties
            for name in ("node_costs", "edge_costs"):
                problem[name] = (np.round(problem[name] * 4) / 4).astype(np.float32)
        solution = solve_amwc(**problem, method="greedy")
        classes, segments, value = algorithm2(*_graph(problem), problem["partitionable"])
        np.testing.assert_array_equal(solution.classes.ravel(), classes, err_msg=f"case {case}")
        np.testing.assert_array_equal(
            canonical(solution.segments).ravel(), segments, err_msg=f"case {case}"
        )
        assert solution.objective == pytest.approx(value, rel=1e-6, abs=1e-4), f"case {case}"


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_method_lies_between_the_bound_and_what_it_reports(dims, cases):
    """The optimum is known by enumeration; no method may claim less, no bound more."""
    reached = 0
    for case in cases:
        rng = np.random.default_rng([dims, case, 1])
        problem = random_offsets(rng, dims, max_side=4, max_classes=3, pixels=8)
        graph, partitionable = _graph(problem), problem["partitionable"]
        best = optimum(*graph, partitionable)[0]
        assert lower_bound(**problem) <= best and lower_bound(**problem, tight=True) <= best
        for method in ("greedy", "fast", "good", "best"):
            s = solve_amwc(**problem, method=method)
            assert s.classes.shape == s.segments.shape == problem["node_costs"].shape[1:]
            assert is_feasible(s.classes, s.segments, partitionable), f"case {case}, {method}"
            own = objective(*graph, s.classes.ravel(), s.segments.ravel())
            assert s.objective == pytest.approx(own, rel=1e-6, abs=1e-4), f"case {case}, {method}"
            assert s.objective >= best - 1e-4, f"case {case}, {method}"
        reached += s.objective <= best + 1e-4
    assert reached >= 0.95 * len(cases)


def _said_in_offsets(problem, sign):
    """The same problem with axis distances said in offsets, to the first end or to the second."""
    offsets = [(0, d) if axis == 0 else (d, 0) for d in problem["distances"] for axis in (0, 1)]
    costs = problem["edge_costs"].reshape(-1, *problem["edge_costs"].shape[2:])
    moved = np.full_like(costs, 99)  # what has no other end is never read
    height, width = costs.shape[1:]
    for layer, (dy, dx) in enumerate(offsets):
        if dy < height and dx < width:
            at = np.s_[: height - dy, : width - dx] if sign > 0 else np.s_[dy:, dx:]
            moved[layer][at] = costs[layer, : height - dy, : width - dx]
    offsets = [(sign * dy, sign * dx) for dy, dx in offsets]
    return {**problem, "distances": offsets, "edge_costs": moved}


@pytest.mark.parametrize("sign", [1, -1])
def test_axis_distances_are_offsets(sign):
    """To the bit: the steps of the solver are the same ones."""
    from reference_solver import random_grid

    rng = np.random.default_rng(3)
    for case in range(60):
        problem = random_grid(rng, max_side=30)
        other = _said_in_offsets(problem, sign)
        for method in ("greedy", "fast")[:: 1 if sign > 0 else -1][: 2 if sign > 0 else 1]:
            a, b = solve_amwc(**problem, method=method), solve_amwc(**other, method=method)
            np.testing.assert_array_equal(a.segments, b.segments, err_msg=f"{case} {method}")
            np.testing.assert_array_equal(a.classes, b.classes)
            assert a.objective == b.objective
        assert lower_bound(**problem) == lower_bound(**other)
        del problem["partitionable"], other["partitionable"]
        assert solve_mwc(**problem).objective == solve_mwc(**other).objective


def test_a_volume_of_one_plane_is_an_image():
    rng = np.random.default_rng(4)
    for _ in range(20):
        image = random_offsets(rng, max_side=20)
        volume = {
            **image,
            "node_costs": image["node_costs"][:, None],
            "edge_costs": image["edge_costs"][:, None],
            "distances": [(0, *offset) for offset in image["distances"]],
        }
        a, b = solve_amwc(**image), solve_amwc(**volume)
        np.testing.assert_array_equal(a.segments, b.segments[0])
        assert a.objective == b.objective and lower_bound(**image) == lower_bound(**volume)


def _balls(rng, shape, offsets, noise):
    """Affinities of balls that touch, one class of things and one of stuff around them."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    truth = np.zeros(shape, int)
    for ball in range(1, 9):
        centre, radius = rng.integers(0, shape), rng.integers(3, 7)
        truth[((grid - centre) ** 2).sum(-1) < radius**2] = ball
    nodes = rng.normal(0, noise, (2, *shape))
    nodes += np.where((truth > 0) == np.array([0, 1]).reshape(2, *[1] * len(shape)), -1, 1)
    edges = rng.normal(0, noise, (len(offsets), *shape))
    for layer, offset in enumerate(offsets):
        other = np.roll(truth, [-o for o in offset], range(len(shape)))
        edges[layer] += np.where(other == truth, 1, -1)
    return nodes.astype(np.float32), edges.astype(np.float32), truth


@pytest.mark.parametrize(
    "shape, offsets",
    [
        ((40, 56), [(0, -1), (-1, 0), (-1, 1), (-1, -1), (-5, 4), (0, -7), (6, 0)]),
        ((12, 21, 26), [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2, 3, -3), (0, 4, -4), (-3, 0, 0)]),
        ((9, 16, 18), [(1, 0, 0), (2, 1, 1)]),  # nothing joins the pixels of a plane
    ],
)
def test_fast_finds_what_greedy_finds_on_larger_grids(shape, offsets):
    """Tiles, pieces and moves at a size where they all take part; diagonals and planes included."""
    rng = np.random.default_rng(5)
    nodes, edges, _ = _balls(rng, shape, offsets, 0.8)
    problem = (nodes, edges, offsets, [False, True])
    fast, greedy = solve_amwc(*problem), solve_amwc(*problem, method="greedy")
    for s in (fast, greedy):
        assert is_feasible(s.classes, s.segments, np.array([False, True]))
        assert amwc_objective(*problem[:3], s.classes, s.segments) == pytest.approx(s.objective)
        costs = grid_to_graph(nodes, edges, offsets)
        own = objective(*costs, s.classes.ravel(), s.segments.ravel())
        assert s.objective == pytest.approx(own, rel=1e-6)
    assert fast.objective <= greedy.objective + 0.002 * abs(greedy.objective)
    assert lower_bound(*problem) <= fast.objective
    mwc = solve_mwc(nodes, edges, offsets)
    again = solve_mwc(nodes, edges, offsets, init=mwc.classes)
    np.testing.assert_array_equal(again.classes, mwc.classes)


def test_diagonal_offsets_close_triangles():
    """A repulsive diagonal over two attractive sides: one of the three must give way."""
    nodes, edges = np.zeros((1, 2, 2), np.float32), np.zeros((3, 2, 2), np.float32)
    edges[0, 0, 0], edges[1, 0, 1], edges[2, 0, 0] = 2, 3, -1  # right, then down; the diagonal
    problem = (nodes, edges, [(0, 1), (1, 0), (1, 1)], [True])
    solution = solve_amwc(*problem)
    assert solution.objective == pytest.approx(0)
    assert lower_bound(*problem) == pytest.approx(0, abs=1e-5)


def test_batches_take_volumes():
    rng = np.random.default_rng(6)
    offsets = [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    made = [_balls(rng, (4, 9, 8 + i), offsets, 1.0) for i in range(3)]
    batch = solve_amwc_batch([m[0] for m in made], [m[1] for m in made], offsets, [0, 1])
    for (nodes, edges, _), solution in zip(made, batch):
        alone = solve_amwc(nodes, edges, offsets, [0, 1])
        np.testing.assert_array_equal(solution.segments, alone.segments)


@pytest.mark.parametrize(
    "shape, distances, message",
    [
        ((1, 4, 4), [(0, 1), (0, 0)], "offset 1 is (0, 0)"),
        ((1, 4, 4), [(0, 1), (1, 0), (0, -1)], "offsets 0 and 2"),
        ((1, 4, 4), [(0, 0, 1)], "(dy, dx)"),
        ((1, 4, 4, 4), [1, 2], "(dz, dy, dx)"),
        ((1, 4, 4, 4), [(0, 1)], "(dz, dy, dx)"),
        ((1, 4, 4), [1, 1], "distinct ints"),
    ],
)
def test_bad_offsets_are_named(shape, distances, message):
    edges = np.zeros((len(distances), *shape[1:]), np.float32)
    with pytest.raises(ValueError) as caught:
        solve_amwc(np.zeros(shape, np.float32), edges, distances, [True])
    assert message in str(caught.value)


def test_edge_costs_must_fit_the_offsets():
    with pytest.raises(ValueError, match="edge_costs"):
        solve_amwc(np.zeros((1, 4, 4), "f4"), np.zeros((1, 2, 4, 4), "f4"), [(0, 1)], [True])


def test_volumes_have_no_pixels_to_refine_to():
    nodes, edges = np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.float32)
    solution = solve_amwc(nodes, edges, [(0, 0, 1)], [True])
    with pytest.raises(ValueError, match="only images"):
        refine_labels(
            solution,
            nodes,
            edges,
            [(0, 0, 1)],
            stride=1,
            image_size=(4, 4),
            output_size=(8, 8),
            gamma=0,
        )
