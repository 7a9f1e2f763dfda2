#!/usr/bin/env python3
"""PQ of refined labels for several weights of the edges (gamma), beside that of nearest labels.

The network runs once and each image is solved once per row; nothing is trained.

    python tools/experiments/refinement.py --config-file checkpoints/toy_amwc_r18_e2e/config.yaml \\
        --dataset toy_panoptic_train --num-images 100 --opts MODEL.WEIGHTS ...
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from amwc_d2.config import load_config
from amwc_d2.engine.calibration import Quality, network_outputs
from amwc_d2.engine.command_line import commit, load_model, model_parser

logger = logging.getLogger("amwc_d2.refinement")
GAMMAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def get_parser():
    parser = model_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="images with ground truth")
    parser.add_argument("--num-images", type=int, default=100, help="drawn from it (default: 100)")
    parser.add_argument("--gammas", type=float, nargs="+", default=GAMMAS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def compare(cfg, model, samples, gammas) -> dict[str, float]:
    """PQ in percent by row: ``nearest``, then each gamma.

    Args:
        cfg: the model's config. model: an ``AMWCPanoptic``.
        samples: dicts of the DatasetCatalog.
        gammas: weights >= 0.
    """
    model.eval()
    outputs = network_outputs(cfg, model, samples)
    quality = replace(Quality.of_model(model), upsampling="refine")
    rows = {"nearest": replace(quality, upsampling="nearest")(model.costs, outputs)}
    kept = model.costs.gamma.clone()
    for gamma in gammas:
        model.costs.gamma.fill_(gamma)
        rows[f"gamma {gamma:g}"] = quality(model.costs, outputs)
    model.costs.gamma.copy_(kept)
    return rows


def main(args):
    setup_logger(name="amwc_d2")
    cfg = load_config(args.config_file, args.opts)
    model = load_model(cfg)
    samples = DatasetCatalog.get(args.dataset)
    order = np.random.default_rng(1).permutation(len(samples))[: args.num_images]
    with torch.no_grad():
        rows = compare(cfg, model, [samples[i] for i in order], args.gammas)
    logger.info(
        "%s, %d images\n%s", args.dataset, len(order), tabulate(rows.items(), floatfmt=".2f")
    )
    if args.json:
        content = {"dataset": args.dataset, "images": len(order), "commit": commit(), "PQ": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main(get_parser().parse_args())
