#!/usr/bin/env python3
"""Write the two configs of a dataset, each value with its reason in a comment.

    tools/suggest_config.py NAME

looks at every image of $DETECTRON2_DATASETS/NAME and writes configs/NAME/amwc_R18.yaml and
amwc_R18_e2e.yaml, for a model that trains on a CPU; tools/two_stages.py trains both. They are a
start to change, not an optimum: the comments say what each value follows from.
"""

import argparse
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from amwc_d2.config import load_config
from amwc_d2.data.datasets import check_panoptic_metadata, describe_problems, find_datasets
from amwc_d2.data.images import ImageReader
from amwc_d2.data.survey import survey_dataset
from amwc_d2.engine.trainer import Trainer
from amwc_d2.evaluation import grid_ceiling

logger = logging.getLogger("amwc_d2.suggest_config")
REPOSITORY = Path(__file__).resolve().parents[1]
BASE = REPOSITORY / "configs" / "Base-AMWC-R18.yaml"
STRIDE = 4
FACTORS = (1, 2, 3)
ENOUGH = 5.0  # points of the ceiling's PQ that a larger image must gain
LARGEST = 1024  # side of an enlarged image, so that a CPU is enough
PQ_WEIGHT = 10.0
BATCH = 8
COMMON_RATIO = 1.5  # image sizes that differ by more have no common magnification


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a dataset's folder: its name or its path")
    parser.add_argument("--output", metavar="DIR", help="default: configs/NAME of the repository")
    return parser


def round_to_125(value):
    """The nearest of 1, 2, 5, 10, 20, 50 ... on a logarithmic scale."""
    candidates = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5)]
    return min(candidates, key=lambda c: abs(np.log(c / max(value, 1e-2))))


def multiple_of_32(value):
    return max(32, round(value / 32) * 32)


def suggest(train, val):
    """Settings for a dataset.

    Args:
        train, val (Survey): its splits; val may be the same one.

    Returns:
        dict: key -> (value, reason), keys of the config of stage 1 in the order to write them; and
        ``LAMBDA_RANGE`` for stage 2.

    Raises:
        ValueError: nothing is labelled.
    """
    segments = train.segments[~train.segments["crowd"]]
    is_thing = train.is_thing[segments["category"]]
    if not len(segments):
        raise ValueError(f"'{train.name}' has no segment.")
    things = segments[is_thing] if is_thing.any() else segments
    extents = np.maximum(things["height"], things["width"])
    num_classes = len(train.classes)

    shortest = train.sizes.min(1)
    side, longest = int(np.median(shortest)), int(train.sizes.max())
    ceilings = _ceilings(val.name)
    factor = _factor(ceilings, int(np.median(train.sizes.max(1))))
    told = ", ".join(f"{f}x: {pq:.1f}" for f, pq in ceilings.items())
    test_size = multiple_of_32(side * factor)
    factor = test_size / side
    crop = multiple_of_32(np.clip(4 * np.percentile(extents, 75) * factor, 256, 512))
    crop = tuple(
        min(crop, -(-int(np.median(train.sizes[:, axis]) * factor) // 32) * 32) for axis in (0, 1)
    )
    settings = {}

    def put(key, value, reason):
        settings[key] = (value, reason)

    put("MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes, ", ".join(train.classes))
    put("MODEL.SEM_SEG_HEAD.LOSS_TOP_K", 0.3, "the share of the hardest pixels that count")
    cells = extents * factor / STRIDE
    far = np.percentile(cells, 75)
    distances = [1, *(2**p for p in range(1, 7) if 2**p <= far)]
    while len(distances) > 5:
        distances.pop(len(distances) // 2)
    put(
        "MODEL.INS_EMBED_HEAD.DISTANCES",
        distances,
        f"cells of {STRIDE} pixels; things are {np.percentile(cells, 25):.0f} to {far:.0f} long "
        "(quartiles), enlarged",
    )
    for key, mask, what in (("THING_AREA", is_thing, "things"), ("STUFF_AREA", ~is_thing, "stuff")):
        put(f"MODEL.AMWC.{key}", *_area_limit(train, segments[mask], what))
    if _has_fast_bfloat16():
        put("SOLVER.AMP.BFLOAT16", True, "this CPU has AVX512-BF16: half the time of a step")
    put("DATASETS.TRAIN", (train.name,), "")
    put("DATASETS.TEST", (val.name,), "")
    _put_input(put, train)
    put(
        "INPUT.MIN_SIZE_TRAIN",
        tuple(multiple_of_32(f * test_size) for f in (0.875, 1, 1.125)),
        "the size at inference, and an eighth less and more",
    )
    room = int(np.ceil(longest / max(shortest.min(), 1) + 1)) * test_size
    put("INPUT.MAX_SIZE_TRAIN", room, "no image is shrunk for its length")
    put(
        "INPUT.MIN_SIZE_TEST",
        test_size,
        f"the shorter side, {factor:.2g} times the {side} pixels of the median image: the grid "
        f"ceiling's PQ, of nearest cells, is {told}",
    )
    put("INPUT.MAX_SIZE_TEST", room, "")
    put("INPUT.CROP.SIZE", crop, "multiples of 32, at least four things wide")
    third = np.percentile(things["area"], 33)
    put(
        "INPUT.SMALL_INSTANCE_AREA",
        int(max(1, third * factor**2)),
        "the smaller third of the things, of the enlarged image; they count three times",
    )
    put(
        "INPUT.RANDOM_FLIP",
        "horizontal",
        'where up has no meaning (microscopy, from above): "both", and QUARTER_TURNS: True',
    )

    rare = _rare_classes(train)
    if rare:
        put(
            "DATALOADER.SAMPLER_TRAIN",
            "RepeatFactorTrainingSampler",
            f"rare: {', '.join(rare)}; their images come more often",
        )
        put("DATALOADER.REPEAT_THRESHOLD", 0.2, "classes in a smaller share of the images are rare")
    parts = np.prod(train.sizes * factor, axis=1).mean() / np.prod(crop)  # crops in an image
    views = len(train.sizes) * np.sqrt(max(1.0, parts))
    steps = int(np.clip(round(10 * views / BATCH, -2), 300, 3000))
    batch = BATCH
    put("SOLVER.IMS_PER_BATCH", batch, "")
    put("SOLVER.BASE_LR", 0.002, "for 8 crops a step; in proportion for others")
    put(
        "SOLVER.MAX_ITER",
        steps,
        f"about {steps * batch / len(train.sizes):.0f} crops of each of {len(train.sizes)} images",
    )
    put("SOLVER.CHECKPOINT_PERIOD", max(100, steps // 4), "")
    on_grid = np.percentile(things["area"], (33, 67)) * (factor / STRIDE) ** 2
    rule = 2 * num_classes * on_grid / PQ_WEIGHT
    low, high = round_to_125(5 * rule[0]), round_to_125(20 * rule[1])
    put(
        "LAMBDA_RANGE",
        [low, max(high, 5 * low)],
        f"5 to 20 times 2 K A / w: K = {num_classes} classes, w = {PQ_WEIGHT:g}, A = "
        f"{on_grid[0]:.0f} to {on_grid[1]:.0f} cells, the middle third of the things",
    )
    if train.sizes.min(1).max() > COMMON_RATIO * train.sizes.min(1).min():
        low, high = train.sizes.min(1).min(), train.sizes.min(1).max()
        logger.warning(
            "The shorter sides of the images run from %d to %d pixels, and all become %d: where "
            "objects have one size in pixels whatever the image's, as in microscopy, cut the "
            "images into tiles (tools/import_dataset.py --tile).",
            low,
            high,
            test_size,
        )
    return settings


def _ceilings(name):
    return {f: _ceiling(name, f) for f in FACTORS}


def _ceiling(name, factor):
    # Of the nearest cell: refined, a model comes near it but not beyond.
    results = grid_ceiling(name, factor=factor, upsampling="nearest", num_images=40)
    return results["panoptic_seg"]["PQ"]


def _factor(ceilings, side):
    """The smallest factor that the next one does not beat by ``ENOUGH``."""
    best = FACTORS[0]
    for factor in FACTORS[1:]:
        if side * factor > LARGEST or ceilings[factor] < ceilings[best] + ENOUGH:
            break
        best = factor
    return best


def _area_limit(survey, segments, what):
    """Below what area predictions of things or stuff are specks, and why."""
    if not len(segments):
        return 1, f"there is no {what}"
    least = min(
        np.percentile(segments["area"][segments["category"] == k], 1)
        for k in np.unique(segments["category"])
    )
    most = np.prod(survey.sizes, axis=1).min() / 256
    if least / 2 > most:
        return max(1, int(most)), f"a 256th of the image, smaller than all {what}"
    return max(1, int(least / 2)), (
        f"half the 1st percentile of the class of the smallest {what} ({least:.0f} pixels): "
        "smaller predictions are specks"
    )


def _rare_classes(survey):
    count = len(survey.sizes)
    share = {
        k: len(np.unique(survey.segments["image"][survey.segments["category"] == k])) / count
        for k in np.unique(survey.segments["category"])
    }
    return [f"{survey.classes[k]} ({100 * s:.0f} %)" for k, s in share.items() if s < 0.1]


def _has_fast_bfloat16():
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()


def _put_input(put, survey):
    """How images are read: channels, and the range of their values."""
    kinds, channels = {kind for kind, _ in survey.kinds}, {c for _, c in survey.kinds}
    scaling = {}
    if kinds - {"uint8", "bool"}:
        least, low, high, most = survey.values.T
        span = high - low
        is_unit = kinds == {"float32"} or kinds == {"float64"}
        whole = 1 if is_unit and most.max() <= 1 and least.min() >= 0 else 65535
        if (kinds <= {"uint16"} or whole == 1) and np.median(high) > whole / 2:
            return _put_channels(put, survey, channels, scaling)
        if np.median(span) > 0 and span.max() < 2 * np.median(span) and len(kinds) == 1:
            values = [float(f"{low.min():.4g}"), float(f"{high.max():.4g}")]
            scaling = {"scaling": "values", "scaling_range": tuple(values)}
            put("INPUT.SCALING", "values", f"pixels are {', '.join(sorted(kinds))}")
            put("INPUT.SCALING_RANGE", values, "1st and 99.8th percentiles of all images, extremes")
        else:
            scaling = {"scaling": "percentile"}
            put(
                "INPUT.SCALING",
                "percentile",
                f"pixels are {', '.join(sorted(kinds))}, and images differ in brightness",
            )
    _put_channels(put, survey, channels, scaling)


def _put_channels(put, survey, channels, scaling):
    if channels <= {1, 3, 4}:
        return
    count = max(channels)
    reader = ImageReader("ALL", channels=count, **scaling)
    samples = DatasetCatalog.get(survey.name)[:50]
    pixels = np.concatenate([reader(s["file_name"])[::4, ::4].reshape(-1, count) for s in samples])
    put("INPUT.FORMAT", "ALL", f"images have {count} channels, and the network takes all of them")
    put("MODEL.PIXEL_MEAN", [round(float(v), 1) for v in pixels.mean(0)], "of the training images")
    put("MODEL.PIXEL_STD", [max(1.0, round(float(v), 1)) for v in pixels.std(0)], "")


# ---------------------------------------------------------------------------- writing
def as_yaml(settings, head):
    """Nested YAML of dotted keys, each with its reason as a comment."""
    lines, open_parts = head.splitlines(), []
    for key, (value, reason) in settings.items():
        *parts, last = key.split(".")
        common = 0
        while common < min(len(parts), len(open_parts)) and parts[common] == open_parts[common]:
            common += 1
        for depth in range(common, len(parts)):
            lines.append("  " * depth + parts[depth] + ":")
        open_parts = parts
        indent = "  " * len(parts)
        if reason:
            lines += _wrapped(reason, indent)
        lines.append(f"{indent}{last}: {_value(value)}")
    return "\n".join(lines) + "\n"


def _wrapped(text, indent):
    words, lines = text.split(), []
    line = f"{indent}#"
    for word in words:
        if len(line) + len(word) + 1 > 100:
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return [*lines, line]


def _value(value):
    if isinstance(value, tuple):
        inner = ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return f'"{value}"' if isinstance(value, str) else str(value)


def in_groups(settings):
    """Settings with the keys of one section together, in the order of their first ones."""
    sections = list(dict.fromkeys(key.rsplit(".", 1)[0] for key in settings))
    tops = list(dict.fromkeys(section.split(".")[0] for section in sections))

    def place(key):
        return tops.index(key.split(".")[0]), sections.index(key.rsplit(".", 1)[0])

    return {key: settings[key] for key in sorted(settings, key=place)}


def seconds_per_step(config):
    """Measure a training step of stage 1 on this machine."""
    cfg = load_config(config, ["MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0])
    cfg.SOLVER.IMS_PER_BATCH = 2
    model = Trainer.build_model(cfg)
    trainer = SimpleTrainer(
        model, Trainer.build_train_loader(cfg), Trainer.build_optimizer(cfg, model)
    )
    model.train()
    times = []
    with EventStorage():
        for _ in range(3):
            start = time.perf_counter()
            trainer.run_step()
            times.append(time.perf_counter() - start)
    return min(times) * BATCH / 2


def write_configs(names, folder=None):
    """Write both configs of a dataset.

    Args:
        names (list[str]): its splits, train first; one alone is also evaluated on.
        folder (Path, optional): default ``configs/NAME`` of the repository.

    Returns:
        Path: the config of stage 1.

    Raises:
        ValueError: the dataset is wrong.
    """
    check_panoptic_metadata(*names)
    surveys = [survey_dataset(name) for name in names]
    for survey in surveys:
        if survey.problems:
            raise ValueError(describe_problems(survey))
    settings = suggest(surveys[0], surveys[-1])
    lambda_range, lambda_reason = settings.pop("LAMBDA_RANGE")
    dataset = names[0].rpartition("_panoptic_")[0] or names[0]
    folder = Path(folder) if folder else REPOSITORY / "configs" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    first, second = folder / "amwc_R18.yaml", folder / "amwc_R18_e2e.yaml"
    output = f"output/{dataset}/amwc_R18"
    settings["OUTPUT_DIR"] = output, ""
    head = (
        f"# Stage 1 on {dataset}, suggested by tools/suggest_config.py from its images.\n"
        f"_BASE_: {os.path.relpath(BASE, folder.resolve())}"
    )
    first.write_text(as_yaml(in_groups(settings), head))
    seconds = seconds_per_step(first)
    steps, reason = settings["SOLVER.MAX_ITER"]
    minutes = steps * seconds / 60
    reason += f"; {minutes:.0f} minutes at the {seconds:.1f} seconds per step measured here"
    settings["SOLVER.MAX_ITER"] = steps, reason
    first.write_text(as_yaml(in_groups(settings), head))
    stage_2 = {
        "MODEL.WEIGHTS": (f"{output}/model_final.pth", ""),
        "MODEL.AMWC.STAGE": ("end_to_end", ""),
        "MODEL.AMWC.TRAINED_LAYERS": ("heads", "gains more than the paper's classifiers"),
        "MODEL.AMWC.GRADIENT.LAMBDA_RANGE": (lambda_range, lambda_reason),
        "MODEL.AMWC.GRADIENT.NUM_SAMPLES": (3, ""),
        "MODEL.AMWC.LOSS.PQ_WEIGHT": (PQ_WEIGHT, ""),
        "SOLVER.IMS_PER_BATCH": (12, ""),
        "SOLVER.BASE_LR": (0.0004, "two and a half times as much has destroyed a model"),
        "SOLVER.MAX_ITER": (200, ""),
        "SOLVER.CHECKPOINT_PERIOD": (200, ""),
        "OUTPUT_DIR": (f"{output}_e2e", ""),
    }
    head = f"# Stage 2 on {dataset}, from MODEL.WEIGHTS of stage 1.\n_BASE_: {first.name}"
    second.write_text(as_yaml(stage_2, head))
    logger.info(
        "Wrote %s and %s. Stage 1 takes about %.0f minutes here, stage 2 about %.0f.",
        first,
        second,
        minutes,
        200 * 12 / BATCH * seconds / 60,
    )
    return first


def main(args):
    """Write the configs and return the path of stage 1's."""
    setup_logger(name="amwc_d2")
    torch.manual_seed(0)
    names = find_datasets(args.name)
    try:
        return write_configs(names, args.output)
    except ValueError as error:
        raise SystemExit(f"suggest_config: {error}") from error


if __name__ == "__main__":
    main(get_parser().parse_args())
