"""The values of a config: checked before the first step, and compared when a run is resumed."""

import math
from fnmatch import fnmatchcase

import yaml

from amwc_d2.solver_cython._validation import METHODS

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
CROPS = ("absolute", "absolute_range", "relative", "relative_range")

# What other objects check when they are made, before the first step too, is not repeated here.
_WHOLE = {
    0: (
        "MODEL.AMWC.SOLVER.NUM_THREADS", "SOLVER.WARMUP_ITERS", "DATALOADER.NUM_WORKERS",
        "TEST.EVAL_PERIOD", "INPUT.MIN_SIZE_TEST",
    ),
    1: (
        "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.IMS_PER_BATCH", "TEST.IMS_PER_BATCH",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST",
    ),
}  # fmt: skip
_NOT_NEGATIVE = (
    "MODEL.AMWC.THING_AREA", "MODEL.AMWC.STUFF_AREA", "MODEL.AMWC.LOSS.PQ_WEIGHT",
    "MODEL.AMWC.LOSS.CROSS_ENTROPY_WEIGHT",
    "MODEL.INS_EMBED_HEAD.LOSS_WEIGHT", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    "INPUT.THING_EDGE_WEIGHT", "INPUT.SMALL_INSTANCE_AREA",
    "INPUT.SMALL_INSTANCE_WEIGHT", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.MOMENTUM", "SOLVER.BIAS_LR_FACTOR",
)  # fmt: skip
_POSITIVE = ("SOLVER.BASE_LR", "DATALOADER.TIMEOUT")
_SHARES = ("MODEL.INS_EMBED_HEAD.LOSS_TOP_K", "MODEL.SEM_SEG_HEAD.LOSS_TOP_K")
_CHOICES = {
    "MODEL.AMWC.SOLVER.METHOD": tuple(METHODS),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": ("cross_entropy", "hard_pixel_mining"),
    "DATALOADER.SAMPLER_TRAIN": SAMPLERS,
    "INPUT.CROP.TYPE": CROPS,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
}


def check_settings(cfg, training=True):
    """Check values that the first step, or the evaluation after hours of training, would fail on.

    Args:
        cfg (CfgNode): the full config.
        training (bool): the config is trained with, not only evaluated.

    Raises:
        ValueError: lists the keys, what was expected, and what they are.
    """
    values = flatten(cfg)
    wrong = []

    def expect(ok, key, expected):
        if not ok:
            wrong.append(f"{key} is {values[key]!r}; expected {expected}")

    for low, keys in _WHOLE.items():
        for key in keys:
            expect(_is_whole(values[key], low), key, f"a whole number >= {low}")
    for key in _NOT_NEGATIVE:
        expect(_is_number(values[key]) and values[key] >= 0, key, "a number >= 0")
    for key in _POSITIVE:
        expect(_is_number(values[key]) and values[key] > 0, key, "a number > 0")
    for key in _SHARES:
        share = _is_number(values[key]) and 0 < values[key] <= 1
        expect(share, key, "a share of the pixels, above 0 and at most 1")
    for key, choices in _CHOICES.items():
        expect(values[key] in choices, key, f"one of {choices}")
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        names = isinstance(values[key], (tuple, list)) and all(
            isinstance(name, str) for name in values[key]
        )
        expect(names, key, "a tuple of names, such as ('my_panoptic_train',) with the comma")
    if training and not values["DATASETS.TRAIN"]:
        expect(False, "DATASETS.TRAIN", "a dataset to train on (--eval-only needs none)")
    key, distances = "MODEL.INS_EMBED_HEAD.DISTANCES", values["MODEL.INS_EMBED_HEAD.DISTANCES"]
    expect(
        len(distances) == len(set(distances)) > 0 and all(_is_whole(d, 1) for d in distances),
        key,
        "whole numbers >= 1 (cells of the grid), each once",
    )
    sizes = values["INPUT.MIN_SIZE_TRAIN"]
    sizes = sizes if isinstance(sizes, (tuple, list)) else [sizes]
    expect(sizes and all(_is_whole(s, 1) for s in sizes), "INPUT.MIN_SIZE_TRAIN", "pixels >= 1")
    if values["INPUT.CROP.ENABLED"]:
        size, absolute = values["INPUT.CROP.SIZE"], values["INPUT.CROP.TYPE"] == "absolute"
        fits = all(_is_whole(s, 1) if absolute else _is_number(s) and s > 0 for s in size)
        expect(
            len(size) == 2 and fits,
            "INPUT.CROP.SIZE",
            "height and width, in pixels where INPUT.CROP.TYPE is 'absolute'",
        )
    if wrong:
        raise ValueError("the config has wrong values:\n  " + "\n  ".join(wrong))


def _is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_whole(value, low):
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def flatten(node, prefix=""):
    """The values of nested dicts by dotted key."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


# ---------------------------------------------------------------------------- resuming
# Settings that a resumed run shares with its beginning, and those among them that may change.
_SHARED = ("MODEL.*", "SOLVER.*", "INPUT.*", "DATASETS.TRAIN", "DATALOADER.*", "SEED")
_FREE = (
    "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.AMWC.SOLVER.NUM_THREADS", "TEST.ORACLE",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.REFERENCE_WORLD_SIZE", "INPUT.*_TEST",
    "DATALOADER.NUM_WORKERS", "DATALOADER.TIMEOUT",
)  # fmt: skip


def differing_settings(there, here):
    """Settings that must agree between two parts of a run, and do not.

    Args:
        there, here (str): configs as YAML; keys that only one of them has do not count.

    Returns:
        list of (key, value there, value here).
    """
    there, here = (flatten(yaml.safe_load(text) or {}) for text in (there, here))
    return [
        (key, value, here[key])
        for key, value in there.items()
        if key in here
        and here[key] != value
        and any(fnmatchcase(key, pattern) for pattern in _SHARED)
        and not any(fnmatchcase(key, pattern) for pattern in _FREE)
    ]
