#!/usr/bin/env python
"""The solver on what released networks make of validation images.

    python tools/benchmarks/benchmark_real.py --output output/real

Runs each network once (its costs are kept in the output folder, a .npz for each model, and read
from there the next time), solves every image by every method and prints a line for each model: on
how many images fast and good are no worse than Algorithm 2, how far fast is above it at most, the
mean distance of fast to good, the mean certified gap of good, and CPU milliseconds. Exits with 1
where fast is worse than Algorithm 2. Times are of one thread; only ratios mean something elsewhere.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from amwc_d2 import model_zoo
from amwc_d2.data.mappers import InferenceMapper
from amwc_d2.engine.command_line import load_model
from amwc_d2.solver_cython import lower_bound, solve_amwc

METHODS = ("greedy", "fast", "good")


@torch.no_grad()
def network_costs(name, images):
    """Costs of the first validation images: lists of arrays, distances, partitionable."""
    cfg = model_zoo.get_config(name)
    model = load_model(cfg).eval()
    mapper = InferenceMapper(cfg)
    nodes, edges = [], []
    for sample in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:images]:
        prediction = model.predict([mapper(sample)])
        (height, width), stride = prediction.image_sizes[0], model.stride
        image = np.s_[0, ..., : -(-height // stride), : -(-width // stride)]
        nodes.append(np.ascontiguousarray(prediction.node_costs[image].numpy()))
        edges.append(np.ascontiguousarray(prediction.edge_costs[image].numpy()))
    return nodes, edges, list(model.solver.distances), np.asarray(model.solver.partitionable)


def stored_costs(folder, name, images):
    """The same, from the output folder where they are there."""
    path = folder / f"{name}_{images}.npz"
    if not path.is_file():
        nodes, edges, distances, partitionable = network_costs(name, images)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"node{i}": a for i, a in enumerate(nodes)}
        arrays |= {f"edge{i}": a for i, a in enumerate(edges)}
        np.savez(path, distances=distances, partitionable=partitionable, **arrays)
    stored = np.load(path)
    count = (len(stored.files) - 2) // 2
    problem = stored["distances"].tolist(), stored["partitionable"]
    return [(stored[f"node{i}"], stored[f"edge{i}"], *problem) for i in range(count)]


def compare(problems):
    """Objectives (methods, images), CPU milliseconds of each method, gap of good in percent."""
    values, seconds = np.zeros((len(METHODS), len(problems))), np.zeros(len(METHODS))
    gaps = []
    for i, problem in enumerate(problems):
        for m, method in enumerate(METHODS):
            start = time.thread_time()
            solution = solve_amwc(*problem, method=method)
            seconds[m] += time.thread_time() - start
            values[m, i] = solution.objective
        bound = lower_bound(*problem, solution=solution)
        gaps.append(100 * (solution.objective - bound) / abs(bound))
    return values, 1000 * seconds / len(problems), np.array(gaps)


def main(arguments=None):
    """Compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=model_zoo.names())
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("output/real"))
    options = parser.parse_args(arguments)
    worse = 0
    print(
        "model | fast <= greedy | worst % | good <= both | fast - good % | gap of good % | "
        "gap <= 0.1 % | ms greedy, fast, good"
    )
    for name in options.models:
        values, times, gaps = compare(stored_costs(options.output, name, options.images))
        greedy, fast, good = values
        size = np.abs(greedy)
        fine = fast <= greedy + 1e-9 * size
        worse += (~fine).sum()
        print(
            f"{name} | {fine.sum()} of {len(fine)} | {100 * ((fast - greedy) / size).max():+.3f} | "
            f"{(good <= np.minimum(fast, greedy) + 1e-9 * size).sum()} | "
            f"{100 * ((fast - good) / size).mean():.3f} | {gaps.mean():.3f} | "
            f"{(gaps <= 0.1).sum()} | {', '.join(f'{t:.1f}' for t in times)}",
            flush=True,
        )
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
