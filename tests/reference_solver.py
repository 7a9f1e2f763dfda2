"""Slow, literal references that the solver is tested against; NumPy in float64, no cleverness.

Shapes: N nodes, K classes, E edges, D distances, H x W grid. Edge costs are positive = attractive:
the objective is ``sum_i c_V(i, x_i) + sum_e c_E(e) [e is cut]``, one class a segment and at most
one segment for each class that is not partitionable (stuff).
"""

from __future__ import annotations

import numpy as np


def grid_edges(shape, distances):
    """List the edges of a grid in the order of the dense array.

    Args:
        shape: (H, W) or (D, H, W).
        distances: ints, the dense array being (D, 2, H, W), or offsets, it being (O, *shape).

    Returns:
        edges: int64 (E, 2), flat node ids, the pixel that holds the cost first.
        index: int64 (E,), position of each edge in the flattened dense array, ascending.
    """
    offsets = distances
    if np.ndim(distances) == 1:
        offsets = [offset for d in distances for offset in ((0, d), (d, 0))]
    pixels = np.array(list(np.ndindex(*shape))).reshape(-1, len(shape))
    edges, index = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for number, offset in enumerate(offsets):
        other = pixels + offset
        inside = ((other >= 0) & (other < shape)).all(1)
        first = np.flatnonzero(inside)
        second = np.ravel_multi_index(tuple(other[inside].T), shape)
        edges.append(np.stack([first, second], 1))
        index.append(number * len(pixels) + first)
    return np.concatenate(edges), np.concatenate(index)


def grid_to_graph(node_costs, edge_costs, distances):
    """Turn a dense grid problem into ``(node_costs (N, K), edges (E, 2), edge_costs (E,))``."""
    edges, index = grid_edges(node_costs.shape[1:], distances)
    nodes = np.ascontiguousarray(node_costs.reshape(len(node_costs), -1).T)
    return nodes, edges, edge_costs.reshape(-1)[index]


def objective(node_costs, edges, edge_costs, classes, segments):
    """Evaluate any labelling of a graph in float64."""
    nodes = np.asarray(node_costs, np.float64)
    cut = segments[edges[:, 0]] != segments[edges[:, 1]]
    own = nodes[np.arange(len(nodes)), classes].sum()
    return float(own + np.asarray(edge_costs, np.float64)[cut].sum())


def is_feasible(classes, segments, partitionable):
    """Say whether every segment has one class and every stuff class at most one segment."""
    pairs = np.unique(np.stack([np.ravel(segments), np.ravel(classes)], 1), axis=0)
    stuff = pairs[~np.asarray(partitionable)[pairs[:, 1]], 1]
    one_class = len(np.unique(pairs[:, 0])) == len(pairs)
    return one_class and len(np.unique(stuff)) == len(stuff)


def canonical(segments):
    """Number segments by first appearance, so that equal partitions give equal arrays."""
    segments = np.asarray(segments)
    _, first, inverse = np.unique(segments.ravel(), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()].reshape(segments.shape)


def algorithm2(node_costs, edges, edge_costs, partitionable, apart=()):
    """Algorithm 2 of the paper, every edge re-evaluated at every step.

    Readings of the text: the cost of a parallel edge is always added (lines 12-18), clusters merge
    while the largest similarity is >= 0, all clusters of a stuff class are joined at the end.
    Ties: lowest class, then lowest edge index; a bundle of parallel edges has the index of its
    first edge.

    Infinite costs: +inf forbids a class, an edge of -inf is never merged. `apart` lists pairs of
    nodes that are to be in different segments, each also an edge of -inf: where two of their
    clusters come out in one class of stuff, their classes are chosen again by :func:`keep_apart`.

    Returns:
        classes (N,), segments (N,) in canonical numbering, objective; None if keep_apart finds
        nothing.
    """
    costs = np.array(node_costs, np.float64)
    ends, weight = np.array(edges, np.int64).reshape(-1, 2), np.array(edge_costs, np.float64)
    cluster = np.arange(len(costs))
    ends, weight = _bundle(ends, weight, len(costs))
    while len(weight):
        i, j = ends.T
        separate = weight + costs[i].min(1) + costs[j].min(1)
        similarity = separate - (costs[i] + costs[j]).min(1)
        best = int(np.argmax(similarity))
        if similarity[best] < 0:
            break
        keep, gone = ends[best]
        costs[keep] += costs[gone]
        cluster[cluster == gone] = keep
        ends[ends == gone] = keep
        ends, weight = _bundle(ends, weight, len(costs))
    labels = costs.argmin(1)
    if not keep_apart(labels, costs, [(cluster[p], cluster[q]) for p, q in apart], partitionable):
        return None
    classes = labels[cluster]
    stuff = ~np.asarray(partitionable)[classes]
    cluster = np.where(stuff, len(costs) + classes, cluster)
    value = objective(node_costs, np.asarray(edges), edge_costs, classes, cluster)
    return classes, canonical(cluster), value


def keep_apart(labels, costs, pairs, partitionable):
    """Two clusters of a pair cannot both be of one class of stuff, which is one segment.

    If some are, the clusters of the pairs, in the order in which they come up, each take the
    cheapest class that no earlier one has which it is to be apart from; with backtracking.
    """
    if not any(labels[a] == labels[b] and not partitionable[labels[a]] for a, b in pairs):
        return True
    order = list(dict.fromkeys(c for pair in pairs for c in pair))
    rivals = {c: {b for pair in pairs if c in pair for b in pair if b != c} for c in order}

    def assign(depth, chosen):
        if depth == len(order):
            return chosen
        c = order[depth]
        for k in np.argsort(costs[c], kind="stable"):
            taken = not partitionable[k] and any(chosen.get(b) == k for b in rivals[c])
            if np.isfinite(costs[c, k]) and not taken:
                done = assign(depth + 1, {**chosen, c: k})
                if done:
                    return done
        return None

    chosen = assign(0, {})
    for c, k in (chosen or {}).items():
        labels[c] = k
    return chosen is not None


def constrained_graph(nodes, edges, edge_costs, keep, together, apart):
    """A graph of what is left when constraints are taken literally.

    Nodes outside `keep` are gone with their edges; nodes that are to be together, by pairs or
    edges of +inf, are one node with the sum of their costs, in the order of their first; pairs to
    be apart are edges of -inf at the end, those of -inf in the graph among them, each pair once
    and in order.

    Returns:
        nodes, edges, edge_costs, apart (pairs of new ids), new id of each old node or -1;
        None if two nodes are to be together and apart, or have no class in common.
    """
    kept = keep[edges].all(1)
    edges, edge_costs = edges[kept], np.asarray(edge_costs, float)[kept]
    together = [*map(tuple, together), *map(tuple, edges[edge_costs == np.inf])]
    apart = [*map(tuple, apart), *map(tuple, edges[edge_costs == -np.inf])]
    group = np.arange(len(nodes))
    for p, q in together * len(together):  # until nothing changes
        group[[p, q]] = min(group[p], group[q])
    group = np.where(keep, group, -1)
    first = np.unique(group[keep])
    ids = np.full(len(nodes), -1)
    ids[keep] = np.searchsorted(first, group[keep])
    costs = np.zeros((len(first), nodes.shape[1]))
    np.add.at(costs, ids[keep], np.asarray(nodes, float)[keep])  # what is gone may cost anything
    pairs = sorted({tuple(sorted((ids[p], ids[q]))) for p, q in apart})
    if any(a == b for a, b in pairs) or not np.isfinite(costs).any(1).all():
        return None
    ends, finite = ids[edges], np.isfinite(edge_costs)
    proper = finite & (ends[:, 0] != ends[:, 1])
    ends = np.concatenate([ends[proper], np.array(pairs, int).reshape(-1, 2)])
    weights = np.concatenate([edge_costs[proper], np.full(len(pairs), -np.inf)])
    return costs, ends, weights, pairs, ids


def _bundle(ends, weight, size):
    """Drop loops and add up parallel edges, in the order of each bundle's first edge."""
    ends = np.sort(ends, axis=1)
    proper = ends[:, 0] != ends[:, 1]
    ends, weight = ends[proper], weight[proper]
    key = ends[:, 0] * size + ends[:, 1]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    total = np.bincount(inverse.ravel(), weight, minlength=len(first))
    order = np.argsort(first)
    return ends[first[order]], total[order]


def optimum(node_costs, edges, edge_costs, partitionable):
    """Solve a tiny problem exactly by dynamic programming over all subsets, O(K 3^N).

    Every partition into segments and every class of every segment is covered: first the partitions
    of each subset into thing segments, then one optional segment for each stuff class. With no
    partitionable class this is the multiway cut.

    Returns:
        value, classes (N,), segments (N,) canonical. Raises ValueError above 12 nodes.
    """
    nodes = np.asarray(node_costs, np.float64)
    size = len(nodes)
    if size > 12:
        raise ValueError(f"optimum: {size} nodes, at most 12 can be enumerated")
    part = np.asarray(partitionable, bool)
    members = (np.arange(1 << size)[:, None] >> np.arange(size)) & 1
    inside = np.zeros(1 << size)
    for (i, j), cost in zip(np.asarray(edges), np.asarray(edge_costs, np.float64)):
        inside += cost * members[:, i] * members[:, j]
    own = members @ nodes  # (2^N, K): node costs of each subset
    thing_cost = own[:, part].min(1) - inside if part.any() else np.full(1 << size, np.inf)

    best = np.full(1 << size, np.inf)
    best[0] = 0.0
    choice = np.zeros(1 << size, np.int64)
    for subset in range(1, 1 << size):
        blocks = _subsets(subset)
        blocks = blocks[(blocks & (subset & -subset)) != 0]  # the block of the lowest node
        value = thing_cost[blocks] + best[subset ^ blocks]
        choice[subset] = blocks[value.argmin()]
        best[subset] = value.min()
    steps = []
    for k in np.flatnonzero(~part):
        before, best, taken = best, best.copy(), np.zeros(1 << size, np.int64)
        for subset in range(1, 1 << size):
            blocks = np.append(_subsets(subset), 0)
            value = np.where(blocks > 0, own[blocks, k] - inside[blocks], 0.0)
            value = value + before[subset ^ blocks]
            taken[subset] = blocks[value.argmin()]
            best[subset] = value.min()
        steps.append((k, taken))

    left, blocks = (1 << size) - 1, []
    for k, taken in reversed(steps):
        blocks.append((taken[left], k))
        left ^= taken[left]
    while left:
        block = choice[left]
        things = np.flatnonzero(part)
        blocks.append((block, things[own[block, things].argmin()]))
        left ^= block
    classes, segments = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for number, (block, k) in enumerate(blocks):
        chosen = members[block] == 1
        classes[chosen], segments[chosen] = k, number
    value = best[-1] + float(np.asarray(edge_costs, np.float64).sum())
    return value, classes, canonical(segments)


def _subsets(mask):
    """All non-empty subsets of a bit set."""
    bits = [1 << b for b in range(mask.bit_length()) if mask >> b & 1]
    subsets = np.zeros(1, np.int64)
    for bit in bits:
        subsets = np.concatenate([subsets, subsets | bit])
    return subsets[1:]


def optimum_by_enumeration(node_costs, edges, edge_costs, partitionable):
    """Try every partition and every choice of classes, literally; for up to about 5 nodes."""
    nodes = np.asarray(node_costs, np.float64)
    size, num_classes = nodes.shape
    best = np.inf
    for segments in _partitions(size):
        count = segments.max() + 1
        for number in range(num_classes**count):
            chosen = number // num_classes ** np.arange(count) % num_classes
            if is_feasible(chosen[segments], segments, partitionable):
                value = objective(nodes, edges, edge_costs, chosen[segments], segments)
                best = min(best, value)
    return best


def _partitions(size):
    """Restricted growth strings: every partition of ``size`` nodes once."""
    if size == 0:
        yield np.empty(0, np.int64)
        return
    for head in _partitions(size - 1):
        for number in range(head.max(initial=-1) + 2):
            yield np.append(head, number)


def random_grid(rng, max_side=9, max_classes=6, scale=1.0):
    """Draw a random grid problem: dict of node_costs, edge_costs, distances, partitionable."""
    height, width = rng.integers(1, max_side + 1, 2)
    num_classes = int(rng.integers(1, max_classes + 1))
    distances = sorted(rng.choice([1, 2, 3, 4, 5, 8], rng.integers(1, 4), replace=False).tolist())
    node_costs = rng.normal(0, scale * rng.choice([0.3, 1.0, 3.0]), (num_classes, height, width))
    edge_costs = rng.normal(0.3, scale, (len(distances), 2, height, width))
    return {
        "node_costs": node_costs.astype(np.float32),
        "edge_costs": edge_costs.astype(np.float32),
        "distances": distances,
        "partitionable": rng.random(num_classes) < 0.5,
    }


def random_offsets(rng, dims=2, max_side=9, max_classes=6, pixels=None):
    """Draw a random problem with an offset list, as random_grid; of at most so many pixels."""
    shape = rng.integers(1, max_side + 1, dims)
    while pixels and shape.prod() > pixels:
        shape[shape.argmax()] -= 1
    steps = np.array(list(np.ndindex(*[7] * dims))) - 3
    steps = steps[[max(d, tuple(-x for x in d)) == d for d in map(tuple, steps.tolist())]]
    steps = steps[(steps != 0).any(1)]
    near = steps[np.abs(steps).max(1) == 1]
    count = int(rng.integers(1, 7))
    chosen = rng.permutation(near)[: rng.integers(0, 4)]
    chosen = np.unique(np.concatenate([chosen, rng.permutation(steps)[:count]]), axis=0)
    offsets = rng.permutation(chosen) * rng.choice([-1, 1], (len(chosen), 1))
    num_classes = int(rng.integers(1, max_classes + 1))
    node_costs = rng.normal(0, rng.choice([0.3, 1.0, 3.0]), (num_classes, *shape))
    return {
        "node_costs": node_costs.astype(np.float32),
        "edge_costs": rng.normal(0.2, 1, (len(offsets), *shape)).astype(np.float32),
        "distances": offsets.tolist(),
        "partitionable": rng.random(num_classes) < 0.5,
    }


def random_graph(rng, max_nodes=40, max_classes=6):
    """Draw a random graph problem: dict of node_costs, edges, edge_costs, partitionable."""
    size, num_classes = int(rng.integers(1, max_nodes + 1)), int(rng.integers(1, max_classes + 1))
    pairs = np.argwhere(np.triu(rng.random((size, size)) < rng.choice([0.15, 0.4, 0.8]), 1))
    return {
        "node_costs": rng.normal(0, rng.choice([0.3, 1, 3]), (size, num_classes)).astype("f4"),
        "edges": pairs.astype(np.int32),
        "edge_costs": rng.normal(0.2, 1, len(pairs)).astype(np.float32),
        "partitionable": rng.random(num_classes) < 0.5,
    }
