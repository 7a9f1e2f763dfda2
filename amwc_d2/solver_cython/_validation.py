"""Checks of the solver's arguments: what comes in wrong is named, what can be converted is."""

from typing import NamedTuple

import numpy as np

from ._amwc import all_finite

METHODS = {"greedy": 0, "fast": 1, "good": 3, "best": 2}
_MAX_SIZE = 2**20  # pixels along an axis of an image
_DOT = "the solver runs on the CPU: pass a NumPy array, of a tensor .detach().cpu().numpy()"


def as_floats(name, array, shape, ndim, empty=False, finite=True):
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name}: expected a float32 array {shape}, got {type(array).__name__}; {_DOT}"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: masked arrays are not supported, the mask would be ignored; fill it first "
            "with .filled(value)"
        )
    if array.dtype not in (np.float32, np.float64, np.float16):
        raise TypeError(
            f"{name}: expected float32, got {array.dtype}; convert with .astype(np.float32)"
        )
    if array.ndim != ndim or (not empty and array.size == 0):
        raise ValueError(f"{name}: expected shape {shape}, not empty, got {array.shape}")
    array = np.require(array, np.float32, ["C", "ALIGNED"])
    if finite and not all_finite(array.reshape(-1)):
        raise not_finite(name, array)
    return array


def not_finite(name, array, allowed=None):
    bad = np.isnan(array) if np.isnan(array).any() else ~np.isfinite(array)
    if allowed and not np.isnan(array).any():
        bad = array == -np.inf
    bad = np.argwhere(bad)
    if not len(bad):
        return ValueError(f"{name}: costs were changed by another thread while they were solved")
    where = tuple(int(i) for i in bad[0])
    rule = (
        f"costs must be finite in float32 ({allowed})"
        if allowed
        else ("all costs must be finite in float32")
    )
    return ValueError(
        f"{name}: {rule}, got {array[where]} at index {where}; check the head that made them"
    )


def check_finite(value, node_costs):
    """Pass on an objective; the solver returns NaN for node costs that are not finite."""
    if value != value:
        raise not_finite("node_costs", node_costs)
    return value


def as_ints(name, array, dtype=np.int64):
    """Check for integers, dtype=None: as they are; a copy, that no other thread writes to."""
    array = np.asarray(array)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return np.array(array, dtype, order="C")


def check_count(name, count):
    """Nodes and edges are numbered in 32 bits."""
    if count >= 2**31:
        raise ValueError(
            f"{name}: {count} entries are too many, the solver takes less than 2^31; solve tiles"
        )


class Grid(NamedTuple):
    """A checked grid problem, as the compiled functions take it; a plane counts as Z = 1."""

    node: np.ndarray  # float32 (K, Z * Y * X)
    edge: np.ndarray  # float32 (L * Z * Y * X,)
    offsets: np.ndarray  # int32 (L, 3): dz, dy, dx
    shape: np.ndarray  # int32 (3,): Z, Y, X


def check_grid(node_costs, edge_costs, distances, finite=True, finite_edges=True):
    """Check a grid problem; returns it as a Grid and the shape of its labellings."""
    dims = node_costs.ndim if isinstance(node_costs, np.ndarray) and node_costs.ndim == 4 else 3
    expected = "(K, H, W)" if dims == 3 else "(K, D, H, W)"
    node_costs = as_floats("node_costs", node_costs, expected, dims, finite=finite)
    shape = node_costs.shape[1:]
    distances = as_ints("distances", distances)
    listed = isinstance(edge_costs, np.ndarray) and edge_costs.ndim == 1 + len(shape)
    if distances.ndim == 1 and len(shape) == 2 and (distances.size or not listed):
        if (distances < 1).any() or len(set(distances.tolist())) != len(distances):
            raise ValueError(
                "distances: expected distinct ints >= 1, or offsets (dy, dx), got "
                f"{distances.tolist()}"
            )
        offsets = np.zeros((len(distances), 2, 3), np.int64)
        offsets[:, 0, 2] = offsets[:, 1, 1] = distances
        offsets, layers, shown = offsets.reshape(-1, 3), (len(distances), 2), "(D, 2, H, W)"
    else:
        offsets = check_offsets(distances, len(shape))
        layers, shown = (len(offsets),), "(O, H, W)" if len(shape) == 2 else "(O, D, H, W)"
    edge_costs = as_floats(
        "edge_costs",
        edge_costs,
        shown,
        len(layers) + len(shape),
        empty=not len(offsets),
        finite=finite_edges,
    )
    if edge_costs.shape != layers + shape:
        raise ValueError(
            f"edge_costs: expected shape {layers + shape} for {len(distances)} distances "
            f"and node_costs of shape {node_costs.shape}, got {edge_costs.shape}"
        )
    check_count("edge_costs", edge_costs.size)
    check_count("node_costs[0]", node_costs[0].size)
    grid = Grid(
        node_costs.reshape(len(node_costs), -1),
        edge_costs.reshape(-1),
        np.ascontiguousarray(offsets.clip(-(2**30), 2**30), np.int32),
        np.array((1, *shape)[-3:], np.int32),
    )
    return grid, shape


def check_offsets(offsets, dims):
    axes = "(dy, dx)" if dims == 2 else "(dz, dy, dx)"
    if not offsets.size:
        return np.zeros((0, 3), np.int64)
    if offsets.ndim != 2 or offsets.shape[1] != dims:
        raise ValueError(
            f"distances: expected offsets {axes} for node_costs of {dims + 1} dimensions, got "
            f"{offsets.tolist()}"
        )
    seen = {}
    for number, offset in enumerate(map(tuple, offsets.tolist())):
        if not any(offset):
            raise ValueError(
                f"distances: offset {number} is {offset}; a pixel has no edge to itself"
            )
        first = seen.setdefault(max(offset, tuple(-d for d in offset)), number)
        if first != number:
            raise ValueError(
                f"distances: offsets {first} and {number}, {tuple(offsets[first].tolist())} and "
                f"{offset}, join the same pixels; add up their costs and pass one"
            )
    return np.pad(offsets, ((0, 0), (3 - dims, 0)))


def check_graph(node_costs, edges, edge_costs, finite=True):
    node_costs = as_floats("node_costs", node_costs, "(N, K)", 2, finite=finite)
    nodes = len(node_costs)
    edge_costs = as_floats("edge_costs", edge_costs, "(E,)", 1, empty=True, finite=finite)
    if np.isnan(edge_costs).any() or np.isnan(node_costs).any() or (node_costs == -np.inf).any():
        name, costs = ("edge", edge_costs) if np.isnan(edge_costs).any() else ("node", node_costs)
        raise not_finite(f"{name}_costs", costs, "or +inf; an edge may be -inf too")
    edges = as_ints("edges", edges)
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
    check_count("edge_costs", len(edge_costs))
    return node_costs, *merge_parallel(edges, edge_costs, nodes)


def check_partitionable(partitionable, k):
    partitionable = np.asarray(partitionable)
    if partitionable.shape != (k,) or partitionable.dtype.kind not in "biu":
        raise ValueError(
            f"partitionable: expected bool ({k},), one for each class of node_costs, "
            f"got {partitionable.dtype} {partitionable.shape}"
        )
    return np.ascontiguousarray(partitionable != 0).view(np.uint8)


def check_labelling(name, labels, shape, k, lowest=0):
    labels = as_ints(name, labels, None)
    if labels.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if k is not None and not (low >= lowest and high < k):
        raise ValueError(f"{name}: expected labels in [{lowest}, {k}), got [{low}, {high}]")
    if low < -(2**31) or high >= 2**31:
        raise ValueError(f"{name}: ids must fit 32 bits, got [{low}, {high}]")
    return np.ascontiguousarray(labels, np.int32)


def check_sizes(name, sizes, count):
    sizes = as_ints(name, sizes)
    if sizes.shape != (count,) or (sizes < 1).any() or (sizes > _MAX_SIZE).any():
        expected = "an int" if count == 1 else "(height, width), ints"
        raise ValueError(f"{name}: expected {expected} from 1 to {_MAX_SIZE}, got {sizes.tolist()}")
    return sizes.astype(np.int32)


def check_time_limit(seconds):
    if seconds is None:
        return np.inf
    if not seconds >= 0:
        raise ValueError(f"time_limit: expected seconds >= 0, or None, got {seconds!r}")
    return float(seconds)


def method_code(method):
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method]


def check_lengths(**sequences):
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected sequences of one length, got {lengths}")


def merge_parallel(edges, edge_costs, nodes):
    low, high = edges.min(1, initial=nodes), edges.max(1, initial=-1)
    _, first, inverse = np.unique(low * nodes + high, return_index=True, return_inverse=True)
    if len(first) < len(edges):
        rank = np.argsort(np.argsort(first))
        summed = np.zeros(len(first), np.float64)
        np.add.at(summed, rank[inverse.ravel()], edge_costs)
        edges, edge_costs = edges[np.sort(first)], summed.astype(np.float32)
    return edges.astype(np.int32), edge_costs
