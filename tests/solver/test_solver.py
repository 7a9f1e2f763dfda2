"""The solver's public face: shapes, errors, threads, warm starts, and what each method promises."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from solver_instances import make_instance

from amwc_d2.solver_cython import (
    amwc_objective,
    lower_bound,
    release_memory,
    solve_amwc,
    solve_amwc_batch,
    solve_amwc_graph,
    solve_mwc,
    solve_mwc_batch,
    thread_count,
)

DISTANCES = [1, 2, 5]
THINGS = np.array([False, False, True, True])


def scene(seed, height=24, width=36, classes=4, distances=DISTANCES, noise=1.0):
    """Costs of a made-up image: two stuff bands and discs of two thing classes, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    label = (y > height // 2).astype(int)
    instance = label.copy()
    for i in range(6):
        cy, cx, r = rng.integers(height), rng.integers(width), rng.integers(2, 6)
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= r * r
        label[disc], instance[disc] = 2 + i % 2, 10 + i
    node = rng.normal(size=(classes, height, width)) * noise
    node -= 3 * (label == np.arange(classes)[:, None, None])
    edge = rng.normal(size=(len(distances), 2, height, width)) * noise
    for d, distance in enumerate(distances):
        right, down = instance[:, :-distance], instance[:-distance]
        edge[d, 0, :, :-distance] += np.where(right == instance[:, distance:], 2, -2)
        edge[d, 1, :-distance] += np.where(down == instance[distance:], 2, -2)
    return node.astype(np.float32), edge.astype(np.float32)


def assert_feasible(solution, partitionable):
    """One class a segment, one segment a stuff class, ids 0, 1, ... in order of appearance."""
    classes, segments = solution.classes.ravel(), solution.segments.ravel()
    ids, first = np.unique(segments, return_index=True)
    assert np.array_equal(ids, np.arange(len(ids)))
    assert (np.diff(first) > 0).all()
    assert np.array_equal(classes, classes[first][segments])
    stuff = [k for k in classes[first] if not partitionable[k]]
    assert len(stuff) == len(set(stuff))


@pytest.mark.parametrize("method", ["greedy", "fast", "best"])
def test_result_is_feasible_and_its_objective_is_its_own(method):
    node, edge = scene(0, 14, 18)
    solution = solve_amwc(node, edge, DISTANCES, THINGS, method=method)
    assert solution.classes.dtype == solution.segments.dtype == np.int32
    assert solution.classes.shape == solution.segments.shape == node.shape[1:]
    assert_feasible(solution, THINGS)
    own = amwc_objective(node, edge, DISTANCES, solution.classes, solution.segments)
    assert solution.objective == own


def test_objective_counts_cut_edges_only():
    node = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    edge = np.zeros((1, 2, 2, 2), np.float32)
    edge[0, 0] = [[1, 100], [2, 100]]  # the right column has no right neighbour
    edge[0, 1] = [[4, 8], [100, 100]]
    classes = np.array([[0, 1], [0, 0]])
    segments = np.array([[7, 9], [7, 7]])
    assert amwc_objective(node, edge, [1], classes, segments) == 0 + 5 + 2 + 3 + 1 + 8


@pytest.mark.parametrize("seed", range(6))
def test_best_is_never_above_the_others(seed):
    node, edge = scene(seed, 12, 14, noise=2.0)
    value = {
        method: solve_amwc(node, edge, DISTANCES, THINGS, method=method).objective
        for method in ("greedy", "fast", "best")
    }
    slack = 1e-6 * abs(value["greedy"])
    assert value["best"] <= min(value["greedy"], value["fast"]) + slack
    assert value["fast"] <= value["greedy"] + slack  # small grids fall back to the better


def test_fast_beats_greedy_on_image_like_costs():
    wins = 0
    for seed in range(10):
        node, edge = scene(seed, 40, 60, noise=1.5)
        fast = solve_amwc(node, edge, DISTANCES, THINGS, method="fast").objective
        greedy = solve_amwc(node, edge, DISTANCES, THINGS, method="greedy").objective
        wins += fast <= greedy
    assert wins >= 8


def blocks(rows, columns, side, distances):
    """Edge costs 1 inside the squares of a chess board, -1 between them; and the squares."""
    y, x = np.mgrid[: rows * side, : columns * side] // side
    square = y * columns + x
    edge = np.zeros((len(distances), 2, *square.shape), np.float32)
    for n, d in enumerate(distances):
        edge[n, 0, :, :-d] = np.where(square[:, d:] == square[:, :-d], 1, -1)
        edge[n, 1, :-d] = np.where(square[d:] == square[:-d], 1, -1)
    return edge, square


def test_good_is_between_fast_and_best():
    for seed in range(3):
        made = make_instance("street", 40, 72, seed, "hard")
        found = {
            m: solve_amwc(*made.problem, method=m).objective
            for m in ("greedy", "fast", "good", "best")
        }
        assert found["good"] < min(found["fast"], found["greedy"])
        assert found["best"] <= found["good"]
        again = solve_amwc_batch(
            [made.node_costs] * 2,
            [made.edge_costs] * 2,
            *made.problem[2:],
            method="good",
            num_threads=2,
        )
        assert [s.objective for s in again] == [found["good"]] * 2


def test_costs_that_overflow_and_masked_arrays():
    node, edge = scene(0)
    huge = [np.float32(3e38) * np.sign(c) for c in (node, edge)]
    for method in ("greedy", "fast", "good", "best"):
        assert np.isfinite(solve_amwc(*huge, DISTANCES, THINGS, method=method).objective)
    assert np.isfinite(lower_bound(*huge, DISTANCES, THINGS))
    with pytest.raises(TypeError, match="node_costs: masked arrays"):
        solve_amwc(np.ma.masked_array(node, node > 0), edge, DISTANCES, THINGS)


def test_memory_is_released():
    node, edge = scene(0)
    before = solve_amwc(node, edge, DISTANCES, THINGS)
    release_memory()
    assert solve_amwc(node, edge, DISTANCES, THINGS).objective == before.objective


@pytest.mark.parametrize("evidence", [0.0, 0.05])
@pytest.mark.parametrize("rows, columns, side", [(2, 3, 10), (8, 9, 12)])
def test_edges_decide_where_classes_say_nothing(evidence, rows, columns, side):
    edge, square = blocks(rows, columns, side, [1, 4])
    rng = np.random.default_rng(0)
    node = rng.normal(0, evidence, (2, *square.shape)).astype(np.float32)
    solution = solve_amwc(node, edge, [1, 4], [False, True])  # stuff is listed first
    every = amwc_objective(node, edge, [1, 4], np.ones_like(square), square)
    assert solution.objective <= every
    bound = lower_bound(node, edge, [1, 4], [False, True])
    assert solution.objective - bound <= 0.02 * abs(bound)


def test_a_thing_is_founded_inside_stuff():
    node = np.zeros((2, 48, 64), np.float32)
    node[1] = 4.0  # a thing costs more everywhere
    edge = np.ones((2, 2, 48, 64), np.float32)
    edge[:, 0, 20, [29, 30]] = edge[:, 1, [19, 20], 30] = -2  # unit edges around one pixel
    edge[1, 0, 20, [26, 30]] = edge[1, 1, [16, 20], 30] = -2  # and those of length 4
    solution = solve_amwc(node, edge, [1, 4], [False, True])
    assert solution.classes[20, 30] == 1 and solution.classes.sum() == 1


def test_a_cluster_is_split_along_its_repulsive_edges():
    """Two things of 3 pixels' width fall into one tile; their unit edges say nothing."""
    size = 64
    thing = np.zeros((size, size), int)
    thing[8:56, 30:33], thing[8:56, 33:36] = 1, 2
    node = np.where(np.arange(2)[:, None, None] == (thing > 0), -5.0, 5.0).astype(np.float32)
    edge = np.zeros((2, 2, size, size), np.float32)
    for n, d in enumerate([1, 2]):
        edge[n, 0, :, :-d] = np.where(thing[:, d:] == thing[:, :-d], 1, -1 if d > 1 else 0.1)
        edge[n, 1, :-d] = np.where(thing[d:] == thing[:-d], 1, -1 if d > 1 else 0.1)
    solution = solve_amwc(node, edge, [1, 2], [False, True])
    truth = amwc_objective(node, edge, [1, 2], (thing > 0).astype(int), thing)
    assert solution.objective <= truth + 1e-6 * abs(truth)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("method", ["greedy", "fast", "best"])
def test_scale_of_the_costs_changes_nothing(method, scale):
    node, edge = (np.round(a * 64) for a in scene(3, 12, 14))
    power = np.float32(2.0 ** np.round(np.log2(scale)))
    a = solve_amwc(node, edge, DISTANCES, THINGS, method=method)
    b = solve_amwc(node * power, edge * power, DISTANCES, THINGS, method=method)
    assert np.array_equal(a.segments, b.segments)


@pytest.mark.parametrize("method", ["greedy", "fast", "best"])
@pytest.mark.parametrize(
    "shape, classes, things, distances",
    [
        ((1, 1), 1, [False], [1]),
        ((1, 1), 3, [True, True, True], [1, 4]),
        ((1, 7), 2, [True, False], [1, 3]),
        ((9, 1), 2, [False, False], [2]),
        ((5, 6), 1, [True], [1, 50]),
        ((5, 6), 4, [False] * 4, [3, 1]),
        ((17, 19), 3, [True] * 3, [1, 16]),
        ((6, 6), 2, [False, True], []),
    ],
)
def test_corner_cases(method, shape, classes, things, distances):
    rng = np.random.default_rng(0)
    node = rng.normal(size=(classes, *shape)).astype(np.float32)
    edge = rng.normal(size=(len(distances), 2, *shape)).astype(np.float32)
    for n, e in ((node, edge), (node * 0, edge * 0)):
        solution = solve_amwc(n, e, distances, things, method=method)
        assert_feasible(solution, things)
        if not distances:
            assert solution.objective == pytest.approx(n.min(0).sum(), abs=1e-4)


def test_entries_beyond_the_grid_are_ignored():
    node, edge = scene(1)
    other = edge.copy()
    for d, distance in enumerate(DISTANCES):
        other[d, 0, :, -distance:] = 1e6
        other[d, 1, -distance:] = -1e6
    a, b = (solve_amwc(node, e, DISTANCES, THINGS) for e in (edge, other))
    assert np.array_equal(a.segments, b.segments)
    assert a.objective == b.objective


def test_all_zero_costs_make_one_segment():
    # Ties go to the lowest class, and a similarity of 0 merges.
    for method in ("greedy", "fast", "best"):
        solution = solve_amwc(
            np.zeros((3, 8, 9), np.float32),
            np.zeros((1, 2, 8, 9), np.float32),
            [1],
            [True, False, True],
            method=method,
        )
        assert solution.objective == 0
        assert (solution.classes == solution.classes[0, 0]).all()


@pytest.mark.parametrize("method", ["greedy", "fast"])
def test_pure_noise_at_size_ends(method):
    rng = np.random.default_rng(0)
    node = rng.normal(size=(6, 96, 128)).astype(np.float32)
    edge = rng.normal(size=(4, 2, 96, 128)).astype(np.float32)
    things = np.arange(6) >= 3
    assert_feasible(solve_amwc(node, edge, [1, 2, 8, 32], things, method=method), things)


def test_threads_do_not_change_results():
    images = [scene(seed, 20 + seed, 30) for seed in range(6)]
    nodes, edges = zip(*images)
    for method in ("greedy", "fast"):
        one = solve_amwc_batch(nodes, edges, DISTANCES, THINGS, method, num_threads=1)
        many = solve_amwc_batch(nodes, edges, DISTANCES, THINGS, method, num_threads=5)
        alone = [solve_amwc(n, e, DISTANCES, THINGS, method) for n, e in images]
        for a, b, c in zip(one, many, alone):
            assert np.array_equal(a.segments, b.segments) and np.array_equal(a.segments, c.segments)
            assert a.objective == b.objective == c.objective


def test_batches_may_be_empty():
    assert solve_amwc_batch([], [], DISTANCES, THINGS) == []
    assert solve_mwc_batch([], [], DISTANCES) == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_batch_error_names_the_image(num_threads):
    node, edge = scene(0)
    broken = node.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"image 1: node_costs.*nan at index \(1, 2, 3\)"):
        solve_amwc_batch(
            [node, broken, node], [edge] * 3, DISTANCES, THINGS, num_threads=num_threads
        )


@pytest.mark.parametrize("method", ["greedy", "best"])
def test_ctrl_c_ends_a_long_solve(method, ctrl_c):
    rng = np.random.default_rng(0)
    node = rng.normal(size=(8, 300, 400)).astype(np.float32)
    edge = rng.normal(size=(4, 2, 300, 400)).astype(np.float32)
    main = threading.main_thread().ident
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):  # ends with the first that is interrupted
                solve_amwc(node, edge, [1, 2, 4, 8], np.arange(8) >= 4, method=method)
    finally:
        timer.cancel()


@pytest.mark.parametrize("seed", range(4))
def test_warm_start_of_a_solution_is_the_solution(seed):
    node, edge = scene(seed)
    lifted = node[[0, 1, 2, 2, 2, 3, 3, 3]]
    cold = solve_mwc(lifted, edge, DISTANCES)
    warm = solve_mwc(lifted, edge, DISTANCES, init=cold.classes)
    assert np.array_equal(cold.classes, warm.classes)
    assert cold.objective == warm.objective
    assert warm.objective == amwc_objective(lifted, edge, DISTANCES, warm.classes, warm.classes)


def test_warm_start_of_a_lifted_solution_settles_at_once():
    """A hundred labels, most of them as cheap as others of their class."""
    instance = make_instance("street", 128, 256, 0, "medium")
    node, edge, distances, _ = instance.problem
    forward = solve_amwc(*instance.problem)
    _, first = np.unique(forward.segments, return_index=True)
    lifted = np.ascontiguousarray(node[forward.classes.ravel()[first]])
    settled = solve_mwc(lifted, edge, distances, init=forward.segments)
    again = solve_mwc(lifted, edge, distances, init=settled.classes)
    assert np.array_equal(settled.classes, again.classes)


@pytest.mark.parametrize("seed", range(4))
def test_warm_start_only_improves(seed):
    node, edge = scene(seed)
    init = np.random.default_rng(seed).integers(0, 4, node.shape[1:])
    start = amwc_objective(node, edge, DISTANCES, init, init)
    assert solve_mwc(node, edge, DISTANCES, init=init).objective < start


def test_warm_start_follows_the_node_costs():
    """A label that no neighbour carries yet is found where its node cost is lowest."""
    node, edge = scene(0)
    lifted = node[[0, 1, 2, 2, 3]]
    solution = solve_mwc(lifted, edge, DISTANCES)
    lifted[3, 10:14, 20:24] -= 100
    warm = solve_mwc(
        lifted, edge, DISTANCES, init=np.where(solution.classes == 3, 2, solution.classes)
    )
    assert (warm.classes[10:14, 20:24] == 3).all()


def test_warm_start_splits_a_segment_where_only_the_whole_part_pays():
    """No pixel of the right half can leave alone; all of them together cross the weak edges."""
    node = np.zeros((2, 6, 12), np.float32)
    node[1, :, :6] = 1.0
    node[0, :, 6:] = 0.5  # 18 in all
    edge = np.full((1, 2, 6, 12), 2.0, np.float32)
    edge[0, 0, :, 5] = 1.0  # 6 in all
    start = np.zeros((6, 12), int)
    warm = solve_mwc(node, edge, [1], init=start)
    assert np.array_equal(warm.classes, np.broadcast_to(np.arange(12) >= 6, (6, 12)))
    node[0, :, 6:] = 0.1  # 3.6 in all: the cut would cost more
    assert np.array_equal(solve_mwc(node, edge, [1], init=start).classes, start)


def test_copies_of_a_label_are_told_apart_by_the_edges():
    """Two touching squares of one class: with two labels of equal cost, each gets its own."""
    instance = np.zeros((12, 16), int)
    instance[3:9, 3:8], instance[3:9, 8:13] = 1, 2
    node = np.stack([np.where(instance == 0, -2, 2), *[np.where(instance > 0, -2, 2)] * 2])
    edge = np.full((1, 2, 12, 16), -3.0)
    edge[0, 0, :, :-1] = np.where(instance[:, 1:] == instance[:, :-1], 3, -3)
    edge[0, 1, :-1] = np.where(instance[1:] == instance[:-1], 3, -3)
    solution = solve_mwc(node.astype(np.float32), edge.astype(np.float32), [1])
    left, right = solution.classes[5, 4], solution.classes[5, 10]
    assert {left, right} == {1, 2}
    assert np.array_equal(solution.segments == solution.segments[5, 4], instance == 1)


def test_lifted_multiway_cut_matches_the_asymmetric_one():
    """With enough copies of each thing class both problems have the same value (paper, eq. 2)."""
    for seed in range(5):
        node, edge = scene(seed, 14, 16, noise=0.5)
        amwc = solve_amwc(node, edge, DISTANCES, THINGS, method="best").objective
        mwc = solve_mwc(node[[0, 1] + [2] * 8 + [3] * 8], edge, DISTANCES).objective
        assert mwc == pytest.approx(amwc, rel=0.01)


def test_mwc_batch_takes_many_shapes_and_starts():
    nodes, edges = zip(*(scene(seed, 10 + seed, 20) for seed in range(5)))
    inits = [None, *[np.zeros(n.shape[1:], int) for n in nodes[1:]]]
    for threads in (1, 3):
        batch = solve_mwc_batch(nodes, edges, DISTANCES, inits, num_threads=threads)
        for solution, n, e, init in zip(batch, nodes, edges, inits):
            alone = solve_mwc(n, e, DISTANCES, init)
            assert np.array_equal(solution.classes, alone.classes)


def test_graph_and_grid_agree():
    node, edge = scene(5, 9, 11)
    k, h, w = node.shape
    index = np.arange(h * w).reshape(h, w)
    ends, weights = [], []
    for d, distance in enumerate(DISTANCES):
        ends += [np.stack([index[:, :-distance], index[:, distance:]], -1).reshape(-1, 2)]
        weights += [edge[d, 0, :, :-distance].ravel()]
        ends += [np.stack([index[:-distance], index[distance:]], -1).reshape(-1, 2)]
        weights += [edge[d, 1, :-distance].ravel()]
    ends, weights = np.concatenate(ends), np.concatenate(weights)
    nodes = np.ascontiguousarray(node.reshape(k, -1).T)
    grid = solve_amwc(node, edge, DISTANCES, THINGS, method="greedy")
    graph = solve_amwc_graph(nodes, ends, weights, THINGS)
    assert np.array_equal(grid.segments.ravel(), graph.segments)
    assert grid.objective == pytest.approx(graph.objective)
    # A parallel edge adds its cost; the direction of an edge means nothing.
    half = np.concatenate([weights / 2, weights / 2])
    doubled = solve_amwc_graph(nodes, np.concatenate([ends, ends[:, ::-1]]), half, THINGS)
    assert np.array_equal(doubled.segments, graph.segments)


def test_graph_without_edges_and_with_empty_lists():
    node = np.array([[0, 1], [1, 0], [2, 1]], np.float32)
    for edges in (np.zeros((0, 2), int), []):
        s = solve_amwc_graph(node, edges, np.zeros(0, np.float32), [True, False], method="best")
        assert s.objective == 1
        assert s.segments.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"node_costs": np.zeros((4, 24), np.float32)}, ValueError, "node_costs.*\\(K, H, W\\)"),
        ({"node_costs": np.zeros((4, 0, 36), np.float32)}, ValueError, "node_costs.*not empty"),
        ({"node_costs": [[[1.0]]]}, TypeError, "node_costs.*NumPy"),
        ({"node_costs": np.zeros((4, 24, 36), int)}, TypeError, "node_costs.*astype"),
        ({"edge_costs": np.zeros((2, 2, 24, 36), np.float32)}, ValueError, "edge_costs"),
        ({"edge_costs": np.full((3, 2, 24, 36), np.nan, "f")}, ValueError, "edge_costs.*nan"),
        ({"distances": [1, 2, 0]}, ValueError, "distances"),
        ({"distances": [1, 2, 2]}, ValueError, "distances.*distinct"),
        ({"distances": [1.5, 2, 3]}, TypeError, "distances.*integers"),
        ({"partitionable": [True]}, ValueError, "partitionable.*\\(4,\\)"),
        ({"method": "quick"}, ValueError, "method.*greedy, fast, good, best.*'quick'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    node, edge = scene(0)
    arguments = {
        "node_costs": node,
        "edge_costs": edge,
        "distances": DISTANCES,
        "partitionable": THINGS,
    }
    with pytest.raises(error, match=message):
        solve_amwc(**{**arguments, **change})


@pytest.mark.parametrize(
    "edges, message",
    [([[0, 3]], "in \\[0, 3\\)"), ([[1, 1]], "itself"), ([[0, 1], [1, 2]], "shape \\(1, 2\\)")],
)
def test_bad_graphs_are_named(edges, message):
    with pytest.raises(ValueError, match=message):
        solve_amwc_graph(
            np.zeros((3, 2), np.float32), np.array(edges), np.ones(1, np.float32), [True, False]
        )


def test_bad_starts_and_thread_counts_are_named():
    node, edge = scene(0)
    with pytest.raises(ValueError, match=r"init.*\[0, 4\)"):
        solve_mwc(node, edge, DISTANCES, init=np.full(node.shape[1:], 4))
    with pytest.raises(ValueError, match=r"init.*shape"):
        solve_mwc(node, edge, DISTANCES, init=np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="num_threads"):
        solve_mwc_batch([node], [edge], DISTANCES, num_threads=-1)
    with pytest.raises(ValueError, match="one length"):
        solve_mwc_batch([node], [edge, edge], DISTANCES)


def test_caller_arrays_are_left_alone():
    node, edge = scene(0)
    strided = np.asfortranarray(node), np.asfortranarray(edge)
    for array in (node, edge):
        array.setflags(write=False)
    a = solve_amwc(node, edge, DISTANCES, THINGS)
    b = solve_amwc(*strided, DISTANCES, THINGS)
    assert np.array_equal(a.segments, b.segments)


REFERENCE = json.loads((Path(__file__).parent / "instances" / "reference.json").read_text())
QUICK = ("city_256x512_medium_0", "coco_160x160_medium_1")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCE]
)
def test_reference_scenes(name):
    """Exact Algorithm 2, and no worse than the label-first prototype."""
    pytest.importorskip("scipy")
    from city_coco_instances import make

    kind, size, level, seed = name.split("_")
    h, w = map(int, size.split("x"))
    z = make(kind, h, w, int(seed), level)
    node = np.ascontiguousarray(z["node_costs"].T).reshape(-1, h, w)
    arguments = node, z["edge_costs"], z["dist"], z["partitionable"]
    greedy = solve_amwc(*arguments, method="greedy").objective
    assert greedy == pytest.approx(REFERENCE[name]["algorithm2"], rel=2e-6)
    fast = solve_amwc(*arguments, method="fast").objective
    assert fast <= REFERENCE[name]["prototype_label_first"] * (1 - 1e-6)


def test_threads_where_the_system_tells_no_affinity(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert thread_count(0) == os.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_count(0) == 3 and thread_count(2) == 2
