"""Asymmetric multiway cut (AMWC) and multiway cut on pixel grids and graphs. Needs NumPy only.

Shapes: K classes (J labels), H x W pixels, D edge distances, N nodes and E edges of a graph.

    minimise  sum_i node_cost(i, class_i)  +  sum_ij edge_cost(ij) [segment_i != segment_j]

over labellings in which a segment has one class and a class that is not partitionable ("stuff")
has at most one segment. Positive edge costs are attractive. ``edge_costs[d, 0, y, x]`` joins
(y, x) and (y, x + distances[d]); ``edge_costs[d, 1, y, x]`` joins (y, x) and
(y + distances[d], x); entries whose other end lies outside the grid are ignored.
"""

import os
import threading
from typing import NamedTuple

import numpy as np

try:
    from ._amwc import Arena, all_finite, bound, bound_graph, objective
except ModuleNotFoundError as error:
    raise ImportError(
        "the solver of amwc_d2 is not compiled for this Python. Run 'pip install -e .' in the "
        "repository; it needs a C++ compiler (gcc or clang)."
    ) from error

__all__ = [
    "Solution",
    "amwc_objective",
    "lower_bound",
    "lower_bound_graph",
    "solve_amwc",
    "solve_amwc_batch",
    "solve_amwc_graph",
    "solve_mwc",
    "solve_mwc_batch",
    "thread_count",
]

METHODS = {"greedy": 0, "fast": 1, "best": 2}
_DOT = "the solver runs on the CPU: pass a NumPy array, of a tensor .detach().cpu().numpy()"


class Solution(NamedTuple):
    """A labelling and its value.

    Attributes:
        classes: int32 (H, W) or (N,), class of every pixel or node.
        segments: int32, same shape: segment ids from 0 without gaps, in order of first appearance.
        objective: float, evaluated in double precision.
    """

    classes: np.ndarray
    segments: np.ndarray
    objective: float


def solve_amwc(node_costs, edge_costs, distances, partitionable, method="fast"):
    """Solves an asymmetric multiway cut on a grid.

    Args:
        node_costs: float32 (K, H, W), lower is better.
        edge_costs: float32 (D, 2, H, W), positive is attractive; see the module's head.
        distances: D distinct ints >= 1. Distances beyond the grid have no edges.
        partitionable: bool (K,), True for classes with any number of segments (things).
        method: "greedy" (Algorithm 2 of the paper, exactly), "fast" (label first, then local
            moves) or "best" (both, with full local search; slow).

    Returns:
        A :class:`Solution`.

    Raises:
        ValueError: an argument has a wrong shape or value, or a cost is not finite.
        TypeError: an argument is not a NumPy array or has a dtype that cannot be used.
    """
    return _run(_amwc_job(node_costs, edge_costs, distances, partitionable, method))


def solve_amwc_batch(
    node_costs, edge_costs, distances, partitionable, method="fast", num_threads=0
):
    """Solves one problem for each image on threads; the results do not depend on their number.

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
    _check_lengths(node_costs=node_costs, edge_costs=edge_costs)
    return _run_batch(
        lambda i: _amwc_job(node_costs[i], edge_costs[i], distances, partitionable, method),
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
    return _run(_mwc_job(node_costs, edge_costs, distances, init))


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
    _check_lengths(node_costs=node_costs, edge_costs=edge_costs, inits=inits)
    return _run_batch(
        lambda i: _mwc_job(node_costs[i], edge_costs[i], distances, inits[i]),
        len(node_costs),
        num_threads,
    )


def solve_amwc_graph(node_costs, edges, edge_costs, partitionable, method="greedy"):
    """Solves an asymmetric multiway cut on any graph.

    Args:
        node_costs: float32 (N, K), lower is better.
        edges: int (E, 2), node ids; parallel edges are summed, self loops are refused.
        edge_costs: float32 (E,), positive is attractive.
        partitionable: bool (K,).
        method: "greedy" (Algorithm 2) or "best" (and local search); "fast" is for grids and
            means "greedy" here.

    Returns:
        A :class:`Solution` with shapes (N,).

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    node_costs, edges, edge_costs = _graph(node_costs, edges, edge_costs)
    nodes, k = node_costs.shape
    partitionable = _partitionable(partitionable, k)
    classes, segments = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
    code = _method(method)

    def job(arena):
        value = arena.amwc_graph(
            node_costs, edges, edge_costs, partitionable, code, classes, segments
        )
        return Solution(classes, segments, value)

    return _run(job)


def amwc_objective(node_costs, edge_costs, distances, classes, segments):
    """Objective of a labelling, feasible or not, as a float evaluated in double precision.

    Args:
        node_costs, edge_costs, distances: as in :func:`solve_amwc`.
        classes: int (H, W) in [0, K).
        segments: int (H, W), any ids; only their equality counts.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    node_costs, edge_costs, distances = _grid(node_costs, edge_costs, distances)
    classes = _labelling("classes", classes, node_costs.shape[1:], len(node_costs))
    segments = _labelling("segments", segments, node_costs.shape[1:], None)
    return objective(node_costs, edge_costs, distances, classes, segments)


def _amwc_job(node_costs, edge_costs, distances, partitionable, method):
    node_costs, edge_costs, distances = _grid(node_costs, edge_costs, distances, finite=False)
    partitionable = _partitionable(partitionable, len(node_costs))
    code = _method(method)

    def job(arena):
        classes = np.empty(node_costs.shape[1:], np.int32)
        segments = np.empty_like(classes)
        value = arena.amwc(
            node_costs, edge_costs, distances, partitionable, code, classes, segments
        )
        return Solution(classes, segments, _finite(value, node_costs))

    return job


def _mwc_job(node_costs, edge_costs, distances, init):
    node_costs, edge_costs, distances = _grid(node_costs, edge_costs, distances, finite=False)
    if init is not None:
        init = _labelling("init", init, node_costs.shape[1:], len(node_costs))

    def job(arena):
        classes = np.empty(node_costs.shape[1:], np.int32)
        segments = np.empty_like(classes)
        value = arena.multiway(node_costs, edge_costs, distances, init, classes, segments)
        return Solution(classes, segments, _finite(value, node_costs))

    return job


# --- threads

_arenas = []  # free working memories; list.append and list.pop are atomic


def _run(job):
    try:
        arena = _arenas.pop()
    except IndexError:
        arena = Arena()
    try:
        return job(arena)
    finally:
        _arenas.append(arena)


def _run_batch(make_job, count, num_threads):
    threads = min(thread_count(num_threads), count)
    results, failures = [None] * count, {}
    todo = iter(range(count))
    stop = threading.Event()

    def work():
        for i in todo:  # next() of a range iterator is atomic
            if stop.is_set():
                return
            try:
                results[i] = _run(make_job(i))
            except Exception as error:
                failures[i] = error
                stop.set()

    if threads <= 1:
        work()
    else:
        workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join()
        except BaseException:  # Ctrl-C: let the images in work finish, start no other
            stop.set()
            raise
    if failures:
        i = min(failures)
        error = failures[i]
        if isinstance(error, (TypeError, ValueError, MemoryError)):
            raise type(error)(f"image {i}: {error}") from error
        raise error
    return results


def thread_count(num_threads):
    """The threads that ``num_threads`` stands for: see :func:`solve_amwc_batch`."""
    if isinstance(num_threads, bool) or num_threads != int(num_threads) or num_threads < 0:
        raise ValueError(f"num_threads: expected an int >= 0 (0 = automatic), got {num_threads!r}")
    if num_threads:
        return int(num_threads)
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- validation


def _floats(name, array, shape, ndim, empty=False, finite=True):
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name}: expected a float32 array {shape}, got {type(array).__name__}; {_DOT}"
        )
    if array.dtype not in (np.float32, np.float64, np.float16):
        raise TypeError(
            f"{name}: expected float32, got {array.dtype}; convert with .astype(np.float32)"
        )
    if array.ndim != ndim or (not empty and array.size == 0):
        raise ValueError(f"{name}: expected shape {shape}, not empty, got {array.shape}")
    array = np.require(array, np.float32, ["C", "ALIGNED"])
    if finite and not all_finite(array.reshape(-1)):
        raise _not_finite(name, array)
    return array


def _not_finite(name, array):
    where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    return ValueError(
        f"{name}: all costs must be finite in float32, got {array[where]} at "
        f"index {where}; check the head that made them"
    )


def _finite(value, node_costs):
    """Pass on an objective; the solver returns NaN for node costs that are not finite."""
    if value != value:
        raise _not_finite("node_costs", node_costs)
    return value


def _ints(name, array, dtype=np.int64):
    """Check for integers; dtype=None: as they are."""
    array = np.asarray(array)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype)


def _grid(node_costs, edge_costs, distances, finite=True):
    node_costs = _floats("node_costs", node_costs, "(K, H, W)", 3, finite=finite)
    distances = _ints("distances", distances)
    if (
        distances.ndim != 1
        or (distances < 1).any()
        or len(set(distances.tolist())) != len(distances)
    ):
        raise ValueError(
            f"distances: expected a flat list of distinct ints >= 1, got {distances.tolist()}"
        )
    edge_costs = _floats("edge_costs", edge_costs, "(D, 2, H, W)", 4, empty=not len(distances))
    expected = (len(distances), 2, *node_costs.shape[1:])
    if edge_costs.shape != expected:
        raise ValueError(
            f"edge_costs: expected shape {expected} for {len(distances)} distances "
            f"and node_costs of shape {node_costs.shape}, got {edge_costs.shape}"
        )
    return node_costs, edge_costs, np.minimum(distances, 2**30).astype(np.int32)


def _graph(node_costs, edges, edge_costs):
    node_costs = _floats("node_costs", node_costs, "(N, K)", 2)
    nodes = len(node_costs)
    edge_costs = _floats("edge_costs", edge_costs, "(E,)", 1, empty=True)
    edges = _ints("edges", edges)
    if not edges.size:
        edges = edges.reshape(0, 2)
    if edges.shape != (len(edge_costs), 2):
        raise ValueError(
            f"edges: expected shape ({len(edge_costs)}, 2), one row for each of "
            f"edge_costs, got {edges.shape}"
        )
    if edges.size and not (edges.min() >= 0 and edges.max() < nodes):
        raise ValueError(
            f"edges: node ids must be in [0, {nodes}), got [{edges.min()}, {edges.max()}]"
        )
    if (edges[:, 0] == edges[:, 1]).any():
        row = int(np.argmax(edges[:, 0] == edges[:, 1]))
        raise ValueError(f"edges: row {row} joins node {edges[row, 0]} to itself; remove it")
    return node_costs, *_merge_parallel(edges, edge_costs, nodes)


def _partitionable(partitionable, k):
    partitionable = np.asarray(partitionable)
    if partitionable.shape != (k,) or partitionable.dtype.kind not in "biu":
        raise ValueError(
            f"partitionable: expected bool ({k},), one for each class of node_costs, "
            f"got {partitionable.dtype} {partitionable.shape}"
        )
    return np.ascontiguousarray(partitionable != 0).view(np.uint8)


def _labelling(name, labels, shape, k):
    labels = _ints(name, labels, None)
    if labels.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if k is not None and not (low >= 0 and high < k):
        raise ValueError(f"{name}: expected labels in [0, {k}), got [{low}, {high}]")
    if low < -(2**31) or high >= 2**31:
        raise ValueError(f"{name}: ids must fit 32 bits, got [{low}, {high}]")
    return np.ascontiguousarray(labels, np.int32)


def _method(method):
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method]


def _check_lengths(**sequences):
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected sequences of one length, got {lengths}")


def _merge_parallel(edges, edge_costs, nodes):
    low, high = edges.min(1, initial=nodes), edges.max(1, initial=-1)
    _, first, inverse = np.unique(low * nodes + high, return_index=True, return_inverse=True)
    if len(first) < len(edges):
        rank = np.argsort(np.argsort(first))
        summed = np.zeros(len(first), np.float64)
        np.add.at(summed, rank[inverse.ravel()], edge_costs)
        edges, edge_costs = edges[np.sort(first)], summed.astype(np.float32)
    return edges.astype(np.int32), edge_costs


# --- lower bound


def lower_bound(node_costs, edge_costs, distances, partitionable, tight=False):
    """Bounds the optimum of an asymmetric multiway cut on a grid from below.

    A valid dual bound (cycle packing and message passing on the pairwise relaxation; see
    docs/solver.md), so that ``solution.objective - lower_bound(...)`` is a certified gap. With no
    partitionable class it bounds the multiway cut. Rounding is accounted for: the bound is never
    above the optimum of the float32 costs.

    Args:
        node_costs, edge_costs, distances, partitionable: as in :func:`solve_amwc`.
        tight: search for longer cycles and iterate to convergence. Takes many times longer; meant
            for small grids.

    Returns:
        The bound, a float.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc`.
    """
    node_costs, edge_costs, distances = _grid(node_costs, edge_costs, distances)
    partitionable = _partitionable(partitionable, len(node_costs))
    return bound(node_costs, edge_costs, distances, partitionable, bool(tight))


def lower_bound_graph(node_costs, edges, edge_costs, partitionable):
    """Bounds the optimum of an asymmetric multiway cut on any graph from below.

    Args:
        node_costs, edges, edge_costs, partitionable: as in :func:`solve_amwc_graph`.

    Returns:
        The bound, a float; as tight as :func:`lower_bound` with ``tight=True``.

    Raises:
        ValueError, TypeError: as :func:`solve_amwc_graph`.
    """
    node_costs, edges, edge_costs = _graph(node_costs, edges, edge_costs)
    partitionable = _partitionable(partitionable, node_costs.shape[1])
    return bound_graph(node_costs, edges, edge_costs, partitionable)
