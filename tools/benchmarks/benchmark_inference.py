#!/usr/bin/env python3
"""Measure what overlapping network and solver brings at inference.

    tools/benchmarks/benchmark_inference.py --config-file F --size 128 256 --opts MODEL.WEIGHTS W

Runs network and solver (with post-processing) apart, then side by side as evaluation does, on toy
scenes of the given size, and prints wall seconds an image and the ratio to the larger of the two
(at best 1). Give the network one thread (OMP_NUM_THREADS=1), or it takes all cores when alone and
nothing is left to overlap. Needs an otherwise idle machine.
"""

import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from amwc_d2.config import load_config
from amwc_d2.data.toy_scenes import draw_scene
from amwc_d2.engine.command_line import load_model, model_parser
from amwc_d2.evaluation.loop import run_inference


def make_batches(count, batch_size, size):
    """``count`` batches of toy scenes, tiled to ``size`` (height, width)."""
    batches = []
    for first in range(0, count * batch_size, batch_size):
        batch = []
        for seed in range(first, first + batch_size):
            image, *_ = draw_scene(np.random.default_rng(seed))
            tiles = [-(-side // length) for side, length in zip(size, image.shape)]
            image = np.tile(image, (*tiles, 1))[: size[0], : size[1]]
            batch.append(
                {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))}
            )
        batches.append(batch)
    return batches


@torch.no_grad()
def measure(model, batches):
    """Seconds an image of the network alone, the labels alone, and both side by side."""
    images = sum(map(len, batches))
    start = time.perf_counter()
    predictions = [model.predict(batch) for batch in batches]
    network = time.perf_counter()
    for batch, prediction in zip(batches, predictions):
        model.label(batch, prediction)
    labels = time.perf_counter()
    del predictions
    _, side_by_side, _ = run_inference(model, batches, SimpleNamespace(process=lambda *_: None))
    return {
        "network": (network - start) / images,
        "labels": (labels - network) / images,
        "side_by_side": side_by_side / images,
    }


def main():
    parser = model_parser(__doc__)
    parser.add_argument("--size", nargs=2, type=int, default=(128, 256), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="the median ratio counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    model = load_model(load_config(args.config_file, args.opts)).eval()
    batches = make_batches(args.batches, args.batch_size, args.size)
    measure(model, batches[:2])  # warm up
    runs = [measure(model, batches) for _ in range(args.repeats)]
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    ratios = [run["side_by_side"] / max(run["network"], run["labels"]) for run in runs]
    figures["ratio"] = statistics.median(ratios)
    for key, value in figures.items():
        print(f"{key:14s}{value:8.3f}")
    if args.json:
        args.json.write_text(json.dumps({"size": args.size, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
