"""Constraints of a grid problem: brought to the form that the compiled solver knows, and checked.

A mask becomes one more class that only what is masked may have. Seeds, links and infinite edge
costs become groups of pixels that are one segment, and pairs of groups that are apart. Infinite
node costs stay what they are.

Shapes: K classes, N pixels, L layers of edges, M links.
"""

from typing import NamedTuple

import numpy as np

from ._amwc import all_finite, join_pairs, objective
from ._validation import Grid, as_ints, check_labelling, not_finite

_INFINITE_EDGES = "+inf and -inf are constraints"
_MOST_SEEDS = 2000  # ids: each pair of them is a link


class Constraints(NamedTuple):
    """A grid problem with its constraints.

    Attributes:
        grid: the costs, finite but for forbidden classes; with a mask of K + 1 classes.
        partitionable: uint8, of the same number of classes.
        group: int32 (N,), for pixels with a link the first pixel of their group, else -1; or None.
        links: int32 (M, 2), pixels; the first `joined` are to be together, the others apart; or
        None.
        joined: int.
        forbids: whether there are infinite node costs.
        mask: bool (N,), pixels that take part, or None.
        shape: (H, W) or (D, H, W).
    """

    grid: Grid
    partitionable: np.ndarray
    group: np.ndarray | None
    links: np.ndarray | None
    joined: int
    forbids: bool
    mask: np.ndarray | None
    shape: tuple

    @property
    def constrained(self):
        return self.links is not None or self.forbids

    def pixel(self, i):
        return _name(i, self.shape)

    def arguments(self):
        """What the compiled solver takes before the method."""
        links = self.group, self.links, self.joined
        return *self.grid, *links, self.forbids, self.partitionable

    def violation(self, classes, segments):
        """The first constraint that a labelling of the grid breaks, in words, or None."""
        if self.forbids:
            wrong = ~np.isfinite(self.grid.node[classes, np.arange(len(classes))])
            if wrong.any():
                p = int(np.argmax(wrong))
                if (
                    self.mask is not None
                    and (classes[p] == len(self.grid.node) - 1) == self.mask[p]
                ):
                    return f"the mask and the labels disagree at {self.pixel(p)}"
                return f"class {classes[p]} is forbidden at {self.pixel(p)}"
        broken = self.broken_links(segments)
        if not broken.any():
            return None
        m = int(np.argmax(broken))
        p, q = (self.pixel(int(i)) for i in self.links[m])
        return f"{p} and {q} are to be {'together' if m < self.joined else 'apart'}"

    def broken_links(self, segments):
        """bool (M,)."""
        if self.links is None:
            return np.zeros(0, bool)
        cut = segments[self.links[:, 0]] != segments[self.links[:, 1]]
        return cut == (np.arange(len(cut)) < self.joined)

    def obeyed(self, value, segments):
        """Whether a solution of this objective obeys all constraints."""
        return np.isfinite(value) and not self.broken_links(segments).any()

    def hidden(self, classes, segments):
        """Labels as the caller sees them: -1 outside the mask, segments numbered without its."""
        outside = ~self.mask
        if outside.any():
            hidden = segments[int(np.argmax(outside))]
            segments = segments - (segments > hidden)
            classes[outside] = segments[outside] = -1
        return classes, segments

    def objective(self, classes, segments):
        """Of labels as the caller sees them."""
        return objective(*self.grid, classes, segments, True)


def unconstrained(grid, shape, partitionable):
    return Constraints(grid, partitionable, None, None, 0, False, None, shape)


def constrain(grid, shape, partitionable, mask=None, seeds=None, must_link=None, cannot_link=None):
    """Check the constraints of a grid problem; returns Constraints."""
    if mask is not None:
        mask = check_mask(mask, shape).ravel()
    check_nodes(grid, shape, mask)
    forbids = not all_finite(grid.node.reshape(-1))
    count = grid.node.shape[1]
    grid, joined, apart = infinite_edges(grid, shape, mask)
    joined, apart = [joined], [apart]
    joined.append(check_links("must_link", must_link, shape, mask))
    apart.append(check_links("cannot_link", cannot_link, shape, mask))
    if seeds is not None:
        same, different = seed_links(seeds, shape, mask)
        joined.append(same)
        apart.append(different)
    joined, apart = np.concatenate(joined), np.concatenate(apart)
    if mask is not None:
        node = np.empty((len(grid.node) + 1, count), np.float32)
        if forbids:
            node[:-1] = np.where(mask, grid.node, np.float32(np.inf))
        else:  # the same, faster
            np.add(grid.node, np.where(mask, np.float32(0), np.float32(np.inf)), out=node[:-1])
        node[-1] = np.where(mask, np.float32(np.inf), np.float32(0))
        grid = grid._replace(node=node)
        partitionable, forbids = np.append(partitionable, np.uint8(0)), True
    group = links = None
    if len(joined) or len(apart):
        group = np.full(count, -1, np.int32)
        group[joined.ravel()] = joined.ravel()
        group[apart.ravel()] = apart.ravel()
        join_pairs(joined, group)
        links = apart_groups(group, apart, shape)
        members = np.flatnonzero(group >= 0).astype(np.int32)
        if forbids:
            check_groups(grid.node, group, members, shape)
        together = np.stack([group[members], members], 1)
        together = together[together[:, 0] != together[:, 1]]
        links = np.ascontiguousarray(np.concatenate([together, links]), np.int32)
        joined = together
    return Constraints(grid, partitionable, group, links, len(joined), forbids, mask, shape)


def check_nodes(grid, shape, mask=None):
    """Node costs may be +inf, where a class is forbidden, but not everywhere at a pixel."""
    if all_finite(grid.node.reshape(-1)):
        return
    lowest = grid.node.min(0)
    if mask is not None:
        lowest[~mask] = 0
    if np.isnan(lowest).any() or lowest.min() == -np.inf:
        raise not_finite("node_costs", grid.node.reshape(-1, *shape), "+inf forbids a class")
    if lowest.max() == np.inf:
        p = _name(int(np.argmax(lowest)), shape)
        raise ValueError(f"node_costs: every class is forbidden (+inf) at {p}; allow one")


def check_mask(mask, shape):
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != tuple(shape):
        raise ValueError(
            f"mask: expected bool {tuple(shape)}, True where pixels take part, got {mask.dtype} "
            f"{mask.shape}"
        )
    if not mask.any():
        raise ValueError("mask: no pixel takes part")
    return mask


def infinite_edges(grid, shape, mask):
    """Finite edge costs, and pairs of pixels whose edge is +inf, and -inf."""
    none = np.zeros((0, 2), np.int32)
    if all_finite(grid.edge):
        return grid, none, none
    count = grid.node.shape[1]
    where = np.flatnonzero(~np.isfinite(grid.edge))
    layer, p = np.divmod(where, count)
    at = np.stack(np.unravel_index(p, grid.shape), 1) + grid.offsets[layer]
    inside = ((at >= 0) & (at < grid.shape)).all(1)
    bad = np.isnan(grid.edge[where]) & ~inside  # never read, yet a sign of an error
    if (bad if mask is None else bad & mask[p]).any():
        raise not_finite("edge_costs", grid.edge.reshape(_layout(grid, shape)), _INFINITE_EDGES)
    where, p = where[inside], p[inside]
    q = np.ravel_multi_index(tuple(at[inside].T), grid.shape)
    edge = grid.edge.copy()
    edge[where] = 0
    if mask is not None:
        part = mask[p] & mask[q]
        where, p, q = where[part], p[part], q[part]
    costs = grid.edge[where]
    if np.isnan(costs).any():
        raise not_finite("edge_costs", grid.edge.reshape(_layout(grid, shape)), _INFINITE_EDGES)
    pairs = np.stack([p, q], 1).astype(np.int32)
    return grid._replace(edge=edge), pairs[costs > 0], pairs[costs < 0]


def _layout(grid, shape):
    """A shape of the edge costs, to name an entry by: that of axis distances where it fits."""
    return (-1, 2, *shape) if len(shape) == 2 and not len(grid.offsets) % 2 else (-1, *shape)


def check_links(name, links, shape, mask):
    """Pairs of pixels, (M, 2, dims) coordinates, as (M, 2) flat indices."""
    if links is None or len(links) == 0:
        return np.zeros((0, 2), np.int32)
    links = as_ints(name, links)
    axes = "(y, x)" if len(shape) == 2 else "(z, y, x)"
    if links.ndim != 3 or links.shape[1:] != (2, len(shape)):
        raise ValueError(
            f"{name}: expected pairs of pixels {axes}, shape (M, 2, {len(shape)}), got "
            f"{links.shape}"
        )
    outside = ((links < 0) | (links >= shape)).any((1, 2))
    if outside.any():
        pair = links[int(np.argmax(outside))].tolist()
        raise ValueError(f"{name}: {pair} lies outside the grid of shape {tuple(shape)}")
    flat = np.ravel_multi_index(tuple(np.moveaxis(links, -1, 0)), shape).astype(np.int32)
    if (flat[:, 0] == flat[:, 1]).any():
        pair = links[int(np.argmax(flat[:, 0] == flat[:, 1]))].tolist()
        raise ValueError(f"{name}: {pair} names one pixel twice")
    if mask is not None and not mask[flat].all():
        pair = links[int(np.argmin(mask[flat].all(1)))].tolist()
        raise ValueError(f"{name}: {pair} is not inside the mask")
    return np.ascontiguousarray(flat)


def seed_links(seeds, shape, mask):
    """Pairs of pixels of one seed, and pairs of pixels of two seeds, one for each pair of ids."""
    seeds = check_labelling("seeds", seeds, shape, None).ravel()
    if (seeds < -1).any():
        raise ValueError(f"seeds: expected ids >= 0, or -1 for none, got {seeds.min()}")
    seeded = np.flatnonzero(seeds >= 0)
    if mask is not None and not mask[seeded].all():
        p = _name(int(seeded[np.argmin(mask[seeded])]), shape)
        raise ValueError(f"seeds: {p} has a seed but is not inside the mask")
    ids, first, number = np.unique(seeds[seeded], return_index=True, return_inverse=True)
    if len(ids) > _MOST_SEEDS:
        raise ValueError(f"seeds: at most {_MOST_SEEDS} different ids, got {len(ids)}")
    own = seeded[first][number.ravel()]
    first = np.sort(seeded[first])
    same = np.stack([own, seeded], 1)
    a, b = np.triu_indices(len(first), 1)
    different = np.stack([first[a], first[b]], 1)
    return same[own != seeded].astype(np.int32), different.astype(np.int32)


def apart_groups(group, apart, shape):
    """Pairs of first pixels of the groups that are to be apart, each once, in order."""
    pairs = np.sort(group[apart], axis=1)
    same = pairs[:, 0] == pairs[:, 1]
    if same.any():
        p, q = (_name(int(i), shape) for i in apart[int(np.argmax(same))])
        raise ValueError(
            f"constraints: {p} and {q} are to be apart, but seeds, must-links or edges of cost "
            f"+inf "
            "make them one segment; remove one of these"
        )
    return np.unique(pairs, axis=0) if len(pairs) else pairs


def check_groups(node, group, members, shape):
    """Some class must be allowed at all pixels of a group."""
    members = members[np.argsort(group[members], kind="stable")]
    starts = np.flatnonzero(np.diff(group[members], prepend=-1))
    if not len(starts):
        return
    free = np.logical_and.reduceat(np.isfinite(node[:, members]), starts, axis=1).any(0)
    if not free.all():
        p = _name(int(members[starts[int(np.argmin(free))]]), shape)
        raise ValueError(
            f"constraints: no class is allowed (of finite node cost) at all pixels that are to "
            f"be one "
            f"segment with {p}"
        )


def _name(i, shape):
    return f"pixel {tuple(int(c) for c in np.unravel_index(i, shape))}"


def check_start(init, problem, classes):
    """A start as the compiled solver takes it: classes and segments, int32 (N,)."""
    if not isinstance(init, tuple) or len(init) < 2:
        raise TypeError(
            f"init: expected a Solution or (classes, segments), got {type(init).__name__}"
        )
    shape, masked = problem.shape, problem.mask is not None
    labels = check_labelling("init classes", init[0], shape, classes, -int(masked)).ravel()
    segments = check_labelling("init segments", init[1], shape, None).ravel()
    labels = np.where(labels < 0, np.int32(classes), labels)
    _, first, number = np.unique(segments, return_index=True, return_inverse=True)
    number = number.ravel().astype(np.int32)
    if (labels[first][number] != labels).any():
        p = int(np.argmax(labels[first][number] != labels))
        raise ValueError(f"init: segment {segments[p]} has more than one class")
    start = np.ascontiguousarray(labels, np.int32), number
    words = problem.violation(*start)
    if words:
        raise ValueError(f"init: {words}; solve without init, or repair it")
    return start


def relax(grid, shape, mask):
    """Finite costs of a problem whose optimum is at most that of the constrained one."""
    if mask is not None:
        mask = check_mask(mask, shape).ravel()
    check_nodes(grid, shape, mask)
    grid = infinite_edges(grid, shape, mask)[0]
    node, edge = grid.node, grid.edge
    if mask is not None:
        node = np.where(mask, node, np.float32(0))
        inside = mask.reshape(grid.shape)
        edge = edge.reshape(-1, *grid.shape).copy()
        for layer, offset in enumerate(grid.offsets):
            other = np.zeros(tuple(grid.shape), bool)
            if (np.abs(offset) < grid.shape).all():
                there, here = (
                    tuple(
                        slice(max(s * o, 0), n + min(s * o, 0)) for o, n in zip(offset, grid.shape)
                    )
                    for s in (1, -1)
                )
                other[here] = inside[there]
            edge[layer][~(inside & other)] = 0
        edge = edge.reshape(-1)
    if not all_finite(node.reshape(-1)):
        most = np.abs(node[np.isfinite(node)]).sum(dtype=float) + np.abs(edge).sum(dtype=float)
        node = np.where(np.isfinite(node), node, np.float32(min(2 * most + 1, 1e30)))
    return grid._replace(node=np.ascontiguousarray(node), edge=edge)


def check_graph_constraints(node_costs, edges, edge_costs):
    """Infinite costs of a graph must leave a labelling; ids of nodes are named."""
    if all_finite(edge_costs) and all_finite(node_costs.reshape(-1)):
        return
    count = len(node_costs)
    group = np.arange(count, dtype=np.int32)
    join_pairs(np.ascontiguousarray(edges[edge_costs == np.inf], np.int32), group)
    apart = edges[edge_costs == -np.inf]
    same = group[apart[:, 0]] == group[apart[:, 1]]
    if same.any():
        p, q = apart[int(np.argmax(same))]
        raise ValueError(
            f"constraints: nodes {p} and {q} are to be apart (edge cost -inf), but edges of cost "
            "+inf make them one segment; remove one of these"
        )
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    free = np.logical_and.reduceat(np.isfinite(node_costs[order]), starts).any(1)
    if not free.all():
        p = int(order[starts[int(np.argmin(free))]])
        raise ValueError(
            f"node_costs: every class is forbidden (+inf) at node {p} or one that is to be one "
            "segment with it; allow one"
        )
