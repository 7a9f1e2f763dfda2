#!/usr/bin/env python3
"""Make a dataset that trains at once, and its two configs, from what you have.

    # label images (TIFF, PNG, npy): 0 = background, 1..N the objects
    tools/import_dataset.py cells --images raw/ --labels labels/ --classes cell

    # maps of classes; objects are connected parts of the thing classes
    tools/import_dataset.py tissue --images raw/ --labels maps/ --layout classes \\
        --classes 0=background 1=cell:thing 2=membrane

    # one mask file an object: ID/images/*.png, ID/masks/*.png (Data Science Bowl 2018)
    tools/import_dataset.py nuclei --images stage1_train/ --layout masks --classes nucleus

    # COCO instances (polygons or run lengths), one JSON or one for train and one for val
    tools/import_dataset.py fruit --images photos/ --labels instances.json --stuff table

    # a tree in the style of Cityscapes: *_leftImg8bit.*, *_instanceIds.png
    tools/import_dataset.py streets --images tree/ --layout cityscapes

writes $DETECTRON2_DATASETS/NAME and configs/NAME/. Then, for the models and a table:

    tools/two_stages.py configs/NAME/amwc_R18.yaml

Folders called train and val (or validation, test) are kept as splits; otherwise a share of the
images, drawn by a seed, becomes val. See docs/own_data.md.
"""

import argparse
import logging
from pathlib import Path

import suggest_config
from detectron2.utils.logger import setup_logger

from amwc_d2.data import importers
from amwc_d2.data.datasets import check_panoptic_dataset, datasets_root, register_panoptic_folder
from amwc_d2.data.importers import ImportedClass

logger = logging.getLogger("amwc_d2.import_dataset")


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="what to call the dataset")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--labels", type=Path, nargs="+", default=[], metavar="PATH",
        help="folder of labels (default: that of the images), or COCO's JSON: one, or train val",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=importers.LAYOUTS, help="default: coco for a JSON, otherwise instances"
    )
    parser.add_argument(
        "--classes", nargs="+", default=[], metavar="CLASS",
        help="NAME, NAME:thing, VALUE=NAME:stuff or #RRGGBB=NAME:thing",
    )  # fmt: skip
    parser.add_argument("--background", default="background", metavar="NAME",
                        help='class of what is not labelled; "" makes it void')  # fmt: skip
    parser.add_argument("--stuff", nargs="+", default=[], metavar="NAME",
                        help="categories of a COCO JSON that are stuff")  # fmt: skip
    parser.add_argument("--void", nargs="+", default=[], metavar="VALUE",
                        help="values of class maps that are no class")  # fmt: skip
    parser.add_argument(
        "--groups", metavar="FILE",
        help="CSV of image name and group: each group gets classes of its own; 'brightness' makes "
        "the groups dark and light",
    )  # fmt: skip
    parser.add_argument("--val", type=float, default=0.2, help="share of val (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--tile", type=int, default=0, metavar="PIXELS",
                        help="cut images into tiles of at most so many pixels a side")  # fmt: skip
    parser.add_argument("--min-area", type=int, default=0, metavar="PIXELS",
                        help="smaller things become void")  # fmt: skip
    parser.add_argument("--configs", type=Path, metavar="DIR",
                        help="default: configs/NAME of the repository")  # fmt: skip
    return parser


def list_items(args):
    """The items and the classes that the arguments describe.

    Raises:
        ValueError: they do not fit what is there; it says how to call the command.
    """
    for path in (args.images, *args.labels):
        if not path.exists():
            raise ValueError(f"{path} does not exist.")
    jsons = [path for path in args.labels if path.suffix.lower() == ".json"]
    layout = args.layout or ("coco" if jsons else "instances")
    labels = args.labels[0] if args.labels else args.images
    classes = [importers.parse_class(c, layout in ("instances", "masks")) for c in args.classes]
    if layout == "coco":
        if not jsons or len(jsons) > 2:
            raise ValueError("--layout coco: give --labels one JSON, or two: train and val.")
        if classes:
            raise ValueError("--layout coco: the JSON names the classes; leave --classes out.")
        classes = importers.coco_classes(jsons[0], args.stuff, args.background)
        for other in jsons[1:]:
            if importers.coco_classes(other, args.stuff, args.background) != classes:
                raise ValueError(f"{jsons[0]} and {other} differ in their categories.")
        splits = [None] if len(jsons) == 1 else ["train", "val"]
        return importers.list_coco(args.images, list(zip(jsons, splits)), classes), classes
    if layout == "cityscapes":
        classes = classes or importers.cityscapes_classes()
        return importers.list_cityscapes(args.images, classes), classes
    if layout == "classes":
        if any(c.value is None for c in classes) or not classes:
            found = importers.values_of_maps(args.images, labels)
            raise ValueError(
                "--layout classes: give --classes the value of each, VALUE=NAME or "
                f"VALUE=NAME:thing. The first maps hold {found}."
            )
        void = [importers.parse_class(f"{value}=void", False).value for value in args.void]
        return importers.list_class_maps(args.images, labels, classes, void), classes
    if len(classes) > 1:
        raise ValueError(
            f"--layout {layout}: the objects have one class, got {args.classes}. For several, give "
            "class maps (--layout classes) or COCO's JSON."
        )
    thing = classes[0] if classes else ImportedClass("object", True)
    background = ImportedClass(args.background, False) if args.background else None
    pair = background, thing
    if layout == "instances":
        items = importers.list_instances(args.images, labels, pair)
    else:
        items = importers.list_masks(args.images, pair)
    return items, [c for c in pair if c is not None]


def main(args):
    """Import, check and suggest; returns the folder of the dataset and the config of stage 1."""
    setup_logger(name="amwc_d2")
    try:
        items, classes = list_items(args)
        if args.groups:
            group_of = (
                importers.by_brightness
                if args.groups == "brightness"
                else importers.groups_of_file(args.groups)
            )
            items, classes = importers.with_groups(items, classes, group_of)
        items = importers.choose_splits(items, args.val, args.seed)
        folder = datasets_root() / args.name
        found = importers.write_dataset(
            folder, items, classes, tile=args.tile, min_area=args.min_area
        )
        names = register_panoptic_folder(folder)
        for name in names:
            check_panoptic_dataset(name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"import_dataset: {error}") from error
    for split, counts in found.items():
        logger.info("%s: %d images, %d segments", split, counts["images"], counts["segments"])
    config = suggest_config.write_configs(names, args.configs)
    logger.info("The dataset is in %s. Next: tools/two_stages.py %s", folder, config)
    return folder, config


if __name__ == "__main__":
    main(get_parser().parse_args())
