"""Confidence intervals of panoptic quality: over images, resampled, and over seeds.

Shape shorthand in this module:

    R: runs (seeds)    I: images    K: categories    4: TP, FP, FN, sum of IoU over TP
"""

import csv
from pathlib import Path

import numpy as np
from scipy import stats

OUTCOMES = {"TP": 0, "FP": 1, "FN": 2}


def read_segments(path, image_ids, category_ids) -> np.ndarray:
    """Statistics (I, K, 4) of one evaluation from the evaluator's ``segments.csv``."""
    image = {str(i): n for n, i in enumerate(image_ids)}
    category = {str(k): n for n, k in enumerate(category_ids)}
    counts = np.zeros((len(image), len(category), 4))
    with Path(path).open(newline="") as file:
        for row in csv.DictReader(file):
            at = image[row["image_id"]], category[row["category_id"]]
            counts[at][OUTCOMES[row["outcome"]]] += 1
            if row["outcome"] == "TP":
                counts[at][3] += float(row["iou"])
    return counts


def panoptic_quality(counts: np.ndarray, chosen=slice(None)) -> np.ndarray:
    """PQ in percent from sums over images.

    Args:
        counts: (..., K, 4).
        chosen: the categories that count.

    Returns:
        (...): the mean over the chosen categories that occur.
    """
    tp, fp, fn, iou = np.moveaxis(counts[..., chosen, :], -1, 0)
    present = tp + fp + fn > 0
    quality = iou / np.maximum(tp + 0.5 * fp + 0.5 * fn, 0.5)
    return 100 * (quality * present).sum(-1) / np.maximum(present.sum(-1), 1)


def difference(ours, base, chosen=slice(None), resamples: int = 2000, seed: int = 0) -> dict:
    """PQ of runs minus PQ of the runs that they are paired with.

    Args:
        ours, base: (R, I, K, 4), run r of one paired with run r of the other.
        chosen: the categories that count.
        resamples: of the images, the same images for all runs.

    Returns:
        ``mean`` over the runs, ``each`` run's difference, ``images``: the 95 % interval of the
        mean as the images vary, ``seeds``: Student's 95 % interval as the runs vary (None for a
        single run).
    """
    ours, base = np.asarray(ours), np.asarray(base)
    each = panoptic_quality(ours.sum(1), chosen) - panoptic_quality(base.sum(1), chosen)
    rng = np.random.default_rng(seed)
    images = ours.shape[1]
    weights = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    means = np.zeros(resamples)
    for a, b in zip(ours, base):
        for sign, run in ((1, a), (-1, b)):
            sums = np.tensordot(weights, run, axes=1)  # (resamples, K, 4)
            means += sign * panoptic_quality(sums, chosen) / len(ours)
    return {
        "mean": float(each.mean()),
        "each": each.tolist(),
        "images": np.percentile(means, [2.5, 97.5]).tolist(),
        "seeds": seed_interval(each),
    }


def seed_interval(values) -> list[float] | None:
    """Student's 95 % interval of a mean; None for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]
