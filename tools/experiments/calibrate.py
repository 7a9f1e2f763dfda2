#!/usr/bin/env python3
"""Fit the scales and offsets of the costs to panoptic quality; the network stays as it is.

The affinities of stage 1 are trained on hard edges with weights, so that their zero is not where
the solver's should be. This fits a scale and an offset for each edge distance, an offset for each
class (``amwc_d2.costs.Costs``) by coordinate search on training images, and writes a checkpoint
with them. The network runs once; a step of the search only solves.

    tools/experiments/calibrate.py --config-file configs/Toy-PanopticSegmentation/amwc_R18.yaml \\
        --output calibrated.pth --opts MODEL.WEIGHTS output/toy/amwc_R18/model_final.pth

PQ is the true one (IoU above one half, small segments rejected, sums over all images). Half of the
images are searched on; the other half only decide whether a whole round of the search is kept, so
that noise is not. Images that stage 1 has not seen are better still: the network is more certain of
those that it was trained on.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from network_outputs import (
    Output,
    collate,
    network_outputs,
    pick_images,
)
from tabulate import tabulate
from tqdm import tqdm

from amwc_d2.amwc_layer import SolverSettings, solve, to_arrays
from amwc_d2.config import load_config
from amwc_d2.costs import Costs
from amwc_d2.data.model_card import make_card
from amwc_d2.engine.command_line import commit, load_model, model_parser
from amwc_d2.evaluation import segment_metrics
from amwc_d2.refinement import pixel_labels

logger = logging.getLogger("amwc_d2.calibrate")
STEP = 0.5  # nats of an offset, and logarithm of a scale, in the first round; halved when stuck
BATCH = 24


def get_parser():
    parser = model_parser(__doc__)
    parser.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--dataset", help="images to fit to (default: DATASETS.TRAIN)")
    parser.add_argument("--num-images", type=int, default=240, help="drawn from it (default: 240)")
    parser.add_argument("--rounds", type=int, default=4, help="over all parameters (default: 4)")
    parser.add_argument("--json", metavar="FILE", help="write what was fitted there")
    return parser


@dataclass
class Quality:
    """True PQ of the solutions, in the pixels of the network's input.

    Attributes:
        solver: how to solve.
        min_area: (K,), segments with fewer pixels are rejected.
        upsampling: ``MODEL.AMWC.UPSAMPLING``: the labels that are compared.
    """

    solver: SolverSettings
    min_area: np.ndarray
    upsampling: str = "refine"

    @torch.no_grad()
    def __call__(self, costs: Costs, batches) -> float:
        """PQ in percent over all classes that occur in ``collate``d batches."""
        records = []
        for *logits, sizes, truth in batches:
            stride = truth.segments.shape[-1] // logits[0].shape[-1]
            both = costs(*logits)
            solutions = solve(*both, sizes, self.solver)
            pixels = [tuple(stride * side for side in size) for size in sizes]
            labels = pixel_labels(
                solutions,
                *(to_arrays(c, sizes) for c in both),
                self.solver.distances,
                stride,
                pixels,
                pixels,
                gamma=costs.gamma.item() if self.upsampling == "refine" else None,
            )
            for n, ((classes, segments), (h, w)) in enumerate(zip(labels, pixels)):
                records.append(
                    self.compare(
                        classes.numpy(),
                        segments.numpy(),
                        truth.segments[n, :h, :w].numpy(),
                        truth.classes[n].numpy(),
                        truth.crowd[n].numpy(),
                    )
                )
        return segment_metrics.panoptic_quality(np.concatenate(records), range(len(self.min_area)))

    def compare(self, classes, segments, true, true_classes, true_crowd):
        """Records (``segment_metrics.RECORD``) of one image; true: segments, -1 = void."""
        area = np.bincount(segments.ravel())  # 0 where a segment has vanished
        of_segment = np.zeros(len(area), np.int64)
        of_segment[segments.ravel()] = classes.ravel()
        kept = np.flatnonzero(area >= np.maximum(self.min_area[of_segment], 1))
        number = np.zeros(len(area), np.int64)
        number[kept] = 1 + np.arange(len(kept))
        true_area = np.bincount(true.ravel() + 1, minlength=1 + len(true_classes))[1:]
        true_info = [
            {"category_id": int(k), "iscrowd": bool(crowd), "area": int(cells)}
            for k, crowd, cells in zip(true_classes, true_crowd, true_area)
        ]
        pred_info = [{"category_id": int(of_segment[i])} for i in kept]
        return segment_metrics.match_segments(true + 1, number[segments], true_info, pred_info)


def moves(costs: Costs):
    """The coordinates of the search: name, parameter, indices that move together.

    All distances together come first. The scale of the classes is left alone: scaling all costs
    changes no solution.
    """
    distances = range(len(costs.edge_offset))
    for part in ("edge_offset", "edge_scale"):
        yield f"{part} of all distances", part, list(distances)
    for part, size in (
        ("edge_offset", len(distances)),
        ("edge_scale", len(distances)),
        ("class_offset", len(costs.class_offset)),
    ):
        for i in range(size):
            yield f"{part} {i}", part, [i]


def moved(costs: Costs, part: str, indices, step: float) -> Costs:
    """A copy whose offsets are larger by ``step``, or whose scales are exp(step) times as large."""
    result = Costs(len(costs.class_offset), len(costs.edge_offset), costs.dropout)
    result.load_state_dict(costs.state_dict())
    with torch.no_grad():
        values = getattr(result, part)
        for i in indices:
            values[i] = values[i] * np.exp(step) if part == "edge_scale" else values[i] + step
    return result


def fit(costs: Costs, quality, search, check, rounds: int) -> tuple[Costs, list[dict]]:
    """Coordinate search, one step along each coordinate a round; the step halves every round.

    Args:
        costs: where to start; not changed.
        quality: ``quality(costs, batches)``, larger is better.
        search: batches that decide on every step. check: batches that decide which round is best.

    Returns:
        the costs of the round that is best on ``check``, the start included, and the history.
    """
    best, value = costs, quality(costs, search)
    history = [{"round": 0, "search": value, "check": quality(costs, check)}]
    kept = (history[0]["check"], costs)
    for number in range(1, rounds + 1):
        step = STEP * 0.5 ** (number - 1)
        for _, part, indices in tqdm(list(moves(costs)), desc=f"round {number}", leave=False):
            for side in (step, -step):
                candidate = moved(best, part, indices, side)
                found = quality(candidate, search)
                if found > value:
                    best, value = candidate, found
                    break
        history.append({"round": number, "search": value, "check": quality(best, check)})
        logger.info("round %d: PQ %.2f on the images of the search, %.2f on the others",
                    number, value, history[-1]["check"])  # fmt: skip
        if history[-1]["check"] > kept[0]:
            kept = (history[-1]["check"], best)
    return kept[1], history


def batches_of(outputs: list[Output]):
    return [collate(outputs[i : i + BATCH]) for i in range(0, len(outputs), BATCH)]


def calibrate(cfg, model, samples, rounds: int = 4) -> list[dict]:
    """Fit ``model.costs`` in place.

    Args:
        cfg: the model's config.
        samples: dicts of the DatasetCatalog, at least 2.

    Returns:
        the history of the search: PQ of each round on either half.
    """
    outputs = network_outputs(cfg, model, samples)
    min_area = np.where(model.solver.partitionable, model.thing_area, model.stuff_area)
    quality = Quality(model.solver, min_area, model.upsampling)
    fitted, history = fit(
        model.costs, quality, batches_of(outputs[::2]), batches_of(outputs[1::2]), rounds
    )
    model.costs.load_state_dict(fitted.state_dict())
    return history


def main(args):
    setup_logger(name="amwc_d2")
    started_at = commit()  # files may change while this runs
    cfg = load_config(args.config_file, args.opts)
    model = load_model(cfg)
    samples = pick_images(args.dataset or cfg.DATASETS.TRAIN[0], args.num_images)
    if len(samples) < 2:
        raise SystemExit("--num-images must be at least 2: one half decides on the other's rounds.")
    history = calibrate(cfg, model, samples, args.rounds)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "card": model.card or make_card(cfg)}, args.output)
    fitted = {name: value.tolist() for name, value in model.costs.state_dict().items()}
    rows = [[name, *np.round(np.atleast_1d(value), 3)] for name, value in fitted.items()]
    logger.info("wrote %s\n%s", args.output, tabulate(rows))
    if args.json:
        results = {
            "config": args.config_file,
            "opts": args.opts,
            "commit": started_at,
            "images": len(samples),
            "history": history,
            "costs": fitted,
        }
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return history


if __name__ == "__main__":
    main(get_parser().parse_args())
