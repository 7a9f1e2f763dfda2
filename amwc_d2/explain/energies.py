"""What the energy says about segments: what merging, splitting or another class would need.

``html/graph.js`` has the same functions for the page; a test holds the two together.

Shape shorthand in this module: K classes, D distances, P pieces, S segments.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order


class Change(NamedTuple):
    """A change of a segment.

    Attributes:
        kind: "merge", "split", "class" or "none".
        energy: by how much the objective would rise; infinite for "none".
        weight: the number of grid edges, or for "class" of cells, that the energy is a sum over.
        pieces: two pieces, one of either part of a "split", of either segment of a "merge".
        category: the new class of a "class".
    """

    kind: str
    energy: float
    weight: int = 1
    pieces: tuple = ()
    category: int = -1

    @property
    def certainty(self):
        """Energy of an edge or a cell: that of large segments compares with that of small ones."""
        return self.energy / self.weight


def easiest_changes(graph, labelling):
    """The easiest change of every segment: the one of least energy for each edge or cell.

    Args:
        graph: a ``RegionGraph``.
        labelling: a ``Correction``; ``correct(graph)`` is the solution itself.

    Returns:
        list of S ``Change``.
    """
    return [
        min(
            [
                *merges(graph, labelling, s),
                *splits(graph, labelling, s),
                *classes(graph, labelling, s),
            ],
            key=lambda change: change.certainty,
            default=Change("none", np.inf),
        )
        for s in range(int(labelling.segments.max()) + 1)
    ]


def merges(graph, labelling, segment):
    """Merging with each segment that touches this one: has an edge to it of the first distance."""
    own = labelling.segments == segment
    class_costs, pair_costs = graph.costs()
    first, second = graph.pairs.T
    leaving = np.flatnonzero(own[first] != own[second])
    inner = np.where(own[first], first, second)[leaving]
    outer = np.where(own[first], second, first)[leaving]
    changes = []
    for other in np.unique(labelling.segments[outer]):
        to_other = labelling.segments[outer] == other
        edges = graph.edges[leaving[to_other]].sum(axis=0)
        if not edges[0]:
            continue
        members = [np.flatnonzero(own), np.flatnonzero(labelling.segments == other)]
        chosen = [int(labelling.classes[m[0]]) for m in members]
        stuff = [k for k in chosen if not graph.partitionable[k]]
        sums = [class_costs[m].sum(axis=0) for m in members]
        together = (sums[0] + sums[1])[stuff or graph.partitionable].min()
        energy = together - sums[0][chosen[0]] - sums[1][chosen[1]]
        energy -= pair_costs[leaving[to_other]].sum()
        ends = int(inner[to_other][0]), int(outer[to_other][0])
        changes.append(Change("merge", float(energy), int(edges.sum()), ends))
    return changes


def splits(graph, labelling, segment):
    """Dividing a thing in two, at each of its strongest links (a maximum spanning forest)."""
    members = np.flatnonzero(labelling.segments == segment)
    things = np.flatnonzero(graph.partitionable)
    if not graph.partitionable[labelling.classes[members[0]]]:
        return []
    class_costs, pair_costs = graph.costs()
    inside = np.flatnonzero(
        np.isin(graph.pairs, members).all(axis=1) & (graph.pairs[:, 0] != graph.pairs[:, 1])
    )
    links = _spanning_forest(graph.pairs, pair_costs, inside)
    before = class_costs[members, labelling.classes[members]].sum()
    changes = []
    for link in links:
        part = _reach(graph.pairs[links[links != link]], graph.pairs[link, 0], len(class_costs))
        rest = np.setdiff1d(members, part)
        is_in_part = np.isin(graph.pairs[inside], part)
        between = inside[is_in_part[:, 0] != is_in_part[:, 1]]
        energy = pair_costs[between].sum() - before
        for half in (part, rest):
            energy += class_costs[half][:, things].sum(axis=0).min()
        ends = tuple(graph.pairs[link].tolist())
        changes.append(Change("split", float(energy), int(graph.edges[between].sum()), ends))
    return changes


def classes(graph, labelling, segment):
    """Giving a thing another thing class, or a stuff segment another stuff class."""
    members = np.flatnonzero(labelling.segments == segment)
    own = labelling.classes[members[0]]
    sums = graph.costs()[0][members].sum(axis=0)
    cells = int(graph.areas[members].sum())
    return [
        Change("class", float(sums[k] - sums[own]), cells, (), k)
        for k in range(len(sums))
        if k != own and graph.partitionable[k] == graph.partitionable[own]
    ]


def _spanning_forest(pairs, costs, among):
    """The rows of ``among`` that make a maximum spanning forest, the strongest first."""
    root = {}

    def find(piece):
        while (above := root.get(piece, piece)) != piece:
            piece = above
        return piece

    forest = []
    for row in sorted(among.tolist(), key=lambda e: (-costs[e], e)):
        i, j = (find(p) for p in pairs[row].tolist())
        if i != j:
            root[i] = j
            forest.append(row)
    return np.array(forest, np.int64)


def _reach(links, start, count):
    """Pieces that links (L, 2) reach from a piece, itself among them."""
    graph = coo_matrix((np.ones(len(links)), tuple(links.T)), (count, count))
    return breadth_first_order(graph.tocsr(), start, directed=False, return_predecessors=False)
