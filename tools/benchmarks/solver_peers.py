"""Public solvers that can be run on the same instances: those of bioimage-cpp, if installed.

None of them solves the asymmetric multiway cut. Their partitions are given classes as Algorithm 2
would: the best class of each segment, then all segments of a stuff class are one.
"""

import numpy as np

try:
    from bioimage_cpp import graph, segmentation
except ImportError:
    graph = segmentation = None

HINT = "bioimage-cpp is not installed: no peers (pip install bioimage-cpp)"


def mutex_watershed(instance):
    """Prepare a mutex watershed: d = 1 attractive, longer edges mutual exclusions."""
    affinities, offsets, attractive = _affinities(instance)
    return lambda: segmentation.mutex_watershed(affinities, offsets, attractive)


def semantic_mutex_watershed(instance):
    """Prepare the semantic mutex watershed, with softmax classes."""
    affinities, offsets, attractive = _affinities(instance)
    scores = np.exp(instance.node_costs.min(0) - instance.node_costs)
    stacked = np.concatenate([affinities, scores / scores.sum(0)]).astype(np.float32)
    return lambda: segmentation.semantic_mutex_watershed(stacked, offsets, attractive)[0]


def greedy_multicut(instance):
    """Prepare greedy additive edge contraction on the edge costs alone."""
    count = instance.classes.size
    ids = np.arange(count).reshape(instance.classes.shape)
    ends, costs = [], []
    for d, layers in zip(instance.distances, instance.edge_costs):
        for (dy, dx), layer in zip([(0, d), (d, 0)], layers):
            inside = np.s_[: max(ids.shape[0] - dy, 0), : max(ids.shape[1] - dx, 0)]
            ends.append(np.stack([ids[inside].ravel(), ids[dy:, dx:].ravel()], 1))
            costs.append(layer[inside].ravel())
    made = graph.UndirectedGraph.from_edges(count, np.concatenate(ends).astype(np.uint64))
    objective = graph.multicut.MulticutObjective(made, np.concatenate(costs).astype(np.float64))
    solver = graph.multicut.GreedyAdditiveMulticut()
    return lambda: solver.optimize(objective).reshape(ids.shape)


PEERS = {
    "mutex_watershed": mutex_watershed,
    "semantic_mutex_watershed": semantic_mutex_watershed,
    "greedy_multicut": greedy_multicut,
}


def with_classes(instance, segments):
    """Give a partition the classes that Algorithm 2 would: returns classes and segments (H, W)."""
    segments = np.unique(segments, return_inverse=True)[1].reshape(segments.shape)
    sums = np.stack(
        [np.bincount(segments.ravel(), costs.ravel()) for costs in instance.node_costs], 1
    )
    classes = sums.argmin(1)[segments]
    stuff = ~instance.partitionable[classes]
    return classes, np.where(stuff, classes, len(instance.node_costs) + segments)


def _affinities(instance):
    """Attraction for d = 1, repulsion for d > 1 (probabilities), offsets, number of d = 1."""
    probability = 1 / (1 + np.exp(-instance.edge_costs.astype(np.float64)))
    channels, offsets, attractive = [], [], 0
    for d, layers in zip(instance.distances, probability):
        for offset, layer in zip([(0, d), (d, 0)], layers):
            channels.append(layer if d == 1 else 1 - layer)
            offsets.append(offset)
            attractive += d == 1
    return np.stack(channels).astype(np.float32), offsets, attractive
