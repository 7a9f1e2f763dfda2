"""The region graph: the whole decision about an image in some hundred nodes.

Its nodes are *pieces*, small connected parts of the solution's segments; a pair of pieces holds the
sums of all grid edges between them, so that the objective of any labelling of the pieces is that of
the grid. Pieces are finer than segments: a segment can be split wherever the costs hint at a
border, and an object that the solution missed has pieces of its own.

Shape shorthand in this module:

    K: classes    D: distances    h, w: the grid    P: pieces    E: pairs of pieces
"""

from dataclasses import dataclass, fields

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from amwc_d2.solver_cython import solve_amwc

# Edge costs are lowered by so many nats to find borders that the solution passes over: the second
# in things only, where false merges hide.
BORDER_OFFSET = -1.0
THING_BORDER_OFFSET = -2.0


@dataclass(frozen=True)
class RegionGraph:
    """Pieces of a solution with summed costs.

    Attributes:
        pieces: int32 (h, w), the piece of every cell, from 0 without gaps.
        distances: the D edge distances, in cells.
        partitionable: bool (K,), thing classes.
        class_costs: float64 (P, K), summed over the cells of a piece.
        areas: int64 (P,), in cells.
        pairs: int64 (E, 2), i <= j, in order; a row (i, i) holds the edges inside piece i, which
            are never cut.
        attraction: float64 (E, D), the sum of the positive edge costs of a pair by distance.
        repulsion: float64 (E, D), the sum of the negative ones.
        edges: int64 (E, D), the number of grid edges.
        classes, segments: int32 (P,), the solution.
    """

    pieces: np.ndarray
    distances: tuple
    partitionable: np.ndarray
    class_costs: np.ndarray
    areas: np.ndarray
    pairs: np.ndarray
    attraction: np.ndarray
    repulsion: np.ndarray
    edges: np.ndarray
    classes: np.ndarray
    segments: np.ndarray

    def costs(self, class_offsets=None, distance_offsets=None):
        """Costs of pieces, float64 (P, K), and of pairs, float64 (E,).

        Args:
            class_offsets: float (K,), added to the class costs of every cell.
            distance_offsets: float (D,), added to every edge cost of a distance.
        """
        class_offsets = _offsets("class_offsets", class_offsets, self.class_costs.shape[1])
        distance_offsets = _offsets("distance_offsets", distance_offsets, len(self.distances))
        class_costs = self.class_costs + self.areas[:, None] * class_offsets
        by_distance = self.attraction + self.repulsion + self.edges * distance_offsets
        pair_costs = np.zeros(len(self.pairs))
        for d in range(len(self.distances)):  # in this order, as graph.js does
            pair_costs += by_distance[:, d]
        return class_costs, pair_costs

    def to_dict(self):
        """What ``html/graph.js`` needs, as plain lists; all but the map of pieces."""
        names = [field.name for field in fields(self) if field.name != "pieces"]
        return {name: np.asarray(getattr(self, name)).tolist() for name in names}

    def objective(self, classes, segments, class_offsets=None, distance_offsets=None):
        """Objective of a labelling of the pieces: that of the grid, in double precision.

        Args:
            classes, segments: int (P,).
            class_offsets, distance_offsets: see :meth:`costs`.
        """
        class_costs, pair_costs = self.costs(class_offsets, distance_offsets)
        first, second = self.pairs.T
        cut = segments[first] != segments[second]
        chosen = class_costs[np.arange(len(class_costs)), classes]
        return float(chosen.sum() + pair_costs[cut].sum())


def region_graph(
    node_costs, edge_costs, distances, partitionable, solution, min_cells=4, max_pieces=500
):
    """Summarise a multiway cut problem and a solution of it.

    The pieces are the connected parts on which several labellings agree: the solution, the cheapest
    class of each cell, and the solutions with lowered edge costs, which cut where a border is
    likely. Parts that are too small go to a neighbour in the same segment.

    Args:
        node_costs: float32 (K, h, w). edge_costs: float32 (D, 2, h, w). distances, partitionable:
            see ``solve_amwc``.
        solution: a ``Solution`` of them; its segments are unions of pieces.
        min_cells: smaller pieces join the neighbour of their segment with the longest border.
        max_pieces: about so many at most: ``min_cells`` is doubled until it holds, or until every
            connected part of a segment is one piece.

    Returns:
        RegionGraph

    Raises:
        ValueError: ``solution`` does not have the grid's shape.
    """
    grid = node_costs.shape[1:]
    if solution.segments.shape != grid:
        raise ValueError(
            f"solution: expected labels of shape {grid}, as node_costs {node_costs.shape} have, "
            f"got {solution.segments.shape}"
        )
    partitionable = np.asarray(partitionable, bool)

    def solve(offset):
        lowered = edge_costs + np.float32(offset)
        return solve_amwc(node_costs, lowered, distances, partitionable).segments

    # Two levels, so that a coarse border is kept when small parts are joined.
    coarsest = _components(
        np.stack([solution.segments, node_costs.argmin(axis=0), solve(BORDER_OFFSET)])
    )
    in_things = np.where(partitionable[solution.classes], solve(THING_BORDER_OFFSET), 0)
    while True:
        coarse = _absorb_small(coarsest, solution.segments, min_cells)
        pieces = _absorb_small(_components(np.stack([coarse, in_things])), coarse, min_cells)
        if pieces.max() < max_pieces or min_cells > pieces.size:
            break
        min_cells *= 2
    return _summarise(pieces, node_costs, edge_costs, distances, partitionable, solution)


def _components(labels):
    """Number the 4-connected parts of equal labels (L, h, w) in order of appearance."""
    height, width = labels.shape[-2:]
    cells = np.arange(height * width).reshape(height, width)
    right = (labels[:, :, :-1] == labels[:, :, 1:]).all(axis=0)
    below = (labels[:, :-1] == labels[:, 1:]).all(axis=0)
    first = np.concatenate([cells[:, :-1][right], cells[:-1][below]])
    second = np.concatenate([cells[:, 1:][right], cells[1:][below]])
    graph = coo_matrix((np.ones(len(first)), (first, second)), (cells.size, cells.size))
    return _number(connected_components(graph, directed=False)[1]).reshape(height, width)


def _absorb_small(pieces, wholes, min_cells):
    """Join pieces below ``min_cells`` to the neighbour in their whole with the longest border."""
    while True:
        count = int(pieces.max()) + 1
        area = np.bincount(pieces.ravel(), minlength=count)
        small = area < min_cells
        first = np.concatenate([pieces[:, :-1].ravel(), pieces[:-1].ravel()])
        second = np.concatenate([pieces[:, 1:].ravel(), pieces[1:].ravel()])
        of_piece = np.zeros(count, wholes.dtype)
        of_piece[pieces] = wholes
        joinable = (first != second) & (of_piece[first] == of_piece[second])
        first, second = first[joinable], second[joinable]
        ends = np.concatenate([first * count + second, second * count + first])
        pairs, border = np.unique(ends[small[ends // count]], return_counts=True)
        if not len(pairs):
            return pieces
        # The longest border of each small piece; the lowest neighbour among equals.
        piece, neighbour = np.divmod(pairs, count)
        order = np.lexsort((neighbour, -border, piece))
        piece, start = np.unique(piece[order], return_index=True)
        neighbour = neighbour[order][start]
        graph = coo_matrix((np.ones(len(piece)), (piece, neighbour)), (count, count))
        joined = connected_components(graph, directed=False)[1]
        pieces = _number(joined[pieces.ravel()]).reshape(pieces.shape)


def _number(labels):
    """Labels (n,) as ids from 0 without gaps, in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _summarise(pieces, node_costs, edge_costs, distances, partitionable, solution):
    count = int(pieces.max()) + 1
    flat = pieces.ravel()
    class_costs = np.stack(
        [np.bincount(flat, costs.ravel(), count) for costs in node_costs], axis=1
    )
    keys, costs, places = [], [], []
    for d, distance in enumerate(distances):
        for direction, axis in ((0, 1), (1, 0)):
            length = max(pieces.shape[axis] - distance, 0)
            anchor = pieces.take(range(length), axis)
            other = pieces.take(range(pieces.shape[axis] - length, pieces.shape[axis]), axis)
            keys.append((np.minimum(anchor, other) * count + np.maximum(anchor, other)).ravel())
            costs.append(edge_costs[d, direction].take(range(length), axis).ravel())
            places.append(np.full(costs[-1].size, d))
    costs, places = np.concatenate(costs).astype(np.float64), np.concatenate(places)
    pairs, of_edge = np.unique(np.concatenate(keys), return_inverse=True)
    places += of_edge * len(distances)

    def sums(values=None):
        shape = len(pairs), len(distances)
        return np.bincount(places, values, shape[0] * shape[1]).reshape(shape)

    classes, segments = np.zeros((2, count), np.int32)
    classes[flat], segments[flat] = solution.classes.ravel(), solution.segments.ravel()
    return RegionGraph(
        pieces=pieces.astype(np.int32),
        distances=tuple(int(d) for d in distances),
        partitionable=partitionable,
        class_costs=class_costs,
        areas=np.bincount(flat, minlength=count),
        pairs=np.stack(np.divmod(pairs, count), axis=1),
        attraction=sums(costs.clip(min=0)),
        repulsion=sums(costs.clip(max=0)),
        edges=sums(),
        classes=classes,
        segments=segments,
    )


def _offsets(name, offsets, length):
    offsets = np.zeros(length) if offsets is None else np.asarray(offsets, np.float64)
    if offsets.shape != (length,) or not np.isfinite(offsets).all():
        raise ValueError(f"{name}: expected {length} finite numbers, got {offsets.tolist()}")
    return offsets
