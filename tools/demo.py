#!/usr/bin/env python3
"""Run a model on images, folders of images or a registered dataset, and draw one panel for each.

A panel holds the image, the ground truth if there is one (--dataset), the panoptic prediction and
the cuts; with --costs also the class costs and the affinities that the solver was given.
"""

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from amwc_d2.config import load_config, use_available_device
from amwc_d2.data.datasets import check_panoptic_metadata
from amwc_d2.data.images import IMAGE_SUFFIXES, is_image
from amwc_d2.engine.command_line import model_parser
from amwc_d2.engine.predictor import Predictor
from amwc_d2.visualization import draw_panel

logger = logging.getLogger("amwc_d2.demo")


def get_parser():
    parser = model_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, or folders of images")
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, with ground truth")
    parser.add_argument("--num", type=int, default=8, help="images of the dataset (default: 8)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the panels")
    parser.add_argument("--costs", action="store_true", help="draw the costs as well")
    return parser


def setup_cfg(args):
    cfg = load_config(args.config_file, args.opts)
    use_available_device(cfg)
    if not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: predictions come from random weights.")
    cfg.freeze()
    return cfg


def find_images(paths):
    """List the image files among ``paths`` and directly in the folders among them, in order.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"--input {path} does not exist.")
        found = [path]
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if is_image(f))
        if not found:
            raise FileNotFoundError(f"--input {path} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        files += found
    return files


def main(args):
    """Draw the panels and return their paths."""
    setup_logger(name="amwc_d2")
    cfg = setup_cfg(args)
    if args.dataset:
        metadata = check_panoptic_metadata(
            args.dataset, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        )
        samples = DatasetCatalog.get(args.dataset)[: args.num]
        images = [(Path(sample["file_name"]), sample) for sample in samples]
    else:
        metadata = None
        images = [(file, None) for file in find_images(args.input)]

    predictor = Predictor(cfg)
    metadata = metadata or predictor.metadata
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    panels = []
    for file, sample in tqdm(images, desc="panels", unit="image"):
        image = predictor.read.to_rgb(predictor.read(file))
        prediction = predictor(file)
        costs = None
        if args.costs:
            grid = prediction["amwc"]["segments"].shape
            costs = predictor.predict_costs(file, grid)
        panel = draw_panel(
            image, prediction, metadata, sample, costs, cfg.MODEL.INS_EMBED_HEAD.DISTANCES
        )
        target = output / f"{file.stem}.png"
        if target in panels:  # the same name in two folders
            target = output / f"{file.parent.name}_{file.stem}_{len(panels)}.png"
        Image.fromarray(panel).save(target)
        panels.append(target)
    logger.info("%d panels are in %s", len(panels), output)
    return panels


if __name__ == "__main__":
    main(get_parser().parse_args())
