"""Corrections by hand on the region graph, and what the energy says about them.

``html/graph.js`` is the same algorithm, step for step, for the page; a test holds the two together.

A correction is an action on pieces:

    {"tool": "merge", "pieces": [a, b]}            the segments of a and b become one
    {"tool": "split", "pieces": [a, b, ...]}       one object each; they share the segments
    {"tool": "class", "pieces": [a], "class": k}   the segment of a gets class k
    {"tool": "carve", "pieces": [a], "class": k}   piece a alone becomes an object of class k

Actions are local: only the segments they touch change. Later actions must leave earlier ones true.

Shape shorthand in this module: K classes, D distances, P pieces.
"""

from typing import NamedTuple

import numpy as np

from amwc_d2.solver_cython import solve_amwc_graph

NUMBER_OF_PIECES = {"merge": 2, "split": None, "class": 1, "carve": 1}


class Correction(NamedTuple):
    """A corrected labelling of the pieces.

    Attributes:
        classes: int32 (P,).
        segments: int32 (P,), ids from 0 without gaps, in order of first appearance.
        objective: float, with the offsets.
    """

    classes: np.ndarray
    segments: np.ndarray
    objective: float


def correct(graph, actions=(), class_offsets=None, distance_offsets=None):
    """Apply offsets to the costs, then actions one after the other.

    With offsets the start is the better of the graph's solution and Algorithm 2 on the pieces;
    without, it is the graph's solution.

    Args:
        graph: a ``RegionGraph``.
        actions: see the module's head.
        class_offsets, distance_offsets: see ``RegionGraph.costs``.

    Returns:
        Correction

    Raises:
        ValueError: an action is malformed, changes nothing, or undoes an earlier one; the message
            begins with its number, from 1.
    """
    class_costs, pair_costs = graph.costs(class_offsets, distance_offsets)
    state = _State(graph, class_costs, pair_costs)
    if np.any(class_offsets) or np.any(distance_offsets):
        state.solve_again()
    for number, action in enumerate(actions):
        try:
            state.apply(action)
            for earlier in range(number + 1):
                if not state.holds(actions[earlier]):
                    raise ValueError(f"it undoes action {earlier + 1} ({actions[earlier]['tool']})")
        except ValueError as error:
            raise ValueError(f"action {number + 1}: {error}") from None
    segments = state.numbered()
    objective = graph.objective(state.classes, segments, class_offsets, distance_offsets)
    return Correction(state.classes.astype(np.int32), segments, objective)


class _State:
    """A labelling of the pieces while actions change it.

    A stuff class k is segment k; a thing is segment K + its first piece.
    """

    def __init__(self, graph, class_costs, pair_costs):
        self.graph, self.class_costs, self.pair_costs = graph, class_costs, pair_costs
        self.thing = graph.partitionable
        self.classes = graph.classes.astype(np.int64)
        self.segments = graph.segments.astype(np.int64)
        self.fixed = np.full(len(self.classes), -1)  # class given by hand
        self.normalise()

    def normalise(self):
        first = {}
        for piece, segment in enumerate(self.segments.tolist()):
            first.setdefault(segment, piece)
        num_classes = len(self.thing)
        for piece, segment in enumerate(self.segments.tolist()):
            k = self.classes[piece]
            self.segments[piece] = num_classes + first[segment] if self.thing[k] else k

    def numbered(self):
        number = {}
        for segment in self.segments.tolist():
            number.setdefault(segment, len(number))
        return np.array([number[s] for s in self.segments.tolist()], np.int32)

    def solve_again(self):
        between = self.graph.pairs[:, 0] != self.graph.pairs[:, 1]
        solution = solve_amwc_graph(
            self.class_costs.astype(np.float32),
            self.graph.pairs[between],
            self.pair_costs[between].astype(np.float32),
            self.thing,
        )
        if self.objective(solution.classes, solution.segments) < self.objective(
            self.classes, self.segments
        ):
            self.classes = solution.classes.astype(np.int64)
            self.segments = solution.segments.astype(np.int64)
            self.normalise()

    def objective(self, classes, segments):
        first, second = self.graph.pairs.T
        value = 0.0
        for piece, k in enumerate(classes):
            value += self.class_costs[piece, k]
        for cost in self.pair_costs[segments[first] != segments[second]]:
            value += cost
        return value

    def apply(self, action):
        tool, pieces = action["tool"], action["pieces"]
        if tool not in NUMBER_OF_PIECES:
            raise ValueError(f"expected a tool among {[*NUMBER_OF_PIECES]}, got {tool!r}")
        expected = NUMBER_OF_PIECES[tool]
        if len(pieces) != expected and not (expected is None and len(pieces) >= 2):
            raise ValueError(f"'{tool}' needs {expected or '2 or more'} points, got {len(pieces)}")
        if min(pieces) < 0 or max(pieces) >= len(self.classes):
            raise ValueError(f"pieces are 0 to {len(self.classes) - 1}, got {list(pieces)}")
        if tool == "merge":
            self.merge(*pieces)
        elif tool == "split":
            self.split(pieces)
        else:
            k = action["class"]
            if not 0 <= k < len(self.thing):
                raise ValueError(f"classes are 0 to {len(self.thing) - 1}, got {k}")
            whole = self.segments == self.segments[pieces[0]]
            members = np.flatnonzero(whole) if tool == "class" else np.array(pieces)
            self.fixed[members] = k
            self.label(members, k)
        self.normalise()

    def holds(self, action):
        """Whether an action that was applied is still true."""
        of_pieces = self.segments[action["pieces"]]
        if action["tool"] == "merge":
            return of_pieces[0] == of_pieces[1]
        if action["tool"] == "split":
            return len(set(of_pieces.tolist())) == len(of_pieces)
        return self.classes[action["pieces"][0]] == action["class"]

    def merge(self, a, b):
        """Two things become the cheapest thing; with stuff, a thing becomes that stuff."""
        first, second = self.segments[a], self.segments[b]
        if first == second:
            raise ValueError("both points are in one segment already")
        allowed = {int(self.classes[p]) for p in (a, b) if not self.thing[self.classes[p]]}
        members = np.flatnonzero((self.segments == first) | (self.segments == second))
        self.label(members, self.best_class(members, allowed or set(np.flatnonzero(self.thing))))

    def split(self, seeds):
        """Share the touched things out among the seeds; of stuff only the seeds' pieces are taken.

        Clusters, at first the pieces, are joined by Algorithm 2's similarity, the best pair first,
        but never two with a seed, until every cluster has one.
        """
        if len(set(seeds)) < len(seeds):
            raise ValueError("two of the points are in one piece, which cannot be divided here")
        region = set(seeds)
        for seed in seeds:
            if self.thing[self.classes[seed]]:
                region.update(np.flatnonzero(self.segments == self.segments[seed]).tolist())
        region = np.array(sorted(region))
        things = np.flatnonzero(self.thing)
        if not len(things):
            raise ValueError("there is no thing class, so there are no objects to split")
        costs = self.class_costs[np.ix_(region, things)]
        weights = self.weights(region)
        seeded = np.isin(region, seeds)
        cluster = np.arange(len(region))
        alive = np.ones(len(region), bool)
        similarity = np.full((len(region), len(region)), -np.inf)  # i < j
        for i in range(len(region)):
            _update(similarity, i, costs, weights, seeded, alive)
        while alive.sum() > len(seeds):
            i, j = np.unravel_index(similarity.argmax(), similarity.shape)
            cluster[cluster == j] = i
            costs[i] += costs[j]
            weights[i] += weights[j]
            weights[:, i] = weights[i]
            seeded[i] |= seeded[j]
            alive[j] = False
            similarity[j], similarity[:, j] = -np.inf, -np.inf
            _update(similarity, i, costs, weights, seeded, alive)
        for i in np.flatnonzero(alive):
            members = region[cluster == i]
            self.label(members, self.best_class(members, set(things)))

    def weights(self, region):
        """Summed costs between the pieces of a region, (R, R)."""
        place = np.full(len(self.classes), -1)
        place[region] = np.arange(len(region))
        first, second = place[self.graph.pairs].T
        inside = (first >= 0) & (second >= 0) & (first != second)
        weights = np.zeros((len(region), len(region)))
        weights[first[inside], second[inside]] = self.pair_costs[inside]
        weights[second[inside], first[inside]] = self.pair_costs[inside]
        return weights

    def best_class(self, members, allowed):
        """The cheapest allowed class of some pieces; one given by hand goes first."""
        by_hand = allowed & set(self.fixed[members].tolist())
        costs = self.class_costs[members[0]].copy()
        for piece in members[1:]:
            costs += self.class_costs[piece]
        return min(sorted(by_hand or allowed), key=lambda k: costs[k])

    def label(self, members, k):
        """Make pieces one segment of class k, which for stuff is the segment that has it."""
        self.classes[members] = k
        self.segments[members] = self.segments.max() + 1 + len(self.thing)
        if not self.thing[k]:
            self.segments[self.classes == k] = k


def _update(similarity, i, costs, weights, seeded, alive):
    """Similarities of cluster i with all others: t = c_E + min c_i + min c_j - min (c_i + c_j)."""
    penalty = (costs[i] + costs).min(axis=1) - costs[i].min() - costs.min(axis=1)
    t = weights[i] - penalty
    t[~alive | (seeded & seeded[i])] = -np.inf
    similarity[i, i + 1 :] = t[i + 1 :]
    similarity[:i, i] = t[:i]
