#!/usr/bin/env python3
"""Write a page for each image that explains its segmentation, and lets people correct it.

    python tools/explain.py cells/ --config-file CONFIG --output pages --opts MODEL.WEIGHTS FILE
    python tools/explain.py --dataset toy_panoptic_val --num 3 --config-file CONFIG --output pages

A page is one HTML file that needs neither a server nor a network: it can be sent by mail. With
--corrections, the clicks that pages saved, it writes the corrected labels instead (NAME.png,
NAME.panoptic.json), solved again cell by cell around the clicks. See docs/explain.md.
"""

import logging
from pathlib import Path

from demo import find_images, setup_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.engine.command_line import model_parser
from amwc_d2.engine.predictor import Predictor
from amwc_d2.explain import explain, read_clicks

logger = logging.getLogger("amwc_d2.explain")


def get_parser():
    parser = model_parser(__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="images, or folders of images")
    parser.add_argument("--dataset", metavar="NAME", help="a registered dataset, with ground truth")
    parser.add_argument("--num", type=int, default=8, help="images of the dataset (default: 8)")
    parser.add_argument(
        "--corrections", nargs="+", default=[], metavar="FILE", help="NAME.clicks.json of pages"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pages")
    return parser


def match_corrections(files, samples):
    """The images that clicks are about, and the clicks.

    Returns:
        list of pairs of a sample and its ``Clicks``.

    Raises:
        ValueError: no image, or several, have the name that a file of clicks gives.
    """
    found = []
    for file in files:
        clicks = read_clicks(file)
        name = Path(clicks.file_name).name
        of_name = [s for s in samples if Path(s["file_name"]).name == name]
        if len(of_name) != 1:
            raise ValueError(
                f"{file} is about '{name}': {len(of_name)} images have this name, not 1"
            )
        found.append((of_name[0], clicks))
    return found


def main(args):
    """Write the pages, or the corrected labels, and return their paths."""
    setup_logger(name="amwc_d2")
    if bool(args.images) == bool(args.dataset):
        raise SystemExit("give images, or --dataset with a registered dataset, one of the two")
    cfg = setup_cfg(args)
    if args.dataset:
        samples = DatasetCatalog.get(args.dataset)
        samples = samples if args.corrections else samples[: args.num]
    else:
        samples = [{"file_name": str(f), "image_id": f.stem} for f in find_images(args.images)]
    corrections = match_corrections(args.corrections, samples)
    predictor = Predictor(cfg)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    if corrections:
        return [
            explain(predictor, s["file_name"], image_id=s["image_id"])
            .save_labels(output, clicks, exact=True)
            for s, clicks in tqdm(corrections, desc="corrections", unit="image")
        ]  # fmt: skip
    pages = []
    for sample in tqdm(samples, desc="pages", unit="image"):
        file = Path(sample["file_name"])
        truth = None
        if args.dataset:
            truth = read_panoptic_png(sample["pan_seg_file_name"]), sample["segments_info"]
        made = explain(predictor, file, image_id=sample["image_id"], truth=truth)
        target = output / f"{file.stem}.html"
        if target in pages:  # the same name in two folders
            target = output / f"{file.parent.name}_{file.stem}_{len(pages)}.html"
        pages.append(made.save(target))
    logger.info("%d pages are in %s", len(pages), output)
    return pages


if __name__ == "__main__":
    main(get_parser().parse_args())
