"""Asymmetric multiway cut (AMWC) and multiway cut on pixel grids and graphs. Needs NumPy only.

Shapes: K classes (J labels), H x W pixels, D edge distances or O offsets, N nodes and E edges of a
graph. A volume has D x H x W voxels; what is said of (H, W) holds for (D, H, W).

    minimise  sum_i node_cost(i, class_i)  +  sum_ij edge_cost(ij) [segment_i != segment_j]

over labellings in which a segment has one class and a class that is not partitionable ("stuff")
has at most one segment. Positive edge costs are attractive. ``edge_costs[d, 0, y, x]`` joins
(y, x) and (y, x + distances[d]); ``edge_costs[d, 1, y, x]`` joins (y, x) and
(y + distances[d], x); entries whose other end lies outside the grid are ignored.

``distances`` may also list offsets, in the convention of affinities: with ``distances[o] =
(dy, dx)``, of any sign, ``edge_costs[o, y, x]`` joins (y, x) and (y + dy, x + dx), and
``edge_costs`` is (O, H, W). A volume always has offsets: (dz, dy, dx), node costs (K, D, H, W)
and edge costs (O, D, H, W).
"""

from typing import NamedTuple

import numpy as np

try:
    from ._amwc import all_finite, bound, bound_graph, objective, objective_graph, refine
except ModuleNotFoundError as error:
    raise ImportError(
        "the solver of amwc_d2 is not compiled for this Python. Run 'pip install -e .' in the "
        "repository; it needs a C++ compiler (gcc or clang)."
    ) from error

from ._constraints import (
    check_graph_constraints,
    check_nodes,
    check_start,
    constrain,
    infinite_edges,
    relax,
    unconstrained,
)
from ._threads import release_memory, run, run_batch, thread_count
from ._validation import (
    METHODS,
    check_finite,
    check_graph,
    check_grid,
    check_labelling,
    check_lengths,
    check_partitionable,
    check_sizes,
    check_time_limit,
    method_code,
)

__all__ = [
    "METHODS",
    "Solution",
    "amwc_objective",
    "amwc_objective_graph",
    "lower_bound",
    "lower_bound_graph",
    "refine_labels",
    "refine_labels_batch",
    "release_memory",
    "solve_amwc",
    "solve_amwc_batch",
    "solve_amwc_graph",
    "solve_amwc_graph_batch",
    "solve_mwc",
    "solve_mwc_batch",
    "solve_mwc_graph",
    "thread_count",
]


class Solution(NamedTuple):
    """A labelling and its value.

    Attributes:
        classes: int32 (H, W) or (N,), class of every pixel or node.
        segments: int32, same shape: segment ids from 0 without gaps, in order of first appearance.
            Pixels outside a mask have class and segment -1.
        objective: float, evaluated in double precision; constraints count nothing in it.
    """

    classes: np.ndarray
    segments: np.ndarray
    objective: float

    @property
    def segment_classes(self) -> np.ndarray:
        """int32 (S,), the class of every segment."""
        part = self.segments >= 0
        classes = np.empty(int(self.segments.max()) + 1, np.int32)
        classes[self.segments[part]] = self.classes[part]
        return classes


def solve_amwc(
    node_costs,
    edge_costs,
    distances,
    partitionable,
    method="fast",
    *,
    mask=None,
    seeds=None,
    must_link=None,
    cannot_link=None,
    init=None,
    time_limit=None,
):
    """Solves an asymmetric multiway cut on a grid.

    Costs may be infinite, as constraints: a node cost of +inf forbids a class at a pixel, an edge
    of +inf is never cut, one of -inf always. What an infinite edge costs counts nothing in the
    objective. The result obeys all constraints, with every method.

    Args:
        node_costs: float32 (K, H, W) or, of a volume, (K, D, H, W); lower is better.
        edge_costs: float32 (D, 2, H, W), positive is attractive; with offsets (O, H, W) or
            (O, D, H, W). See the module's head.
        distances: D distinct ints >= 1, or O offsets (dy, dx) or (dz, dy, dx), of which no two join
            the same pixels. Those beyond the grid have no edges.
        partitionable: bool (K,), True for classes with any number of segments (things).
        method: "greedy" (Algorithm 2 of the paper, exactly), "fast" (label first, then local
            moves), "good" (fast on noisy costs and Algorithm 2, fused; never worse than either,
            some twenty times as long as fast) or "best" (from there, full local search; slow).
        mask: bool (H, W), False where pixels take no part; they get class and segment -1.
        seeds: int (H, W), ids >= 0, -1 for none: pixels of one id are of one segment, pixels of
            different ids of different ones. At most 2000 ids.
        must_link, cannot_link: int (M, 2, 2), pairs of pixels ((y, x), (y, x)) that are of one
            segment, or of different ones; (M, 2, 3) in a volume.
        init: a :class:`Solution` or (classes, segments) that obeys the constraints: "fast" makes
            only local moves from it that lower the objective, "good" and "best" begin with these.
        time_limit: seconds after which "good" and "best" return the best solution so far. It is
            looked at between steps: there always is a solution, of "fast" or better.

    Returns:
        A :class:`Solution`.

    Raises:
        ValueError: an argument has a wrong shape or value, a cost is NaN, a node cost is -inf, or
            the constraints leave no labelling, or none was found.
        TypeError: an argument is not a NumPy array or has a dtype that cannot be used.
    """
    job = _amwc_job(
        node_costs,
        edge_costs,
        distances,
        partitionable,
        method,
        init,
        time_limit,
        mask=mask,
        seeds=seeds,
        must_link=must_link,
        cannot_link=cannot_link,
    )
    return run(job)


def solve_amwc_batch(
    node_costs, edge_costs, distances, partitionable, method="fast", num_threads=0
):
    """Solves one problem for each image on threads; the results do not depend on their number.

    All costs must be finite: infinite ones, here, are an error of who made them.

    Args:
        node_costs: sequence of float32 (K, H, W), of any sizes.
        edge_costs: sequence of float32 (D, 2, H, W).
        distances, partitionable, method: as in :func:`solve_amwc`, shared by all images.
        num_threads: 0 for as many as the process may use (OMP_NUM_THREADS, else its CPUs); 1 to
            stay on the calling thread.

    Returns:
        A list of :class:`Solution`.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`, the message begins with the image's index.
    """
    check_lengths(node_costs=node_costs, edge_costs=edge_costs)
    return run_batch(
        lambda i: _finite_job(node_costs[i], edge_costs[i], distances, partitionable, method),
        len(node_costs),
        num_threads,
    )


def solve_mwc(node_costs, edge_costs, distances, init=None):
    """Solves a multiway cut on a grid: every label is one segment.

    Args:
        node_costs: float32 (J, H, W), lower is better.
        edge_costs, distances: as in :func:`solve_amwc`.
        init: int (H, W) in [0, J): start here and only make local moves that lower the objective.
            A start that no such move improves is returned unchanged.

    Returns:
        A :class:`Solution`; ``classes`` holds the labels, ``segments`` numbers those in use.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    return run(_mwc_job(node_costs, edge_costs, distances, init))


def solve_mwc_batch(node_costs, edge_costs, distances, inits=None, num_threads=0):
    """Solves many multiway cuts on threads; the results do not depend on their number.

    Args:
        node_costs: sequence of float32 (J, H, W); J and sizes may differ.
        edge_costs: sequence of float32 (D, 2, H, W).
        distances: as in :func:`solve_amwc`, shared.
        inits: None, or a sequence with an ``init`` of :func:`solve_mwc` (or None) for each.
        num_threads: as in :func:`solve_amwc_batch`.

    Returns:
        A list of :class:`Solution`.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`, the message begins with the index.
    """
    if inits is None:
        inits = [None] * len(node_costs)
    check_lengths(node_costs=node_costs, edge_costs=edge_costs, inits=inits)
    return run_batch(
        lambda i: _mwc_job(node_costs[i], edge_costs[i], distances, inits[i]),
        len(node_costs),
        num_threads,
    )


def solve_amwc_graph(
    node_costs, edges, edge_costs, partitionable, method="greedy", *, time_limit=None
):
    """Solves an asymmetric multiway cut on any graph.

    Args:
        node_costs: float32 (N, K), lower is better.
        edges: int (E, 2), node ids; parallel edges are summed, self loops are refused.
        edge_costs: float32 (E,), positive is attractive.
        partitionable: bool (K,).
        method: "greedy" (Algorithm 2), "fast" (then moves of nodes and clusters until none
            improves) or "best" (and local search).
        time_limit: as in :func:`solve_amwc`. Infinite costs are constraints as there.

    Returns:
        A :class:`Solution` with shapes (N,).

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    return run(_graph_job(node_costs, edges, edge_costs, partitionable, method, time_limit))


def solve_amwc_graph_batch(
    node_costs, edges, edge_costs, partitionable, method="greedy", num_threads=0
):
    """Solves many graphs on threads; the results do not depend on their number.

    Args:
        node_costs, edges, edge_costs: sequences, one entry a graph, as in
            :func:`solve_amwc_graph`.
        partitionable, method: shared.
        num_threads: as in :func:`solve_amwc_batch`.

    Returns:
        A list of :class:`Solution`.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`, the message begins with the index.
    """
    check_lengths(node_costs=node_costs, edges=edges, edge_costs=edge_costs)
    return run_batch(
        lambda i: _graph_job(node_costs[i], edges[i], edge_costs[i], partitionable, method),
        len(node_costs),
        num_threads,
    )


def solve_mwc_graph(node_costs, edges, edge_costs, method="fast", *, time_limit=None):
    """Solves a multiway cut on any graph: every label is one segment.

    Args:
        node_costs: float32 (N, J), lower is better.
        edges, edge_costs, method, time_limit: as in :func:`solve_amwc_graph`.

    Returns:
        A :class:`Solution`; ``classes`` holds the labels, ``segments`` numbers those in use.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    labels = np.shape(node_costs)[-1] if np.ndim(node_costs) else 1
    stuff = np.zeros(labels, bool)
    return run(_graph_job(node_costs, edges, edge_costs, stuff, method, time_limit))


def amwc_objective_graph(node_costs, edges, edge_costs, classes, segments):
    """Objective of a labelling of a graph, feasible or not, in double precision.

    Args:
        node_costs, edges, edge_costs: as in :func:`solve_amwc_graph`.
        classes: int (N,) in [0, K).
        segments: int (N,), any ids; only their equality counts.

    Returns:
        The objective; +inf as in :func:`amwc_objective`.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    node_costs, edges, edge_costs = check_graph(node_costs, edges, edge_costs, finite=False)
    classes = check_labelling("classes", classes, node_costs.shape[:1], node_costs.shape[1])
    segments = check_labelling("segments", segments, node_costs.shape[:1], None)
    cut = segments[edges[:, 0]] != segments[edges[:, 1]]
    if cut[edge_costs == np.inf].any() or not cut[edge_costs == -np.inf].all():
        return float("inf")
    return objective_graph(node_costs, edges, edge_costs, classes, segments)


def amwc_objective(node_costs, edge_costs, distances, classes, segments):
    """Objective of a labelling, feasible or not, as a float evaluated in double precision.

    Args:
        node_costs, edge_costs, distances: as in :func:`solve_amwc`.
        classes: int (H, W) in [0, K); -1 where a pixel takes no part (outside a mask).
        segments: int (H, W), any ids; only their equality counts. -1 where the class is.

    Returns:
        The objective; +inf for a labelling that has a forbidden class, cuts an edge of cost +inf or
        does not cut one of -inf.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    grid, shape = check_grid(node_costs, edge_costs, distances, finite=False, finite_edges=False)
    classes = check_labelling("classes", classes, shape, len(grid.node), -1).ravel()
    segments = check_labelling("segments", segments, shape, None).ravel()
    masked = bool(classes.min() < 0)
    check_nodes(grid, shape, classes >= 0)
    if masked and ((classes < 0) != (segments == -1)).any():
        raise ValueError("segments: expected -1 exactly where the class is -1")
    grid, together, apart = infinite_edges(grid, shape, classes >= 0 if masked else None)
    cut = [segments[pairs[:, 0]] != segments[pairs[:, 1]] for pairs in (together, apart)]
    if cut[0].any() or not cut[1].all():
        return float("inf")
    return objective(*grid, classes, segments, masked)


def refine_labels(
    solution, node_costs, edge_costs, distances, *, stride, image_size, output_size, gamma
):
    """Brings the labels of cells to pixels, with boundaries finer than the grid.

    A pixel whose four surrounding cells (the taps of bilinear interpolation) are of one segment
    takes that segment. Elsewhere it takes, of their at most four segments s, the one with the
    lowest bilinearly interpolated *conditional cost* ``node_cost(i, class of s) - gamma * sum of
    edge_cost(ij)`` over the edges of length 1 and 2 from cell i to cells j of s; of equal ones the
    first in the order of the cells. No segment appears; one of few cells can vanish.

    Args:
        solution: a :class:`Solution` of these costs, or any ``(classes, segments, ...)``, int
            (H, W) each; a segment has one class.
        node_costs, edge_costs, distances: as in :func:`solve_amwc`.
        stride: pixels of the network's input in a cell, along each axis.
        image_size: (height, width) of the network's input without padding; its cells are H, W =
            ceil(size / stride).
        output_size: (height, width) of the result; any, the image is stretched to it.
        gamma: weight >= 0 of the edges. 0: class costs alone decide.

    Returns:
        classes and segments, int32, of the output's size.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    job = _refine_job(
        solution, node_costs, edge_costs, distances, stride, image_size, output_size, gamma
    )
    return run(job)


def refine_labels_batch(
    solutions,
    node_costs,
    edge_costs,
    distances,
    *,
    stride,
    image_sizes,
    output_sizes,
    gamma,
    num_threads=0,
):
    """Refines the labels of many images on threads; see :func:`refine_labels`.

    Args:
        solutions, node_costs, edge_costs, image_sizes, output_sizes: sequences, one entry an image.
        distances, stride, gamma: shared.
        num_threads: as in :func:`solve_amwc_batch`.

    Returns:
        a list of pairs (classes, segments).

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`, the message begins with the image's index.
    """
    check_lengths(
        solutions=solutions,
        node_costs=node_costs,
        edge_costs=edge_costs,
        image_sizes=image_sizes,
        output_sizes=output_sizes,
    )
    return run_batch(
        lambda i: _refine_job(
            solutions[i],
            node_costs[i],
            edge_costs[i],
            distances,
            stride,
            image_sizes[i],
            output_sizes[i],
            gamma,
        ),
        len(solutions),
        num_threads,
    )


def lower_bound(
    node_costs, edge_costs, distances, partitionable, tight=False, solution=None, *, mask=None
):
    """Bounds the optimum of an asymmetric multiway cut on a grid from below.

    A valid dual bound (cycle packing and message passing on the pairwise relaxation; see
    docs/solver.md), so that ``solution.objective - lower_bound(...)`` is a certified gap. With no
    partitionable class it bounds the multiway cut. Rounding is accounted for: the bound is never
    above the optimum of the float32 costs.

    Args:
        node_costs, edge_costs, distances, partitionable: as in :func:`solve_amwc`.
        tight: search for longer cycles and iterate to convergence. Takes many times longer; meant
            for small grids.
        solution: a good :class:`Solution` of the problem, which guides the search for cycles: the
            gap to it shrinks, at a little more time. The bound is valid whatever it is.
        mask: as in :func:`solve_amwc`. Forbidden classes count; infinite edges are relaxed. The
            bound holds with seeds and links too, but knows nothing of them.

    Returns:
        The bound, a float.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    grid, shape = check_grid(node_costs, edge_costs, distances, finite=False, finite_edges=False)
    partitionable = check_partitionable(partitionable, len(grid.node))
    grid = relax(grid, shape, mask)
    segments = None
    if solution is not None:
        segments = check_labelling("solution.segments", solution.segments, shape, None).reshape(-1)
    return bound(*grid, partitionable, bool(tight), segments)


def lower_bound_graph(node_costs, edges, edge_costs, partitionable):
    """Bounds the optimum of an asymmetric multiway cut on any graph from below.

    Args:
        node_costs, edges, edge_costs, partitionable: as in :func:`solve_amwc_graph`.

    Returns:
        The bound, a float; as tight as :func:`lower_bound` with ``tight=True``.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc_graph`.
    """
    node_costs, edges, edge_costs = check_graph(node_costs, edges, edge_costs)
    partitionable = check_partitionable(partitionable, node_costs.shape[1])
    return bound_graph(node_costs, edges, edge_costs, partitionable)


def _refine_job(
    solution, node_costs, edge_costs, distances, stride, image_size, output_size, gamma
):
    grid, cells = check_grid(node_costs, edge_costs, distances)
    if len(cells) != 2:
        raise ValueError(f"node_costs: only images can be refined, got shape {node_costs.shape}")
    classes = check_labelling("classes", solution[0], cells, len(grid.node))
    segments = check_labelling("segments", solution[1], cells, None)
    stride = check_sizes("stride", (stride,), 1)[0]
    image_size = check_sizes("image_size", image_size, 2)
    output_size = check_sizes("output_size", output_size, 2)
    if tuple(-(-image_size // stride)) != cells:
        raise ValueError(
            f"image_size: {tuple(image_size.tolist())} at stride {stride} has "
            f"{tuple((-(-image_size // stride)).tolist())} cells, but the costs have {cells}; give "
            "the size of the network's input without padding, and the costs of its cells alone"
        )
    if not 0 <= gamma < np.inf:
        raise ValueError(f"gamma: expected a finite number >= 0, got {gamma!r}")

    def job(arena):
        out = np.empty((2, *output_size), np.int32)
        refine(*grid, classes, segments, gamma, stride, image_size, *out)
        return tuple(out)

    return job


def _amwc_job(
    node_costs,
    edge_costs,
    distances,
    partitionable,
    method,
    init=None,
    time_limit=None,
    **constraints,
):
    grid, shape = check_grid(node_costs, edge_costs, distances, finite=False, finite_edges=False)
    partitionable = check_partitionable(partitionable, len(grid.node))
    code, limit = method_code(method), check_time_limit(time_limit)
    if init is not None and method == "greedy":
        raise ValueError('init: method "greedy" has no start; use "fast" or "best"')
    given = any(value is not None for value in constraints.values())
    if given or not all_finite(grid.edge):
        problem = constrain(grid, shape, partitionable, **constraints)
    else:
        problem = unconstrained(grid, shape, partitionable)

    def job(arena):
        nonlocal problem
        while True:
            solution = _solve(arena, problem, code, limit, init, len(grid.node))
            if solution.objective == solution.objective:
                return solution
            # A node cost is not finite: forbidden classes, or an error.
            problem = constrain(grid, shape, partitionable, **constraints)

    return job


def _finite_job(node_costs, edge_costs, distances, partitionable, method):
    grid, shape = check_grid(node_costs, edge_costs, distances, finite=False)
    problem = unconstrained(grid, shape, check_partitionable(partitionable, len(grid.node)))
    code = method_code(method)

    def job(arena):
        solution = _solve(arena, problem, code, np.inf, None, len(grid.node))
        check_finite(solution.objective, node_costs)
        return solution

    return job


def _solve(arena, problem, code, limit, init, num_classes):
    start = check_start(init, problem, num_classes) if init is not None else None
    if start is None:
        classes, segments = np.empty((2, problem.grid.node.shape[1]), np.int32)
    else:
        classes, segments = start
    arguments = problem.arguments()
    value = arena.amwc(*arguments, code, start is not None, limit, classes, segments)
    if value == value and problem.constrained:
        if not problem.obeyed(value, segments):  # Algorithm 2 obeys constraints by construction
            arena.amwc(*arguments, METHODS["greedy"], False, limit, classes, segments)
            value = arena.amwc(*arguments, METHODS["fast"], True, limit, classes, segments)
        if not problem.obeyed(value, segments):
            words = problem.violation(classes, segments)
            raise RuntimeError(f"the solver broke a constraint: {words}; please report this")
        if problem.mask is not None:
            classes, segments = problem.hidden(classes, segments)
            value = problem.objective(classes, segments)
    shape = problem.shape
    return Solution(classes.reshape(shape), segments.reshape(shape), value)


def _graph_job(node_costs, edges, edge_costs, partitionable, method, time_limit=None):
    node_costs, edges, edge_costs = check_graph(node_costs, edges, edge_costs, finite=False)
    partitionable = check_partitionable(partitionable, node_costs.shape[1])
    check_graph_constraints(node_costs, edges, edge_costs)
    code, limit = method_code(method), check_time_limit(time_limit)

    def job(arena):
        classes, segments = np.empty((2, len(node_costs)), np.int32)
        value = arena.amwc_graph(
            node_costs, edges, edge_costs, partitionable, code, limit, classes, segments
        )
        return Solution(classes, segments, value)

    return job


def _mwc_job(node_costs, edge_costs, distances, init):
    grid, shape = check_grid(node_costs, edge_costs, distances, finite=False)
    if init is not None:
        init = check_labelling("init", init, shape, len(grid.node)).ravel()

    def job(arena):
        classes, segments = np.empty((2, grid.node.shape[1]), np.int32)
        value = arena.multiway(*grid, init, classes, segments)
        check_finite(value, node_costs)
        return Solution(classes.reshape(shape), segments.reshape(shape), value)

    return job
