#!/usr/bin/env python3
"""Fit the scales and offsets of a trained model to panoptic quality, and write a checkpoint.

Stage 1 does so itself at its end, on MODEL.AMWC.CALIBRATION_IMAGES images that it held back from
training. This is for checkpoints that were trained without, or for other images:

    tools/experiments/calibrate.py --config-file configs/Toy-PanopticSegmentation/amwc_R18.yaml \\
        --output calibrated.pth --opts MODEL.WEIGHTS output/toy/amwc_R18/model_final.pth

The images are those that stage 1 holds back, or --num-images of --dataset. Best are images that it
has not seen: the network is more certain of those that it was trained on.
"""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from network_outputs import pick_images
from tabulate import tabulate

from amwc_d2.config import load_config
from amwc_d2.data.model_card import make_card
from amwc_d2.engine.calibration import EVALUATIONS, calibrate
from amwc_d2.engine.command_line import commit, load_model, model_parser
from amwc_d2.engine.trainer import training_samples

logger = logging.getLogger("amwc_d2.calibrate")


def get_parser():
    parser = model_parser(__doc__)
    parser.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--dataset", help="images to fit to (default: those held back by stage 1)")
    parser.add_argument("--num-images", type=int, default=240, help="drawn from --dataset")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="steps of the search")
    parser.add_argument("--json", metavar="FILE", help="write what was fitted there")
    return parser


def main(args):
    setup_logger(name="amwc_d2")
    started_at = commit()  # files may change while this runs
    cfg = load_config(args.config_file, args.opts)
    model = load_model(cfg)
    if args.dataset:
        samples = pick_images(args.dataset, args.num_images)
    else:
        _, samples = training_samples(cfg)
    if not samples:
        raise SystemExit(
            "no image to fit to: give --dataset, or a config of stage 1 whose "
            "MODEL.AMWC.CALIBRATION_IMAGES holds some of at least 5 training images back."
        )
    fitted = calibrate(cfg, model, samples, args.evaluations)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "card": model.card or make_card(cfg)}, args.output)
    rows = [[k, *np.round(np.atleast_1d(v), 3)] for k, v in fitted["costs"].items()]
    logger.info("wrote %s\n%s", args.output, tabulate(rows))
    if args.json:
        results = {
            "config": args.config_file,
            "opts": args.opts,
            "commit": started_at,
            **fitted,
        }
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return fitted


if __name__ == "__main__":
    main(get_parser().parse_args())
