"""What a model must carry with it to be used where its training set is not.

A card is a plain dict: ``categories`` (as in a COCO-panoptic JSON, in the order of the classes),
``config`` (the YAML of the whole config, hence also how images are read and the limits on areas)
and ``scale`` (by how much training images were resized: the 5th, 50th and 95th percentile of the
factors). The trainer writes it into every checkpoint, under ``card``; releases have it beside the
checkpoint, as ``card.json``.
"""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from amwc_d2.config import add_amwc_config
from amwc_d2.data.datasets import check_panoptic_metadata
from amwc_d2.data.images import image_size
from amwc_d2.data.mappers import ResizeShortestEdge
from amwc_d2.data.panoptic_format import class_metadata

logger = logging.getLogger(__name__)

IGNORE_LABEL = 255
FAR = 1.5  # a factor further than this from the trained ones is another magnification
SIZED_IMAGES = 200  # whose factors describe a training set


class ModelCard:
    """A card as a checkpointer takes it: what it saves, and nothing that it loads."""

    def __init__(self, card):
        self.card = card

    def state_dict(self):
        return self.card

    def load_state_dict(self, card):
        """A resumed run keeps the card of its own config."""


def make_card(cfg):
    """Describe the model that a config trains.

    Args:
        cfg (CfgNode): its first dataset is registered and on this machine.

    Returns:
        dict: see the module.
    """
    metadata = MetadataCatalog.get(_first_dataset(cfg))
    things = metadata.thing_dataset_id_to_contiguous_id
    number = {k: i for i, k in {**metadata.stuff_dataset_id_to_contiguous_id, **things}.items()}
    categories = [
        {
            "id": number[k],
            "name": name,
            "isthing": int(number[k] in things),
            "color": [int(c) for c in metadata.stuff_colors[k]],
        }
        for k, name in enumerate(metadata.stuff_classes)
    ]
    return {"categories": categories, "config": cfg.dump(), "scale": trained_scale(cfg)}


def trained_scale(cfg):
    """By how much the images of ``DATASETS.TRAIN`` are resized at test size.

    Returns:
        list[float]: 5th, 50th and 95th percentile of the factors.
    """
    samples = DatasetCatalog.get(_first_dataset(cfg))
    resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    factors = []
    for sample in samples[:: -(-len(samples) // SIZED_IMAGES)]:
        size = sample.get("height"), sample.get("width")
        size = size if None not in size else image_size(sample["file_name"])
        factors.append(resize_factor(resize, size))
    return [float(f) for f in np.percentile(factors, (5, 50, 95))]


def resize_factor(resize, size):
    """By how much ``ResizeShortestEdge`` enlarges the longer side of an image (height, width)."""
    transform = resize.get_transform(np.empty(size, np.bool_))
    sides = getattr(transform, "new_h", size[0]), getattr(transform, "new_w", size[1])
    return max(sides) / max(size)


def read_card(weights):
    """Read the card of a checkpoint.

    Args:
        weights (str or Path): a local file; other places have no card.

    Returns:
        dict or None: None where there is no card, or no readable file.
    """
    path = Path(str(weights))
    if not str(weights) or not path.is_file():
        return None
    beside = path.with_name("card.json")
    if beside.is_file():
        return json.loads(beside.read_text())
    if path.suffix != ".pth":
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whoever loads the weights says what is wrong with them
        return None
    return content.get("card") if isinstance(content, dict) else None


def config_of_card(card):
    """The config that a card holds; a ``CfgNode``, not frozen.

    Raises:
        ValueError: it has keys that this version does not know.
    """
    cfg = get_cfg()
    add_amwc_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(card["config"]))
    except KeyError as error:
        raise ValueError(
            f"the checkpoint's config is of another version of amwc_d2: {error}. Install the one "
            "that it was trained with, or give a config file with MODEL.WEIGHTS."
        ) from error
    return cfg


def model_metadata(cfg, card):
    """The metadata of a model's classes: its first dataset's, or else its card's.

    Where the config's datasets are not on this machine, they get the card's classes, so that
    ``DefaultPredictor`` and everything else finds them under the same names.

    Args:
        cfg (CfgNode): the model's. card (dict or None): of ``MODEL.WEIGHTS``.

    Returns:
        Metadata

    Raises:
        KeyError: neither the dataset nor a card is there.
        ValueError: see :func:`check_panoptic_metadata`.
    """
    name = _first_dataset(cfg)
    if card is not None:
        classes = class_metadata(card["categories"], "the checkpoint's card")
        for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            if dataset not in DatasetCatalog and not MetadataCatalog.get(dataset).get(
                "stuff_classes"
            ):
                MetadataCatalog.get(dataset).set(
                    ignore_label=IGNORE_LABEL, label_divisor=1000, **classes
                )
    return check_panoptic_metadata(
        *([name] if name else []), num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    )


def check_classes(cfg, card):
    """Check that a checkpoint was trained on the classes, in the order, of the config's dataset.

    Raises:
        ValueError: they differ, so that every result would bear a wrong name.
    """
    if card is None or not _first_dataset(cfg):
        return
    metadata = MetadataCatalog.get(_first_dataset(cfg))
    trained = [category["name"] for category in card["categories"]]
    if list(metadata.stuff_classes) != trained:
        raise ValueError(
            f"MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' was trained on the classes {trained}, but "
            f"dataset '{metadata.name}' has {list(metadata.stuff_classes)}. Give it the config "
            "and the dataset that it was trained with."
        )


def _first_dataset(cfg):
    return next(iter((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)), None)
