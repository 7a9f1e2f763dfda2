#!/usr/bin/env python3
"""Check a panoptic dataset and describe it: every file is opened, every problem named.

    tools/check_dataset.py NAME                   both splits of $DETECTRON2_DATASETS/NAME
    tools/check_dataset.py NAME_panoptic_val      one of them
    tools/check_dataset.py path/to/folder         a folder anywhere

Prints a table of each split's classes, and the grid ceiling of the last split: the panoptic
quality that no model can be above, because the solver's cells are 4 pixels wide, at the images' own
size and enlarged twice and three times. With a config, the table and the ceiling apply its limits
on small segments. Exit status 1 if something is wrong.
"""

import argparse
import logging

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image
from tabulate import tabulate

from amwc_d2.config import load_config
from amwc_d2.data.datasets import check_panoptic_metadata, describe_problems, find_datasets
from amwc_d2.data.images import ImageReader, read_pixels
from amwc_d2.data.survey import survey_dataset
from amwc_d2.evaluation import grid_ceiling
from amwc_d2.visualization import draw_ground_truth

logger = logging.getLogger("amwc_d2.check_dataset")
PERCENTILES = (5, 25, 50, 75, 95)
FACTORS = (1, 2, 3)
TILE = 320  # pixels of an image in the contact sheet


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a dataset, its folder's name, or a folder")
    parser.add_argument("--config-file", metavar="FILE", help="apply this config's limits")
    parser.add_argument("--sheet", metavar="FILE", help="draw images and labels as one picture")
    parser.add_argument("--num", type=int, default=12, help="images of the sheet (default: 12)")
    parser.add_argument(
        "--ceiling-images", type=int, default=100, metavar="N",
        help="images that the ceiling is measured on; 0: not at all (default: 100)",
    )  # fmt: skip
    return parser


def class_table(survey, limits=None):
    """Rows of a table: a class each, of a ``Survey``.

    Args:
        survey (Survey): of one dataset.
        limits (tuple, optional): MODEL.AMWC.THING_AREA and STUFF_AREA.
    """
    rows, total = [], max(survey.pixels, 1)
    for k, name in enumerate(survey.classes):
        mine = survey.segments[survey.segments["category"] == k]
        areas = survey.areas(k)
        row = [
            name,
            "thing" if survey.is_thing[k] else "stuff",
            len(np.unique(mine["image"])),
            len(areas),
            int(mine["crowd"].sum()),
            100 * mine["area"].sum() / total,
            *(np.percentile(areas, PERCENTILES).round() if len(areas) else [None] * 5),
        ]
        if limits:
            limit = limits[0 if survey.is_thing[k] else 1]
            row.append(100 * (areas < limit).mean() if len(areas) else None)
        rows.append(row)
    return rows


def describe(survey, limits=None):
    """A text about a ``Survey``: images, pixels, classes."""
    if not len(survey.sizes):
        return "no sample is sound"
    low, high = survey.sizes.min(0), survey.sizes.max(0)
    kinds = ", ".join(
        f"{count} {kind} with {channels} channel{'s' * (channels > 1)}"
        for (kind, channels), count in survey.kinds.most_common()
    )
    headers = ["class", "kind", "images", "segments", "crowds", "% of pixels",
               *(f"area p{p}" for p in PERCENTILES)]  # fmt: skip
    if limits:
        headers.append("% below limit")
    table = tabulate(
        class_table(survey, limits), headers, tablefmt="pipe",
        floatfmt=("", "", "", "", "", ".1f", *[".0f"] * 5, ".1f"),
    )  # fmt: skip
    return (
        f"{len(survey.sizes)} images of {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels (height x "
        f"width): {kinds}, values {survey.values[:, 0].min():g} to {survey.values[:, 3].max():g}; "
        f"void: {100 * survey.void_pixels / survey.pixels:.1f} % of the pixels\n{table}"
    )


def ceilings(name, cfg=None, num_images=100):
    """The grid ceiling's PQ at each of ``FACTORS``, a row each: factor, PQ, PQ_th, PQ_st."""
    kwargs = {}
    if cfg is not None:
        kwargs = {"thing_area": cfg.MODEL.AMWC.THING_AREA, "stuff_area": cfg.MODEL.AMWC.STUFF_AREA}
    rows = []
    for factor in FACTORS:
        results = grid_ceiling(name, factor=factor, num_images=num_images, **kwargs)
        found = results["panoptic_seg"]
        rows.append([f"{factor}x", *(found.get(key) for key in ("PQ", "PQ_th", "PQ_st"))])
    return rows


def contact_sheet(name, reader, count):
    """Images beside their labels, RGB uint8, four pairs a row, drawn evenly from a dataset."""
    samples, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))
    tiles = []
    for index in chosen:
        image = reader.to_rgb(reader(samples[index]["file_name"]))
        drawn = draw_ground_truth(image, samples[index], metadata)
        tiles.append(np.hstack([_fit(image), _fit(drawn)]))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    return np.vstack([np.hstack(tiles[i : i + 4]) for i in range(0, len(tiles), 4)])


def reader_of(survey, cfg):
    """A reader for a dataset's images: the config's, or else one that can show them.

    Says so where the default settings could not read them.
    """
    if cfg is not None:
        return ImageReader.from_config(cfg)
    channels = max(channels for _, channels in survey.kinds)
    given = {} if channels in (1, 3, 4) else {"format": "ALL", "channels": channels}
    reader = ImageReader(**given)
    try:
        reader(DatasetCatalog.get(survey.name)[0]["file_name"])
    except ValueError as error:
        logger.warning("A config for these images must set INPUT.SCALING: %s", error)
        return ImageReader(**given, scaling="percentile")
    if given:
        logger.warning(
            "A config for these images must set INPUT.FORMAT 'ALL', and MODEL.PIXEL_MEAN and "
            "PIXEL_STD to %d values each (tools/suggest_config.py does).", channels,
        )  # fmt: skip
    return reader


def _fit(picture):
    """A picture within a white square of ``TILE`` pixels."""
    scale = TILE / max(picture.shape[:2])
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    square = np.full((TILE + 4, TILE + 4, 3), 255, np.uint8)
    square[2 : 2 + size[1], 2 : 2 + size[0]] = cv2.resize(
        picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    return square


def main(args):
    """Print everything; returns whether all is well."""
    setup_logger(name="amwc_d2")
    names = find_datasets(args.name)
    cfg = load_config(args.config_file) if args.config_file else None
    check_panoptic_metadata(*names, num_classes=cfg and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    read, limits = read_pixels, None
    if cfg is not None:
        configured = ImageReader.from_config(cfg)
        limits = cfg.MODEL.AMWC.THING_AREA, cfg.MODEL.AMWC.STUFF_AREA

        def read(path):
            configured(path)  # what the config cannot read is a problem
            return read_pixels(path, None if configured.page < 0 else configured.page)

    well = True
    for name in names:
        survey = survey_dataset(name, read)
        logger.info("%s: %s", name, describe(survey, limits))
        if survey.problems:
            well = False
            logger.error("%s", describe_problems(survey))
            continue
        reader = reader_of(survey, cfg)
    if well and args.ceiling_images:
        rows = ceilings(names[-1], cfg, args.ceiling_images)
        table = tabulate(
            rows, ["enlarged", "PQ", "PQ_th", "PQ_st"], tablefmt="pipe", floatfmt=".1f"
        )
        logger.info(
            "The grid ceiling of %s (INPUT.MIN_SIZE_* enlarge images):\n%s", names[-1], table
        )
    if well and args.sheet:
        Image.fromarray(contact_sheet(names[-1], reader, args.num)).save(args.sheet)
        logger.info("The contact sheet is in %s", args.sheet)
    if well:
        logger.info("Nothing wrong was found.")
    return well


if __name__ == "__main__":
    raise SystemExit(not main(get_parser().parse_args()))
