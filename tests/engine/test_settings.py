"""Slips in a config are named before the first step, those of the evaluation too."""

import pytest

from amwc_d2.config import load_config
from amwc_d2.engine.settings import check_settings
from amwc_d2.engine.trainer import check_datasets

TOY = "configs/Toy-PanopticSegmentation/amwc_R18.yaml"


def config(repository, *pairs):
    cfg = load_config(repository / TOY)
    for key, value in pairs:
        *nodes, last = key.split(".")
        node = cfg
        for name in nodes:
            node = node[name]
        assert last in node
        node[last] = value
    return cfg


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("MODEL.AMWC.SOLVER.METHOD", "Fast", "one of"),
        ("MODEL.AMWC.SOLVER.NUM_THREADS", -1, "a whole number >= 0"),
        ("MODEL.AMWC.THING_AREA", -5, "a number >= 0"),
        ("MODEL.AMWC.LOSS.PQ_WEIGHT", float("nan"), "a number >= 0"),
        ("MODEL.INS_EMBED_HEAD.LOSS_TOP_K", 25, "a share of the pixels"),
        ("MODEL.INS_EMBED_HEAD.DISTANCES", [1, 2.5], "whole numbers >= 1"),
        ("MODEL.INS_EMBED_HEAD.DISTANCES", [4, 4], "each once"),
        ("MODEL.INS_EMBED_HEAD.DISTANCES", [], "each once"),
        ("MODEL.SEM_SEG_HEAD.LOSS_TYPE", "ce", "one of"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "a whole number >= 1"),
        ("SOLVER.MAX_ITER", 1e3, "a whole number >= 1"),
        ("SOLVER.BASE_LR", 0.0, "a number > 0"),
        ("SOLVER.BASE_LR", "1e-3", "a number > 0"),
        ("SOLVER.IMS_PER_BATCH", 0, "a whole number >= 1"),
        ("DATASETS.TRAIN", (), "a dataset to train on"),
        ("DATASETS.TEST", "toy_panoptic_val", "with the comma"),
        ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "one of"),
        ("INPUT.CROP.TYPE", "relativ", "one of"),
        ("INPUT.CROP.SIZE", (0.5, 0.5), "in pixels"),
        ("INPUT.MIN_SIZE_TRAIN", (0,), "pixels >= 1"),
    ],
)
def test_a_wrong_value_is_named(repository, key, value, said):
    with pytest.raises(ValueError, match=rf"{key} is .*; expected .*{said}"):
        check_settings(config(repository, (key, value)))


def test_all_recipes_are_right_and_all_slips_are_listed(repository):
    for path in (repository / "configs").rglob("*_*.yaml"):
        check_settings(load_config(path))
    cfg = config(repository, ("SOLVER.MAX_ITER", 0), ("INPUT.CROP.TYPE", "square"))
    with pytest.raises(ValueError, match=r"(?s)SOLVER.MAX_ITER is 0.*INPUT.CROP.TYPE is 'square'"):
        check_settings(cfg)
    check_settings(config(repository, ("DATASETS.TRAIN", ())), training=False)


def test_the_ignored_value_is_that_of_the_data(repository, toy_root):
    cfg = config(repository, ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0))
    with pytest.raises(ValueError, match=r"IGNORE_VALUE is 0, but .* by 255"):
        check_datasets(cfg, "toy_panoptic_val")
