"""Constraints: every method obeys them, and Algorithm 2 is the literal one on what they leave.

Shapes: K classes, H x W pixels, M links.
"""

import numpy as np
import pytest
from reference_solver import (
    algorithm2,
    canonical,
    constrained_graph,
    grid_to_graph,
    is_feasible,
    optimum,
    random_graph,
    random_offsets,
)

from amwc_d2.solver_cython import (
    amwc_objective,
    lower_bound,
    solve_amwc,
    solve_amwc_batch,
    solve_amwc_graph,
)

METHODS = ("greedy", "fast", "good", "best")
# The default run looks at the first problems, 'make test-all' at a thousand.
CASES = [range(100), pytest.param(range(100, 1000), marks=pytest.mark.slow)]


def draw(rng, dims, **size):
    """A random problem and its constraints, the latter as a dict of arguments."""
    problem = random_offsets(rng, dims, **size)
    shape = problem["node_costs"].shape[1:]
    count = int(np.prod(shape))
    if rng.random() < 0.5:  # exact in float32, with ties
        for name in ("node_costs", "edge_costs"):
            problem[name] = (np.round(problem[name] * 4) / 4).astype(np.float32)
    given = {}
    mask = np.ones(shape, bool)
    if rng.random() < 0.5:
        mask = rng.random(shape) < 0.8
        mask.flat[rng.integers(count)] = True
        given["mask"] = mask
    inside = np.flatnonzero(mask)
    if rng.random() < 0.5:
        given["seeds"] = np.full(shape, -1)
        chosen = rng.permutation(inside)[: rng.integers(1, 7)]
        given["seeds"].flat[chosen] = rng.choice([0, 3, 8], len(chosen))
    for name in ("must_link", "cannot_link"):
        pairs = rng.choice(inside, (rng.integers(0, 3), 2))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs) and rng.random() < 0.6:
            given[name] = np.stack(np.unravel_index(pairs, shape), -1)
    if rng.random() < 0.4:
        problem["node_costs"][rng.random(problem["node_costs"].shape) < 0.1] = np.inf
    if rng.random() < 0.3:
        some = rng.random(problem["edge_costs"].shape)
        problem["edge_costs"][some < 0.03] = np.inf
        problem["edge_costs"][some > 0.97] = -np.inf
    return problem, given


def literal(problem, given):
    """What the constraints leave, as a graph: see constrained_graph."""
    shape = problem["node_costs"].shape[1:]
    graph = grid_to_graph(problem["node_costs"], problem["edge_costs"], problem["distances"])
    flat = {
        name: [
            tuple(np.ravel_multi_index(tuple(end), shape) for end in pair) for pair in given[name]
        ]
        if name in given
        else []
        for name in ("must_link", "cannot_link")
    }
    seeds = given.get("seeds", np.full(shape, -1)).ravel()
    for p in np.flatnonzero(seeds >= 0):
        for q in np.flatnonzero(seeds >= 0):
            if p < q:
                flat["must_link" if seeds[p] == seeds[q] else "cannot_link"].append((p, q))
    keep = given.get("mask", np.ones(shape, bool)).ravel()
    return constrained_graph(*graph, keep, flat["must_link"], flat["cannot_link"])


def check(solution, problem, given):
    """Feasible, constraints obeyed, and the objective its own."""
    classes, segments = solution.classes, solution.segments
    mask = given.get("mask", np.ones(classes.shape, bool))
    assert ((classes < 0) == ~mask).all() and ((segments < 0) == ~mask).all()
    assert is_feasible(classes[mask], segments[mask], problem["partitionable"])
    np.testing.assert_array_equal(canonical(segments[mask]), segments[mask])
    for name, together in (("must_link", True), ("cannot_link", False)):
        for p, q in given.get(name, []):
            assert (segments[tuple(p)] == segments[tuple(q)]) == together, name
    if "seeds" in given:
        seeded = given["seeds"] >= 0
        pairs = np.unique(np.stack([given["seeds"][seeded], segments[seeded]]), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1], "seeds"
    costs = problem["node_costs"], problem["edge_costs"], problem["distances"]
    value = amwc_objective(
        *costs, classes, segments
    )  # infinite where an infinite cost is not obeyed
    assert solution.objective == pytest.approx(value, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("dims", [2, 3])
def test_greedy_is_algorithm2_on_what_the_constraints_leave(dims, cases):
    for case in cases:
        rng = np.random.default_rng([case, dims])
        problem, given = draw(rng, dims, max_side=8 if dims == 2 else 4, max_classes=4)
        left = literal(problem, given)
        expected = None
        if left is not None:
            nodes, edges, weights, apart, ids = left
            expected = algorithm2(nodes, edges, weights, problem["partitionable"], apart)
        if expected is None:
            with pytest.raises(ValueError, match=r"constraints|node_costs"):
                solve_amwc(**problem, **given, method="greedy")
            continue
        solution = solve_amwc(**problem, **given, method="greedy")
        check(solution, problem, given)
        inside = ids >= 0
        classes, segments = solution.classes.ravel()[inside], solution.segments.ravel()[inside]
        np.testing.assert_array_equal(classes, expected[0][ids[inside]], err_msg=f"case {case}")
        np.testing.assert_array_equal(
            segments, canonical(expected[1][ids[inside]]), err_msg=f"case {case}"
        )


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_method_obeys_and_none_is_below_the_optimum(dims, cases):
    """The optimum of what the constraints leave is known by enumeration, with large finite "
    "costs."""
    large, solved, reached, gave_up = 1e4, 0, 0, 0
    for case in cases:
        rng = np.random.default_rng([case, dims, 1])
        problem, given = draw(rng, dims, max_side=4, max_classes=3, pixels=9)
        left, best = literal(problem, given), np.inf
        if left is not None:
            nodes, edges, weights, apart, _ = left
            nodes = np.where(np.isfinite(nodes), nodes, large)
            weights = np.where(np.isfinite(weights), weights, -large)
            best = optimum(nodes, edges, weights, problem["partitionable"])[0] + large * len(apart)
        if best > large / 2:
            for method in METHODS:
                with pytest.raises(ValueError, match=r"constraints|node_costs"):
                    solve_amwc(**problem, **given, method=method)
            continue
        bound = lower_bound(**problem, mask=given.get("mask"))
        assert bound <= best + 1e-4, f"case {case}"
        try:
            solutions = [solve_amwc(**problem, **given, method=method) for method in METHODS]
        except ValueError as error:  # the clusters found leave no classes; rare
            assert "found no classes" in str(error)
            gave_up += 1
            continue
        for solution in solutions:
            check(solution, problem, given)
            assert solution.objective >= best - 1e-4, f"case {case}"
        solved += 1
        reached += solutions[-1].objective <= best + 1e-4
    assert gave_up <= 0.03 * len(cases), gave_up
    assert reached >= 0.85 * solved, (reached, solved)


def _scene(seed, shape=(48, 64)):
    """Discs of one class on stuff, long and diagonal edges, and where they are."""
    rng = np.random.default_rng(seed)
    offsets = [(0, 1), (1, 0), (1, 1), (-4, 3), (0, 8), (8, 0)]
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = np.zeros(shape, int)
    for disc in range(1, 9):
        cy, cx, r = rng.integers(shape[0]), rng.integers(shape[1]), rng.integers(4, 9)
        truth[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = disc
    nodes = rng.normal(0, 0.7, (3, *shape))
    nodes[1 - (truth > 0), y, x] += 2  # class 2 is never right
    nodes[2] += 1
    edges = rng.normal(0, 0.7, (len(offsets), *shape))
    for layer, (dy, dx) in enumerate(offsets):
        edges[layer] += np.where(np.roll(truth, (-dy, -dx), (0, 1)) == truth, 1, -1)
    problem = (nodes.astype(np.float32), edges.astype(np.float32), offsets, [False, True, False])
    return problem, truth


def _named(problem):
    return dict(zip(("node_costs", "edge_costs", "distances", "partitionable"), problem))


@pytest.mark.parametrize("method", METHODS)
def test_seeds_split_what_was_one_and_join_what_was_two(method):
    problem, _ = _scene(1)
    free = solve_amwc(*problem, method="fast")
    sizes = np.bincount(free.segments[free.classes == 1])
    large = np.argsort(sizes)[-2:]
    seeds = np.full(free.segments.shape, -1)
    one = np.flatnonzero(free.segments == large[1])
    seeds.flat[one[0]], seeds.flat[one[-1]] = 0, 1  # apart in what was one segment
    seeds.flat[np.flatnonzero(free.segments == large[0])[5]] = 1  # joined with another
    seeds[0, :3] = 2
    solution = solve_amwc(*problem, method=method, seeds=seeds)
    given = {"seeds": seeds, "partitionable": np.array(problem[3])}
    check(solution, {**_named(problem), "partitionable": np.array(problem[3])}, given)
    assert solution.objective > free.objective
    # A seed is a region, not a pixel: the others of the segment are shared out.
    parts = np.bincount(solution.segments.ravel()[one], minlength=2)
    assert (parts > 0).sum() >= 2


def test_many_seeds_of_the_truth_bring_it_about():
    problem, truth = _scene(2)
    seeds = np.where(np.random.default_rng(0).random(truth.shape) < 0.2, truth, -1)
    solution = solve_amwc(*problem, seeds=seeds)
    agree = solution.segments[seeds >= 0]
    assert len(np.unique(agree)) == len(np.unique(seeds[seeds >= 0]))
    first = {s: solution.segments[seeds == s][0] for s in np.unique(seeds[seeds >= 0])}
    wrong = np.mean([first.get(t, -1) != s for t, s in zip(truth.flat, solution.segments.flat)])
    assert wrong < 0.1


def test_the_hidden_takes_no_part():
    """What is outside the mask may cost anything."""
    problem, truth = _scene(3)
    mask = np.ones(truth.shape, bool)
    mask[10:30, 20:50] = False
    nodes, edges = problem[0].copy(), problem[1].copy()
    solution = solve_amwc(*problem, mask=mask)
    nodes[:, ~mask] = np.random.default_rng(0).normal(0, 50, (3, (~mask).sum()))
    nodes[:, 15, 25], edges[:, 15, 25] = np.nan, np.nan
    other = solve_amwc(nodes, edges, *problem[2:], mask=mask)
    np.testing.assert_array_equal(other.segments, solution.segments)
    assert other.objective == solution.objective
    assert (solution.segment_classes >= 0).all()
    assert lower_bound(*problem, mask=mask) <= solution.objective
    assert lower_bound(nodes, edges, *problem[2:], mask=mask) <= solution.objective
    everything = solve_amwc(*problem, mask=np.ones_like(mask))
    assert everything.objective == pytest.approx(solve_amwc(*problem).objective)


def test_a_class_can_be_forbidden_in_a_region():
    problem, _ = _scene(4)
    nodes = problem[0].copy()
    nodes[0, :, :20] = np.inf
    for method in METHODS:
        solution = solve_amwc(nodes, *problem[1:], method=method)
        assert (solution.classes[:, :20] != 0).all() and np.isfinite(solution.objective)
    assert lower_bound(nodes, *problem[1:]) <= solution.objective


def test_a_start_is_improved_and_never_made_worse():
    problem, _ = _scene(5)
    named = _named(problem)
    greedy = solve_amwc(*problem, method="greedy")
    warm = solve_amwc(*problem, init=greedy)
    assert warm.objective <= greedy.objective + 1e-4
    again = solve_amwc(*problem, init=(warm.classes, warm.segments + 7))
    assert again.objective <= warm.objective + 1e-4
    seeds = np.full(greedy.segments.shape, -1)
    seeds[3, 3], seeds[40, 60] = 0, 1
    start = solve_amwc(*problem, seeds=seeds, method="greedy")
    mask = np.ones(seeds.shape, bool)
    warm = solve_amwc(*problem, seeds=seeds, init=start)
    check(warm, {**named, "partitionable": np.array(problem[3])}, {"seeds": seeds})
    assert warm.objective <= start.objective + 1e-4
    mask[20:, :5] = False
    start = solve_amwc(*problem, mask=mask, method="greedy")
    assert solve_amwc(*problem, mask=mask, init=start).objective <= start.objective + 1e-4
    best = solve_amwc(*[c[:, :12, :12] for c in problem[:2]], *problem[2:])
    small = [c[:, :12, :12] for c in problem[:2]]
    better = solve_amwc(*small, *problem[2:], init=best, method="best")
    assert better.objective <= best.objective + 1e-4


def test_a_time_limit_ends_best_with_what_there_is():
    import time

    problem, _ = _scene(6, (96, 128))
    fast = solve_amwc(*problem)
    begin = time.process_time()
    at_once = solve_amwc(*problem, method="best", time_limit=0)
    quick = time.process_time() - begin
    begin = time.process_time()
    best = solve_amwc(*problem, method="best")
    assert quick < 0.5 * (time.process_time() - begin)
    assert best.objective <= at_once.objective <= fast.objective + 1e-4
    with pytest.raises(ValueError, match=r"time_limit"):
        solve_amwc(*problem, time_limit=-1)


def test_infinite_costs_of_graphs():
    for case in range(100):
        rng = np.random.default_rng([case, 9])
        problem = random_graph(rng, max_nodes=9, max_classes=3)
        count, pairs = len(problem["node_costs"]), len(problem["edges"])
        problem["node_costs"][rng.random((count, problem["node_costs"].shape[1])) < 0.1] = np.inf
        some = rng.random(pairs)
        problem["edge_costs"][some < 0.1], problem["edge_costs"][some > 0.9] = np.inf, -np.inf
        graph = problem["node_costs"], problem["edges"].astype(int), problem["edge_costs"]
        left = constrained_graph(*graph, np.ones(count, bool), [], [])
        expected = left and algorithm2(*left[:3], problem["partitionable"], left[3])
        if expected is None:
            with pytest.raises(ValueError, match=r"constraints|node_costs"):
                solve_amwc_graph(**problem)
            continue
        for method in ("greedy", "fast", "best"):
            solution = solve_amwc_graph(**problem, method=method)
            cut = solution.segments[graph[1][:, 0]] != solution.segments[graph[1][:, 1]]
            assert not cut[graph[2] == np.inf].any() and cut[graph[2] == -np.inf].all()
            own = graph[0][np.arange(count), solution.classes].sum(dtype=float)
            own += graph[2][cut & np.isfinite(graph[2])].sum(dtype=float)
            assert solution.objective == pytest.approx(own, abs=1e-4)
            if method == "greedy":
                np.testing.assert_array_equal(solution.classes, expected[0][left[4]])
                greedy = solution.objective
        assert solution.objective <= greedy + 1e-4


BAD = {
    "mask dtype": ({"mask": np.ones((4, 4))}, "mask: expected bool"),
    "mask shape": ({"mask": np.ones((4, 5), bool)}, "mask: expected bool"),
    "mask empty": ({"mask": np.zeros((4, 4), bool)}, "no pixel takes part"),
    "seed ids": ({"seeds": np.full((4, 4), -2)}, "seeds: expected ids >= 0"),
    "seeds hidden": (
        {"seeds": np.zeros((4, 4), int), "mask": np.eye(4, dtype=bool)},
        "pixel (0, 1) has a seed but is not inside the mask",
    ),
    "seeds shape": ({"seeds": np.zeros((3, 4), int)}, "seeds: expected shape (4, 4)"),
    "links shape": ({"must_link": [(0, 1)]}, "must_link: expected pairs of pixels (y, x)"),
    "links outside": ({"cannot_link": [((0, 0), (4, 1))]}, "lies outside the grid"),
    "one pixel": ({"must_link": [((1, 1), (1, 1))]}, "names one pixel twice"),
    "contradiction": (
        {"must_link": [((0, 0), (3, 3))], "cannot_link": [((3, 3), (0, 0))]},
        "pixel (3, 3) and pixel (0, 0) are to be apart, but",
    ),
    "no classes": (
        {"cannot_link": [((0, 0), (1, 1)), ((1, 1), (2, 2)), ((0, 0), (2, 2))]},
        "found no classes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_obeyed_is_named(name):
    given, message = BAD[name]
    nodes, edges = np.zeros((2, 4, 4), np.float32), np.ones((1, 2, 4, 4), np.float32)
    for method in METHODS:
        with pytest.raises(ValueError) as caught:
            solve_amwc(nodes, edges, [1], [False, False], method=method, **given)
        assert message in str(caught.value)


def test_bad_costs_and_starts_are_named():
    nodes, edges = np.zeros((2, 4, 4), np.float32), np.ones((1, 2, 4, 4), np.float32)
    things = [False, True]
    nodes[:, 2, 1] = np.inf
    with pytest.raises(ValueError, match=r"every class is forbidden .* at pixel \(2, 1\)"):
        solve_amwc(nodes, edges, [1], things)
    nodes[:, 2, 1] = 0, np.nan
    with pytest.raises(ValueError, match=r"node_costs.*nan at index"):
        solve_amwc(nodes, edges, [1], things)
    nodes[:, 2, 1] = 0, -np.inf
    with pytest.raises(ValueError, match=r"node_costs.*-inf at index"):
        solve_amwc(nodes, edges, [1], things)
    nodes[:, 2, 1] = 0, np.inf
    with pytest.raises(ValueError, match=r"image 0: node_costs.*must be finite"):
        solve_amwc_batch([nodes], [edges], [1], things)
    nodes[1, 2, 1] = 0
    edges[0, 1, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"edge_costs.*nan at index"):
        solve_amwc(nodes, edges, [1], things)
    edges[0, 1, 2, 2] = 0
    classes, segments = np.zeros((4, 4), int), np.zeros((4, 4), int)
    with pytest.raises(TypeError, match=r"init"):
        solve_amwc(nodes, edges, [1], things, init=classes)
    classes[1] = 1
    with pytest.raises(ValueError, match=r"more than one class"):
        solve_amwc(nodes, edges, [1], things, init=(classes, segments))
    with pytest.raises(ValueError, match=r"init: pixel .* are to be apart"):
        solve_amwc(
            nodes, edges, [1], things, init=(segments, segments), cannot_link=[((0, 0), (3, 3))]
        )
    with pytest.raises(ValueError, match='"greedy" has no start'):
        solve_amwc(nodes, edges, [1], things, "greedy", init=(segments, segments))
