"""The region graph: it holds the grid's objective, and borders that the solution lacks."""

import numpy as np
import pytest
from scipy import ndimage

from amwc_d2.explain import region_graph
from amwc_d2.solver_cython import amwc_objective, solve_amwc, solve_amwc_graph

DISTANCES = [1, 3]
THINGS = np.array([False, True, True])


def two_touching_discs(gap=-0.4):
    """Costs of two discs of class 1 that the solver takes for one, for their border is weak."""
    y, x = np.mgrid[:20, :32]
    discs = [(y - 10) ** 2 + (x - cx) ** 2 < 36 for cx in (10, 21)]
    truth = np.where(discs[0], 1, 2 * discs[1])
    node_costs = np.zeros((3, 20, 32), np.float32)
    node_costs[0], node_costs[2] = np.where(truth > 0, 2, -2), 3
    edge_costs = np.zeros((2, 2, 20, 32), np.float32)
    for d, distance in enumerate(DISTANCES):
        for direction, shift in ((0, (0, -distance)), (1, (-distance, 0))):
            other = np.roll(truth, shift, axis=(0, 1))
            same = truth == other
            both = (truth > 0) & (other > 0)
            edge_costs[d, direction] = np.where(same, 1.5, np.where(both, -gap, -3))
    return node_costs, edge_costs, truth


def random_costs(seed, shape=(17, 23), classes=3, attraction=0.3):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(classes, *shape)), (0, 2, 2)) * 20
    edges = rng.normal(attraction, 1.5, (len(DISTANCES), 2, *shape))
    return smooth.astype(np.float32), edges.astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_objective_is_the_grids_for_any_labelling(seed):
    node_costs, edge_costs = random_costs(seed)
    solution = solve_amwc(node_costs, edge_costs, DISTANCES, THINGS)
    graph = region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution)
    np.testing.assert_array_equal(graph.classes[graph.pieces], solution.classes)
    np.testing.assert_array_equal(graph.segments[graph.pieces], solution.segments)
    assert graph.objective(graph.classes, graph.segments) == pytest.approx(
        solution.objective, rel=1e-12
    )
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, len(graph.areas))
    segments = rng.integers(0, 5, len(graph.areas))
    expected = amwc_objective(
        node_costs, edge_costs, DISTANCES, classes[graph.pieces], segments[graph.pieces]
    )
    assert graph.objective(classes, segments) == pytest.approx(expected, rel=1e-10)


def test_offsets_are_added_to_the_grids_costs():
    node_costs, edge_costs = random_costs(0)
    solution = solve_amwc(node_costs, edge_costs, DISTANCES, THINGS)
    graph = region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution)
    by_class, by_distance = np.float32([0.5, -1, 0.25]), np.float32([0.75, -0.5])
    expected = amwc_objective(
        node_costs + by_class[:, None, None],
        edge_costs + by_distance[:, None, None, None],
        DISTANCES, solution.classes, solution.segments,
    )  # fmt: skip
    found = graph.objective(graph.classes, graph.segments, by_class, by_distance)
    assert found == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="distance_offsets: expected 2 finite numbers"):
        graph.objective(graph.classes, graph.segments, by_class, [1.0])


def test_pieces_are_connected_and_not_small():
    node_costs, edge_costs = random_costs(3, shape=(40, 60), attraction=1)
    solution = solve_amwc(node_costs, edge_costs, DISTANCES, THINGS)
    graph = region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution, min_cells=6)
    for piece in range(len(graph.areas)):
        assert ndimage.label(graph.pieces == piece)[1] == 1
    whole = np.zeros(len(graph.areas), bool)  # connected parts of a segment that are one piece
    for segment in np.unique(solution.segments):
        parts, count = ndimage.label(solution.segments == segment)
        for part in range(1, count + 1):
            inside = np.unique(graph.pieces[parts == part])
            if len(inside) == 1:
                whole[inside] = True
    most = (whole.sum() + len(graph.areas)) // 2
    assert whole.sum() < most < len(graph.areas)
    assert (whole | (graph.areas >= 6)).all()
    assert graph.areas.sum() == 40 * 60
    few = region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution, max_pieces=most)
    assert len(few.areas) <= most


def test_a_false_merge_has_its_border_in_the_pieces():
    node_costs, edge_costs, truth = two_touching_discs()
    solution = solve_amwc(node_costs, edge_costs, DISTANCES, THINGS)
    assert solution.segments.max() == 1  # background and one thing: a false merge
    graph = region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution)
    first, second = (np.unique(graph.pieces[truth == k]) for k in (1, 2))
    assert not set(first) & set(second)


def test_algorithm_2_on_the_pieces_finds_no_worse_a_solution_than_on_its_own():
    node_costs, edge_costs, _ = two_touching_discs(gap=0.4)
    solution = solve_amwc(node_costs, edge_costs, DISTANCES, THINGS)
    graph = region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution)
    class_costs, pair_costs = graph.costs()
    between = graph.pairs[:, 0] != graph.pairs[:, 1]
    again = solve_amwc_graph(
        class_costs.astype(np.float32), graph.pairs[between],
        pair_costs[between].astype(np.float32), THINGS,
    )  # fmt: skip
    assert again.objective <= solution.objective + 1e-3


def test_a_solution_of_another_grid_is_refused():
    node_costs, edge_costs = random_costs(0)
    solution = solve_amwc(node_costs[:, :9], edge_costs[:, :, :9], DISTANCES, THINGS)
    with pytest.raises(ValueError, match=r"solution: expected labels of shape \(17, 23\)"):
        region_graph(node_costs, edge_costs, DISTANCES, THINGS, solution)
