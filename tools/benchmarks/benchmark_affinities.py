#!/usr/bin/env python
"""The solver on affinities: offsets, volumes and constraints against axis distances, and "
"public peers.

    python tools/benchmarks/benchmark_affinities.py --turns 10

Scenes are Voronoi cells with noisy affinities, as of an electron microscope. Times are CPU
milliseconds of one thread, minima over the turns, all cases of a table in turn; ratios are what
counts. The peers are bioimage-cpp and mwatershed, where installed; they solve other problems, and
the objective of their partitions is given. "error" is the adapted Rand error against the truth.
"""

import argparse
import sys
import time

import numpy as np
from scipy import ndimage

from amwc_d2.solver_cython import amwc_objective, solve_amwc
from amwc_d2.solver_cython.affinities import affinities_to_costs, segment_affinities

AXIS = [(0, 1), (1, 0), (0, 4), (4, 0), (0, 16), (16, 0)]
OFFSETS = [(-1, 0), (0, -1), (-3, 4), (4, 3), (-12, 10), (10, 12)]
VOLUME = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-1, -3, 0), (-1, 3, 3), (0, -8, 8)]


def draw(rng, shape, offsets, cells, noise=1.0):
    """Voronoi cells and affinities (O, *shape) that see their boundaries through noise.

    Returns:
        affinities float32 in (0, 1), truth int (*shape).
    """
    seeds = np.ones(shape, bool)
    seeds[tuple(rng.integers(0, n, cells) for n in shape)] = False
    nearest = ndimage.distance_transform_edt(seeds, return_distances=False, return_indices=True)
    truth = np.ravel_multi_index(tuple(nearest), shape)
    truth = np.unique(truth, return_inverse=True)[1].reshape(shape)
    logits = np.empty((len(offsets), *shape))
    for layer, offset in enumerate(offsets):
        other = np.roll(truth, [-o for o in offset], range(len(shape)))
        blurred = ndimage.gaussian_filter(rng.standard_normal(shape), 2) * 5
        logits[layer] = np.where(other == truth, 2.0, -1.5) + noise * (
            blurred + rng.standard_normal(shape)
        )
    return (1 / (1 + np.exp(-logits))).astype(np.float32), truth


def rand_error(truth, labels):
    """Adapted Rand error: 1 - F1 of the pairs of pixels that are together."""
    table = np.unique(truth.ravel() * (labels.max() + 1) + labels.ravel(), return_counts=True)[1]
    pairs = (table.astype(float) ** 2).sum()
    sums = [(np.bincount(a.ravel()).astype(float) ** 2).sum() for a in (truth, labels)]
    return 1 - 2 * pairs / sum(sums)


def interleaved(cases, turns):
    """Least CPU seconds of every case, and its last result; every turn runs all of them."""
    least, results = dict.fromkeys(cases, np.inf), {}
    for _ in range(turns):
        for name, case in cases.items():
            start = time.process_time()
            results[name] = case()
            least[name] = min(least[name], time.process_time() - start)
    return least, results


def geometry(rng, turns):
    """fast with axis distances, with offsets, on a volume, and with constraints; one size."""
    cases = {}
    for name, shape, offsets in (
        ("axis", (256, 512), AXIS),
        ("offsets", (256, 512), OFFSETS),
        ("volume", (8, 128, 128), VOLUME),
    ):
        affinities, truth = draw(rng, shape, offsets, 150)
        problem = [np.zeros((1, *shape), np.float32), affinities_to_costs(affinities), offsets, [1]]
        if name == "axis":
            edges, plain, cells = problem[1].reshape(3, 2, *shape), problem, truth
            problem = [problem[0], edges, [1, 4, 16], [1]]
        cases[name] = lambda problem=problem: solve_amwc(*problem)
    nodes, edges = plain[:2]
    mask, seeds = np.ones(nodes.shape[1:], bool), np.full(nodes.shape[1:], -1)
    mask[60:120, 200:300] = False
    points = rng.choice(seeds.size, 100, replace=False)
    seeds.flat[points] = cells.flat[points]
    infinite = edges.copy()
    infinite[0, 100:110, 100:130], infinite[1, 50:60, 300:310] = np.inf, -np.inf
    two = np.concatenate([nodes, nodes + 1])
    forbidden = two.copy()
    forbidden[0, :40] = np.inf
    links = {"must_link": [((9, 9), (40, 50))], "cannot_link": [((99, 99), (99, 105))]}
    cases |= {
        "mask": lambda: solve_amwc(*plain, mask=mask),
        "100 seeds": lambda: solve_amwc(*plain, seeds=seeds),
        "links": lambda: solve_amwc(*plain, **links),
        "infinite edges": lambda: solve_amwc(nodes, infinite, *plain[2:]),
        "two classes": lambda: solve_amwc(two, *plain[1:3], [1, 1]),
        "forbidden class": lambda: solve_amwc(forbidden, *plain[1:3], [1, 1]),
    }
    least, _ = interleaved(cases, turns)
    print("| case, 131072 pixels, 6 layers | ms | of axis |\n| --- | --: | --: |")
    for name, seconds in least.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / least['axis']:.2f} |")


def peers(rng, turns):
    """Partitions of the same affinities: time, objective, error."""
    shape = (256, 256)
    affinities, truth = draw(rng, shape, OFFSETS, 100)
    costs = affinities_to_costs(affinities)
    cases = {
        "fast": lambda: segment_affinities(affinities, OFFSETS),
        "greedy": lambda: segment_affinities(affinities, OFFSETS, method="greedy"),
    }
    try:
        from bioimage_cpp import segmentation

        repulsive = affinities.copy()
        repulsive[2:] = 1 - repulsive[2:]
        cases["bioimage-cpp mutex_watershed"] = lambda: segmentation.mutex_watershed(
            repulsive, OFFSETS, 2
        )
    except ImportError:
        print("bioimage-cpp is not installed", file=sys.stderr)
    try:
        import mwatershed

        signed = costs.astype(np.float64)
        cases["mwatershed agglom"] = lambda: mwatershed.agglom(signed, OFFSETS)
    except ImportError:
        print("mwatershed is not installed", file=sys.stderr)
    least, results = interleaved(cases, turns)
    print("\n| method, 256x256, 6 offsets | ms | objective | error |\n| --- | --: | --: | --: |")
    zeros = np.zeros((1, *shape), np.float32)
    for name, labels in results.items():
        labels = np.unique(labels, return_inverse=True)[1].reshape(shape)
        value = amwc_objective(zeros, costs, OFFSETS, np.zeros(shape, int), labels)
        error = rand_error(truth, labels)
        print(f"| {name} | {1e3 * least[name]:.2f} | {value:.1f} | {error:.4f} |")


def main(arguments=None):
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    geometry(rng, options.turns)
    peers(rng, options.turns)


if __name__ == "__main__":
    main()
