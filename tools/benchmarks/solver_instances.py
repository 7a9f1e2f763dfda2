"""Solver instances that look like a network's output, with their ground truth.

Scenes are drawn from a seed: stuff regions, rows of touching things of one class, thin things.
Their costs err like a network does: displaced and blurred boundaries, correlated noise, patches of
a wrong class, falsely split and falsely merged instances. NumPy and SciPy only.

Shapes: K classes, D distances, H x W pixels.
"""

from typing import NamedTuple

import numpy as np
from city_coco_instances import make
from scipy import ndimage

KINDS = {  # K, first and last + 1 thing class, distances
    "street": (19, (11, 19), (1, 4, 16, 32, 64, 128)),
    "objects": (133, (0, 80), (1, 4, 16, 32, 64)),
}
LEVELS = {  # class margin, edge margin, noise, displacement in pixels, share of wrong patches
    "easy": (8.0, 5.0, 1.0, 0.5, 0.02),
    "medium": (7.0, 4.0, 1.4, 0.8, 0.05),
    "hard": (6.0, 3.2, 1.8, 1.2, 0.10),
}


class Instance(NamedTuple):
    """Costs as the solver takes them, and the truth behind them."""

    node_costs: np.ndarray  # float32 (K, H, W)
    edge_costs: np.ndarray  # float32 (D, 2, H, W), anchored left / top, positive = attractive
    distances: list
    partitionable: np.ndarray  # bool (K,)
    classes: np.ndarray  # int (H, W), ground truth
    segments: np.ndarray  # int (H, W), ground truth; one id a stuff class, one a thing

    @property
    def problem(self):
        """The solver's arguments."""
        return self[:4]


def make_instance(kind, height, width, seed, level):
    """Draw an instance of KINDS x LEVELS; the same seed gives the same instance."""
    num_classes, (low, high), distances = KINDS[kind]
    class_margin, edge_margin, noise, shift, wrong = LEVELS[level]
    rng = np.random.default_rng([seed, height, width, list(KINDS).index(kind)])
    partitionable = np.zeros(num_classes, bool)
    partitionable[low:high] = True
    classes, segments = _draw_scene(rng, height, width, partitionable)

    seen = _displace(rng, classes, shift)
    node_costs = np.full((num_classes, height, width), 0.5 * class_margin, np.float32)
    for k in range(num_classes):
        if k in classes:
            node_costs[k] -= class_margin * ndimage.gaussian_filter((seen == k).astype("f4"), 1.0)
        node_costs[k] += noise * (0.6 * _smooth(rng, height, width, 6))
        node_costs[k] += noise * 0.5 * rng.standard_normal((height, width), np.float32)
    for k in rng.permutation(num_classes)[:8]:  # patches that look like another class
        patch = _smooth(rng, height, width, 8)
        patch = np.maximum(patch - np.quantile(patch, 1 - wrong), 0)
        node_costs[k] -= 1.5 * class_margin * np.minimum(patch, 1)

    edge_costs = np.zeros((len(distances), 2, height, width), np.float32)
    believed = _split_and_merge(rng, segments, classes, partitionable, wrong)
    for number, d in enumerate(distances):
        seen = _displace(rng, believed, shift * (1.5 if d > 1 else 1.0))
        for direction, (dy, dx) in enumerate([(0, d), (d, 0)]):
            if dy >= height or dx >= width:
                continue
            inside = np.s_[: height - dy, : width - dx]
            same = seen[inside] == seen[dy:, dx:]
            field = noise * _smooth(rng, height, width, 8)[inside]
            field += noise * 0.6 * rng.standard_normal(same.shape, np.float32)
            margin = edge_margin * (0.8 if d > 16 else 1.0)
            edge_costs[number, direction][inside] = np.where(same, margin, -margin) + field
    return Instance(node_costs, edge_costs, list(distances), partitionable, classes, segments)


def city_coco_instance(kind, height, width, seed, level):
    """Draw an instance of the other generator (KIND city or coco)."""
    made = make(kind, height, width, seed, level)
    node_costs = np.ascontiguousarray(made["node_costs"].T).reshape(-1, height, width)
    classes, instances = made["gt_class"].astype(int), made["gt_inst"].astype(int)
    segments = np.where(instances > 0, len(node_costs) + instances, classes)
    distances = made["dist"].tolist()
    return Instance(
        node_costs, made["edge_costs"], distances, made["partitionable"], classes, segments
    )


def panoptic_quality(instance, classes, segments):
    """Mean PQ of the classes that one image holds, every segment counted, nothing void."""
    truth, prediction = _numbered(instance.segments), _numbered(segments)
    overlap = np.zeros((truth.max() + 1, prediction.max() + 1), np.int64)
    np.add.at(overlap, (truth, prediction), 1)
    union = overlap.sum(1)[:, None] + overlap.sum(0) - overlap
    truth_class, prediction_class = (
        c.ravel()[np.unique(s, return_index=True)[1]]
        for c, s in ((instance.classes, truth), (classes, prediction))
    )
    iou = overlap / union * (truth_class[:, None] == prediction_class)
    matched = np.where(iou > 0.5, iou, 0)
    quality = []
    for k in np.unique(truth_class):
        rows, columns = truth_class == k, prediction_class == k
        total = 0.5 * (rows.sum() + columns.sum())
        quality.append(matched[rows][:, columns].sum() / total)
    return float(np.mean(quality))


def _numbered(segments):
    """Renumber ids 0, 1, ... and keep the shape."""
    return np.unique(segments, return_inverse=True)[1].reshape(segments.shape)


def _smooth(rng, height, width, sigma):
    """Noise of unit variance, smooth on the scale of sigma pixels; float32 (H, W)."""
    coarse = rng.standard_normal((height // sigma + 4, width // sigma + 4), np.float32)
    coarse = ndimage.gaussian_filter(coarse, 0.8)
    fine = ndimage.zoom(coarse, sigma, order=1)[sigma:, sigma:][:height, :width]
    return fine / fine.std()


def _draw_scene(rng, height, width, partitionable):
    """Return ground-truth classes and segments, int (H, W)."""
    num_classes = len(partitionable)
    stuff = rng.permutation(np.flatnonzero(~partitionable))[:7]
    scale = max(8, min(height, width) // 6)
    rows = np.linspace(-2, 2, height)[:, None]
    fields = [
        _smooth(rng, height, width, scale) - 2 * abs(rows - rng.uniform(-2, 2)) for _ in stuff
    ]
    classes = stuff[np.argmax(fields, 0)]
    segments = classes.copy()
    y, x = np.mgrid[:height, :width]
    things = rng.permutation(np.flatnonzero(partitionable))[:5]
    number = num_classes
    for size in np.sort(rng.uniform(0.08, 0.5, rng.integers(5, 12)))[::-1]:
        k, thin = rng.choice(things), rng.random() < 0.2
        h = max(4.0, size * height * rng.uniform(0.5, 1))
        w = max(2.0, h * (0.1 if thin else rng.uniform(0.5, 1.6)))
        cy, cx = rng.uniform(0.2, 0.9) * height, rng.uniform(0, width)
        for _ in range(rng.integers(1, 5)):  # a row of touching things
            mask = (abs(y - cy) / (h / 2)) ** 3 + (abs(x - cx) / (w / 2)) ** 3 < 1
            classes[mask], segments[mask] = k, number
            number += 1
            cy, cx = cy + rng.uniform(-0.1, 0.1) * h, cx + 0.9 * w
    return classes, segments


def _displace(rng, labels, shift):
    """Labels read at places moved by a smooth field."""
    height, width = labels.shape
    y, x = np.mgrid[:height, :width]
    moved_y = np.rint(y + shift * _smooth(rng, height, width, 5)).astype(int).clip(0, height - 1)
    moved_x = np.rint(x + shift * _smooth(rng, height, width, 5)).astype(int).clip(0, width - 1)
    return labels[moved_y, moved_x]


def _split_and_merge(rng, segments, classes, partitionable, wrong):
    """Segments as the edges believe them: some things cut in two, some joined to another."""
    believed = segments.copy()
    things = np.unique(segments[partitionable[classes]])
    for number in things[rng.random(len(things)) < 2 * wrong]:
        mask = segments == number
        if rng.random() < 0.5:
            believed[mask & (np.arange(mask.shape[1]) > np.nonzero(mask)[1].mean())] += 10**6
        else:
            ring = ndimage.binary_dilation(mask, iterations=2) & ~mask & partitionable[classes]
            if ring.any():
                believed[mask] = segments[ring][0]
    return believed
