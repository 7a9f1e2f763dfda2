#!/usr/bin/env python3
"""Make a training set of corrected images, as the explanations' pages save them.

    python tools/collect_corrections.py corrected/*.panoptic.json --images cells/ --name cells_fixed

Beside each NAME.panoptic.json lies its NAME.png. Writes $DETECTRON2_DATASETS/NAME in COCO-panoptic
format, which is then the dataset NAME_panoptic_train: a short stage 2 on it is

    python tools/train_net.py --config-file E2E_CONFIG MODEL.WEIGHTS model.pth \\
        DATASETS.TRAIN '("cells_fixed_panoptic_train",)' SOLVER.MAX_ITER 50 OUTPUT_DIR output/fixed
"""

import argparse
import json
import shutil
from pathlib import Path

from amwc_d2.data.datasets import datasets_root
from amwc_d2.data.panoptic_format import load_panoptic_json, read_panoptic_json


def collect(files, image_root, folder):
    """Join saved images to one dataset.

    Args:
        files: the ``*.panoptic.json`` that pages saved, each beside its PNG.
        image_root: folder of the images.
        folder: where ``panoptic_train.json``, ``panoptic_train`` and ``train`` are written.

    Returns:
        the number of images.

    Raises:
        ValueError: two files have other categories, or are of one image.
        FileNotFoundError: an image or a PNG is missing.
        FileExistsError: ``folder`` is there already.
    """
    folder = Path(folder)
    joined = {"images": [], "annotations": [], "categories": None}
    sources = []  # (file to copy, where to)
    seen = {}
    for file in map(Path, files):
        saved = read_panoptic_json(file)
        joined["categories"] = joined["categories"] or saved["categories"]
        if saved["categories"] != joined["categories"]:
            raise ValueError(f"{file} has other categories than {files[0]}: collect them apart.")
        for image, annotation in zip(saved["images"], saved["annotations"], strict=True):
            name = image["file_name"]
            if name in seen:
                raise ValueError(f"{file} and {seen[name]} are both of image {name}: keep one.")
            seen[name] = file
            sources.append((Path(image_root) / name, folder / "train" / name))
            sources.append((file.parent / annotation["file_name"],
                            folder / "panoptic_train" / annotation["file_name"]))  # fmt: skip
            number = len(joined["images"]) + 1  # pages of files number all images 0
            joined["images"].append({**image, "id": number})
            joined["annotations"].append({**annotation, "image_id": number})
    for source, _ in sources:
        if not source.is_file():
            raise FileNotFoundError(f"{source} is missing: it belongs to a corrected image.")
    for part in ("train", "panoptic_train"):
        (folder / part).mkdir(parents=True)
    for source, target in sources:
        shutil.copy(source, target)
    target = folder / "panoptic_train.json"
    target.write_text(json.dumps(joined))
    return len(load_panoptic_json(target, folder / "train", folder / "panoptic_train"))


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="NAME.panoptic.json of pages")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--name", required=True, help="what to call the dataset")
    return parser


def main(args):
    folder = datasets_root() / args.name
    count = collect(args.files, args.images, folder)
    print(f"{count} corrected images are in {folder}: the dataset {args.name}_panoptic_train")
    return folder


if __name__ == "__main__":
    main(get_parser().parse_args())
