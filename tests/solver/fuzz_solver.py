#!/usr/bin/env python
"""Feed the solver random problems, valid and broken, and check every promise it makes.

    python tests/solver/fuzz_solver.py --cases 10000

Needs NumPy and the solver only. ``make sanitize`` runs it on a build with AddressSanitizer and
UndefinedBehaviorSanitizer. A failing case is named by its seed: ``--first SEED --cases 1`` repeats
it. Ends at the first failure, or with --keep-going lists them all; the exit status is 1.
"""

import argparse
import sys
import time

import numpy as np

from amwc_d2.solver_cython import (
    amwc_objective,
    lower_bound,
    lower_bound_graph,
    solve_amwc,
    solve_amwc_batch,
    solve_amwc_graph,
    solve_mwc,
    solve_mwc_batch,
)

METHODS = ("greedy", "fast", "good", "best")


def draw_methods(rng, nodes):
    """The quick methods always, the slow one now and then, on small problems."""
    return METHODS if nodes <= 150 and rng.random() < 0.2 else METHODS[:3]


def draw_costs(rng, shape, scale):
    """Draw float32 costs in one of the styles that solvers stumble over."""
    style = rng.integers(7)
    if style == 0:
        costs = np.zeros(shape)
    elif style == 1:  # ties everywhere
        costs = rng.integers(-2, 3, shape) / 2
    elif style == 2:  # cost dropout
        costs = rng.normal(size=shape) * (rng.random(shape) > 0.1)
    elif style == 3:  # heavy tails
        costs = rng.standard_t(1.2, shape).clip(-1e4, 1e4)
    elif style == 4:  # one value, negative zero among them
        costs = np.full(shape, rng.choice([-1.0, -0.0, 1.0]))
    else:
        costs = rng.normal(rng.choice([-0.5, 0.0, 0.5]), 1.0, shape)
    return (costs * scale).astype(np.float32)


def draw_grid(rng):
    """Draw a valid grid problem: any size from one pixel, distances beyond the grid included."""
    side = rng.choice([2, 6, 14, 30], p=[0.2, 0.4, 0.3, 0.1])
    height, width = rng.integers(1, side + 1, 2)
    classes = int(rng.choice([1, 2, 3, 8, 21, 40]))
    distances = rng.choice([1, 2, 3, 4, 7, 8, 16, 100], rng.integers(0, 5), replace=False)
    scale = 10.0 ** rng.choice([0, 0, 0, -6, -3, 3, 6])
    if rng.random() < 0.3:
        return draw_offsets(rng, (height, width), classes, scale)
    node_costs = draw_costs(rng, (classes, height, width), scale * rng.choice([0.1, 1, 5]))
    edge_costs = draw_costs(rng, (len(distances), 2, height, width), scale)
    if rng.random() < 0.2:  # entries whose other end lies outside must not be looked at
        edge_costs = np.copysign(np.abs(edge_costs), 1)
    partitionable = rng.random(classes) < rng.choice([0, 0.5, 1])
    return node_costs, edge_costs, distances.tolist(), partitionable


def draw_offsets(rng, shape, classes, scale):
    """Draw a problem with an offset list, of an image or a volume."""
    if rng.random() < 0.5:
        shape = (int(rng.integers(1, 5)), *shape)
    offsets = {}
    for _ in range(rng.integers(0, 8)):
        offset = tuple(
            int(o) for o in rng.choice([-100, -9, -4, -2, -1, 0, 1, 2, 3, 7], len(shape))
        )
        if any(offset):
            offsets[max(offset, tuple(-o for o in offset))] = offset
    node_costs = draw_costs(rng, (classes, *shape), scale * rng.choice([0.1, 1, 5]))
    edge_costs = draw_costs(rng, (len(offsets), *shape), scale)
    return node_costs, edge_costs, list(offsets.values()), rng.random(classes) < 0.5


def relayout(rng, array):
    """Return the same values with another memory layout."""
    style = rng.integers(4)
    if style == 0:
        return np.asfortranarray(array)
    if style == 1:  # not aligned to anything
        raw = np.empty(array.nbytes + 1, np.uint8)[1:]
        other = raw.view(array.dtype.newbyteorder("=")).reshape(array.shape)
        other[...] = array
        return other
    if style == 2:
        return array.astype(np.float64)
    return np.stack([array, array], -1)[..., 0]


def check_solution(solution, problem, method):
    """Check feasibility, numbering, reported objective and certificate of one solution."""
    node_costs, edge_costs, distances, partitionable = problem
    classes, segments, value = solution
    assert classes.shape == segments.shape == node_costs.shape[1:], "shape"
    assert classes.dtype == segments.dtype == np.int32, "dtype"
    assert classes.min() >= 0 and classes.max() < len(node_costs), "classes"
    check_segments(classes, segments, partitionable)
    again = amwc_objective(node_costs, edge_costs, distances, classes, segments)
    scale = np.abs(node_costs).sum(dtype=float) + np.abs(edge_costs).sum(dtype=float)
    assert abs(value - again) <= 1e-9 * scale, f"{method}: objective {value}, evaluated {again}"


def check_segments(classes, segments, partitionable):
    """Check that ids have no gaps, a segment one class, a stuff class one segment."""
    ids, first = np.unique(segments.ravel(), return_index=True)
    assert ids[0] == 0 and ids[-1] == len(ids) - 1, "ids have gaps"
    of_segment = classes.ravel()[first]
    assert (of_segment[segments] == classes).all(), "two classes in a segment"
    stuff = of_segment[~partitionable[of_segment]]
    assert len(np.unique(stuff)) == len(stuff), "two segments of a stuff class"


def same(a, b):
    """Say whether two solutions are identical, bit by bit."""
    return (
        np.array_equal(a.classes, b.classes)
        and np.array_equal(a.segments, b.segments)
        and a.objective == b.objective
    )


def fuzz_amwc(rng):
    """All methods on one grid, and the bound below them."""
    problem = draw_grid(rng)
    methods = draw_methods(rng, problem[0][0].size)
    solutions = {method: solve_amwc(*problem, method=method) for method in methods}
    for method, solution in solutions.items():
        check_solution(solution, problem, method)
    scale = np.abs(problem[0]).sum(dtype=float) + np.abs(problem[1]).sum(dtype=float)
    for method in ("greedy", "fast", "good"):
        for better in methods[methods.index(method) + 1 :]:
            worse = solutions[better].objective - solutions[method].objective
            if better in ("good", "best"):
                assert worse <= 1e-6 * scale, f"{better}, {method}: worse by {worse}"
    guide = solutions[str(rng.choice(methods))] if rng.random() < 0.5 else None
    bound = lower_bound(*problem, tight=bool(rng.random() < 0.3), solution=guide)
    assert bound <= min(s.objective for s in solutions.values()), "bound above a solution"
    method = str(rng.choice(methods))
    moved = [relayout(rng, problem[0]), relayout(rng, problem[1]), *problem[2:]]
    assert same(solve_amwc(*moved, method=method), solutions[method]), "depends on the layout"
    fuzz_constraints(rng, problem, method)


def fuzz_constraints(rng, problem, method):
    """Constraints are obeyed, or refused by name."""
    node_costs, edge_costs = problem[0].copy(), problem[1].copy()
    shape = node_costs.shape[1:]
    mask = rng.random(shape) < rng.choice([0.5, 0.9, 1])
    seeds = np.where(rng.random(shape) < rng.choice([0, 0.05, 0.5]), rng.integers(0, 4, shape), -1)
    seeds[~mask] = -1
    links = rng.integers(0, shape, (2, rng.integers(0, 4), 2, len(shape)))
    links = [pairs[(pairs[:, 0] != pairs[:, 1]).any(1)] for pairs in links]
    links = [[p for p in pairs if mask[tuple(p[0])] and mask[tuple(p[1])]] for pairs in links]
    if rng.random() < 0.5:
        node_costs[rng.random(node_costs.shape) < 0.05] = np.inf
    if rng.random() < 0.5:
        edge_costs[rng.random(edge_costs.shape) < 0.02] = rng.choice([np.inf, -np.inf])
    given = {"mask": mask, "seeds": seeds, "must_link": links[0], "cannot_link": links[1]}
    costs = node_costs, edge_costs, problem[2]
    try:
        solution = solve_amwc(*costs, problem[3], method=method, **given)
    except ValueError as error:
        message = str(error)
        assert "constraints" in message or "node_costs" in message or "mask" in message, message
        return
    assert ((solution.segments < 0) == ~mask).all(), "mask"
    check_segments(solution.classes[mask], solution.segments[mask], problem[3])
    for pairs, together in zip(links, (True, False)):
        for p, q in pairs:
            same_segment = solution.segments[tuple(p)] == solution.segments[tuple(q)]
            assert same_segment == together, "links"
    seeded = np.unique(np.stack([seeds, solution.segments])[:, seeds >= 0], axis=1)
    assert all(len(np.unique(ids)) == seeded.shape[1] for ids in seeded), "seeds"
    value = amwc_objective(*costs, solution.classes, solution.segments)
    assert np.isfinite(value), "an infinite cost was not obeyed"


def fuzz_mwc(rng):
    """Cold and warm multiway cuts."""
    node_costs, edge_costs, distances, _ = draw_grid(rng)
    stuff = np.zeros(len(node_costs), bool)
    problem = node_costs, edge_costs, distances, stuff
    cold = solve_mwc(*problem[:3])
    check_solution(cold, problem, "mwc")
    assert lower_bound(*problem) <= cold.objective, "bound above a solution"
    start = rng.integers(0, len(node_costs), node_costs.shape[1:])
    warm = solve_mwc(*problem[:3], init=start)
    check_solution(warm, problem, "warm mwc")
    scale = np.abs(node_costs).sum(dtype=float) + np.abs(edge_costs).sum(dtype=float)
    before = amwc_objective(*problem[:3], start, start)
    assert warm.objective <= before + 1e-7 * scale, "warm start got worse"
    for settled in (cold, warm):
        again = solve_mwc(*problem[:3], init=settled.classes)
        assert same(again, settled), "zero perturbation of a solution moved it"


def fuzz_graph(rng):
    """Graphs, parallel edges and isolated nodes included."""
    nodes, classes = int(rng.integers(1, 50)), int(rng.choice([1, 2, 5, 30]))
    edges = rng.integers(0, nodes, (rng.integers(0, 4 * nodes), 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    node_costs = draw_costs(rng, (nodes, classes), 1)
    edge_costs = draw_costs(rng, len(edges), 1)
    partitionable = rng.random(classes) < 0.5
    bound = lower_bound_graph(node_costs, edges, edge_costs, partitionable)
    scale = 1 + np.abs(node_costs).sum(dtype=float) + np.abs(edge_costs).sum(dtype=float)
    for method in draw_methods(rng, nodes):
        solution = solve_amwc_graph(node_costs, edges, edge_costs, partitionable, method=method)
        check_segments(solution.classes, solution.segments, partitionable)
        cut = solution.segments[edges[:, 0]] != solution.segments[edges[:, 1]]
        value = node_costs[np.arange(nodes), solution.classes].sum(dtype=float)
        value += edge_costs[cut].sum(dtype=float)
        # Parallel edges are summed to float32 before solving.
        assert abs(value - solution.objective) <= 1e-6 * scale, f"{method}: objective"
        assert bound <= solution.objective, "bound above a solution"


def fuzz_batch(rng):
    """Batches give what single calls give, whatever the number of threads."""
    first = draw_grid(rng)
    node_costs, edge_costs = [first[0]], [first[1]]
    for _ in range(rng.integers(0, 4)):
        shape = rng.integers(1, 9, 2)
        shape = (*first[0].shape[1:-2], *shape)
        node_costs.append(draw_costs(rng, (len(first[0]), *shape), 1))
        edge_costs.append(
            draw_costs(rng, (*first[1].shape[: first[1].ndim - len(shape)], *shape), 1)
        )
    largest = max(costs[0].size for costs in node_costs)
    method, threads = str(rng.choice(draw_methods(rng, largest))), int(rng.integers(1, 4))
    solutions = solve_amwc_batch(node_costs, edge_costs, *first[2:], method, threads)
    for nodes, edges, solution in zip(node_costs, edge_costs, solutions):
        assert same(solution, solve_amwc(nodes, edges, *first[2:], method)), "batch differs"
    inits = [
        rng.integers(0, len(c), c.shape[1:]) if rng.random() < 0.5 else None for c in node_costs
    ]
    solutions = solve_mwc_batch(node_costs, edge_costs, first[2], inits, threads)
    for nodes, edges, init, solution in zip(node_costs, edge_costs, inits, solutions):
        assert same(solution, solve_mwc(nodes, edges, first[2], init)), "mwc batch differs"


def fuzz_broken(rng):
    """Broken input raises ValueError or TypeError and nothing else."""
    node_costs, edge_costs, distances, partitionable = draw_grid(rng)
    node_costs, edge_costs = node_costs.copy(), edge_costs.copy()
    bad = np.nan
    broken = rng.integers(9)
    if broken == 0:
        node_costs.flat[rng.integers(node_costs.size)] = bad
    elif broken == 1:
        distances, edge_costs = [1], np.zeros((1, 2, *node_costs.shape[1:]), np.float32)
        edge_costs[:] = bad  # some of which are edges, but for a single pixel
        if node_costs[0].size == 1:
            node_costs.flat[0] = bad
    elif broken == 2:
        distances = [*distances, int(rng.integers(-3, 1))]
        edge_costs = np.zeros((len(distances), 2, *node_costs.shape[1:]), np.float32)
    elif broken == 3:
        partitionable = np.append(partitionable, True)
    elif broken == 4:
        edge_costs = np.zeros((len(distances) + 1, 2, *node_costs.shape[1:]), np.float32)
    elif broken == 5:
        node_costs = node_costs[:, :0]
    elif broken == 6:
        node_costs = node_costs.tolist()
    elif broken == 7:
        node_costs = node_costs.astype(np.int64)
    else:
        node_costs = node_costs[0]
    function = [solve_amwc, lower_bound][rng.integers(2)]
    try:
        function(node_costs, edge_costs, distances, partitionable)
    except (ValueError, TypeError):
        return
    raise AssertionError(f"broken input {broken} was accepted by {function.__name__}")


KINDS = (fuzz_amwc, fuzz_mwc, fuzz_graph, fuzz_batch, fuzz_broken)
WEIGHTS = (0.35, 0.2, 0.2, 0.1, 0.15)


def run_case(seed):
    """Run the case of one seed; raise AssertionError if a promise is broken."""
    rng = np.random.default_rng(seed)
    KINDS[rng.choice(len(KINDS), p=WEIGHTS)](rng)


def main(arguments=None):
    """Run the cases; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--keep-going", action="store_true", help="list every failure")
    options = parser.parse_args(arguments)
    start, failures = time.monotonic(), 0
    for seed in range(options.first, options.first + options.cases):
        try:
            run_case(seed)
        except Exception as error:
            print(f"case {seed}: {type(error).__name__}: {error}", file=sys.stderr)
            failures += 1
            if not options.keep_going:
                raise
        if (seed - options.first) % 500 == 499:
            print(f"{seed - options.first + 1} cases, {time.monotonic() - start:.0f} s", flush=True)
    seconds = time.monotonic() - start
    print(f"fuzz_solver: {options.cases} cases, {failures} failed, {seconds:.1f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
