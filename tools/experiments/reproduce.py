#!/usr/bin/env python3
"""Does training through the solver pay? The comparison, with its controls, by one command.

    tools/experiments/reproduce.py toy --jobs 2   # or dsb2018: hours on two CPU cores, resumable
    tools/experiments/reproduce.py toy --quick    # the same in three minutes, to see that it runs
    tools/experiments/reproduce.py toy --search   # settings to choose from, on held-back images

The training set is split: most of it trains, the rest is held back to calibrate and to choose from
(--search). The validation images are only ever reported on. For every seed, stage 1 trains once;
its frozen features are cached; every row of the table then starts from it. A run that is finished
is not repeated, so a stopped command can be given again. With ``--base`` every seed starts from
that one checkpoint and differs in stage 2 alone. Everything goes to
``OUTPUT/results.json`` (config, commit, every run, differences with 95 % intervals);
``tools/experiments/results_report.py`` makes docs/results.md of one or several such files.
"""

import argparse
import gc
import json
import logging
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from bootstrap import difference, read_segments, seed_interval
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from experiment_rows import (
    COMPARISONS,
    CONTROLS,
    RECIPES,
    REPEATED,
    ROWS,
    SEARCH,
    SEED_OF_ROW,
    SEEDS,
    UNTRAINED,
)
from feature_cache import cache_inference, cache_training, evaluate, train

from amwc_d2 import Trainer, register_panoptic_dataset
from amwc_d2.config import load_config
from amwc_d2.engine.calibration import EVALUATIONS, calibrate
from amwc_d2.engine.command_line import commit, load_model
from amwc_d2.evaluation import AMWCPanopticEvaluator, grid_ceiling

logger = logging.getLogger("amwc_d2.reproduce")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICK = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "MODEL.INS_EMBED_HEAD.DISTANCES", [1, 4]]


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=RECIPES)
    parser.add_argument("--output", type=Path, help="default: output/reproduce/DATASET")
    parser.add_argument(
        "--seeds", type=int, help=f"of stage 1 (default {SEEDS}; with --search or --quick 1)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, a process each")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these (default: all)")
    parser.add_argument("--search", action="store_true", help="try settings on held-back images")
    parser.add_argument("--quick", action="store_true", help="two steps of everything, one seed")
    parser.add_argument("--base", metavar="FILE", help="a checkpoint of stage 1 for all seeds")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="config options of both stages, last on the line",
    )  # fmt: skip
    return parser


def check_rows(args, parser):
    """End with the parser's error where ``--rows`` names a row that does not exist."""
    known = SEARCH if args.search else ROWS
    unknown = [row for row in args.rows or () if row not in known]
    if unknown:
        parser.error(f"unknown rows {unknown}; there are {list(known)}")


def register_part(dataset: str, part: str, images, folder: Path) -> str:
    """Register some images of a COCO-panoptic dataset as a dataset of their own.

    Args:
        dataset: a registered dataset.
        part: suffix of the new name.
        images: positions in the dataset's JSON.
        folder: gets the part's JSON.

    Returns:
        the new name, ``dataset`` and ``part`` joined by "_".
    """
    DatasetCatalog.get(dataset)  # draws the toy set if need be
    meta = MetadataCatalog.get(dataset)
    content = json.loads(Path(meta.panoptic_json).read_text())
    annotations = [content["annotations"][i] for i in sorted(images)]
    ids = {a["image_id"] for a in annotations}
    content["images"] = [image for image in content.get("images", []) if image["id"] in ids]
    name = f"{dataset}_{part}"
    path = folder / f"{name}.json"
    whole = folder / f"{name}.{os.getpid()}.json"  # other processes may be reading the part
    whole.write_text(json.dumps({**content, "annotations": annotations}))
    whole.replace(path)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_panoptic_dataset(name, meta.image_root, meta.panoptic_root, path)
    return name


def load_weights(cfg, weights: str):
    """The model of ``cfg`` with the weights of a checkpoint."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    return load_model(cfg)


class Start:
    """A checkpoint of stage 1, and what all rows that start from it share, made when first used."""

    def __init__(self, experiment, weights: str, seed: int):
        self.weights, self.seed = weights, seed
        self.cfg = experiment.config(end_to_end=True, seed=seed)
        self.parts = {part: getattr(experiment, part) for part in ("fit", "held", "test")}
        self.quick = experiment.args.quick
        self.copies = 1 if self.quick else experiment.recipe["copies"]

    def model(self):
        return load_weights(self.cfg, self.weights)

    @cached_property
    def fitting(self):
        """Features to train on."""
        samples = DatasetCatalog.get(self.parts["fit"])
        return cache_training(self.cfg, self.model(), samples, self.copies, self.seed)

    @cached_property
    def watched(self):
        """Held-back features on which the loss is followed."""
        samples = DatasetCatalog.get(self.parts["held"])[:96]
        return cache_training(self.cfg, self.model(), samples, 1, self.seed)

    @cached_property
    def testing(self):
        """Features of the images that are reported on."""
        return cache_inference(self.cfg, self.model(), DatasetCatalog.get(self.parts["test"]))

    @cached_property
    def calibration(self):
        """State of the fitted costs, and what the fit says of itself."""
        model = self.model()
        held = DatasetCatalog.get(self.parts["held"])
        fitted = calibrate(self.cfg, model, held, 20 if self.quick else EVALUATIONS)
        return model.costs.state_dict(), fitted


class Experiment:
    """One dataset's runs under one folder."""

    def __init__(self, args):
        self.args = args
        self.commit = commit()  # files may change while this runs
        self.recipe = RECIPES[args.dataset]
        self.folder = args.output or Path("output/reproduce") / args.dataset
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = self.config(end_to_end=False, seed=0)
        train, val = plain.DATASETS.TRAIN[0], plain.DATASETS.TEST[0]
        order = np.random.default_rng(0).permutation(len(DatasetCatalog.get(train)))
        held = 2 if args.quick else self.recipe["held"]
        fitting = order[held:][:4] if args.quick else order[held:]
        self.fit = register_part(train, "fit", fitting, self.folder)
        self.held = register_part(train, "held", order[:held], self.folder)
        if args.quick:
            val = register_part(val, "quick", range(2), self.folder)
        self.test = self.held if args.search else val
        self.start = None

    def config(self, *, end_to_end: bool, seed: int, options=()) -> CfgNode:
        """The recipe's config of one stage; ``options`` as in ``experiment_rows``."""
        name = self.recipe["config"] + ("_e2e" if end_to_end else "") + ".yaml"
        # The images held back for calibration are split off here, for all rows alike.
        opts = ["MODEL.AMWC.CALIBRATION_IMAGES", 0, *(QUICK if self.args.quick else [])]
        opts += [*self.args.opts, "SEED", seed]
        for key, value in zip(options[::2], options[1::2]):
            opts += [key if key.startswith(("SOLVER.", "TEST.")) else f"MODEL.AMWC.{key}", value]
        if hasattr(self, "fit"):
            opts += ["DATASETS.TRAIN", (self.fit,), "DATASETS.TEST", (self.test,)]
        return load_config(CONFIGS / name, opts)

    def stage_1(self, seed: int) -> str:
        """Train stage 1 on the fitting part, or find it done; return its checkpoint."""
        if self.args.base:
            return self.args.base
        folder = self.folder / f"stage_1_seed_{seed}"
        final = folder / "model_final.pth"
        if not final.exists():
            cfg = self.config(end_to_end=False, seed=seed).clone()
            cfg.defrost()
            cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(folder), ()
            cfg.freeze()
            folder.mkdir(exist_ok=True)
            seed_all_rng(seed)
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
        return str(final)

    def run_seed(self, seed: int):
        """Every row from one checkpoint of stage 1; all but the controls and ``REPEATED`` once."""
        rows = SEARCH if self.args.search else ROWS
        todo = [
            row
            for row in rows
            if row in (self.args.rows or rows)
            and (seed == 0 or self.args.search or row in CONTROLS or row in REPEATED)
            and not self.done(seed, row)
        ]
        if not todo:
            return
        weights = self.stage_1(seed)
        if self.start is None or self.start.weights != weights:
            self.start = Start(self, weights, seed)
        for row in todo:
            logger.info("seed %d: %s", seed, row)
            options = rows[row]
            cfg = self.config(end_to_end=True, seed=seed + SEED_OF_ROW.get(row, 0), options=options)
            model, figures = load_weights(cfg, weights), {}
            if row.startswith("calibrated"):
                costs, figures["calibration"] = self.start.calibration
                model.costs.load_state_dict(costs)
            if row not in UNTRAINED:
                figures |= train(cfg, model, self.start.fitting, self.start.watched)
            self.report(seed, row, cfg, model, self.start.testing, figures, options)
            del model
            gc.collect()

    def place(self, seed: int, row: str) -> Path:
        part = "search" if self.args.search else "rows"
        return self.folder / part / f"seed_{seed}" / row.replace(" ", "_").replace(",", "")

    def done(self, seed: int, row: str) -> bool:
        return (self.place(seed, row) / "run.json").exists()

    def report(self, seed, row, cfg, model, testing, figures, options):
        """Evaluate one run on the test images and write it down."""
        folder = self.place(seed, row)
        results = evaluate(
            model, testing, AMWCPanopticEvaluator(self.test, folder), cfg.TEST.ORACLE
        )
        run = {
            "row": row,
            "seed": seed,
            "options": list(options),
            "commit": self.commit,
            "dataset": self.test,
            "metrics": {f"{task}/{k}": None if np.isnan(v) else v
                        for task, values in results.items()
                        for k, v in values.items() if "-" not in k},
            "figures": figures,
        }  # fmt: skip
        shutil.rmtree(folder / "panoptic", ignore_errors=True)
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n")

    def summarize(self) -> dict:
        """All runs, their differences, and what the grid allows; also in results.json."""
        runs = [
            json.loads(path.read_text())
            for path in sorted(self.place(0, "").parent.glob("seed_*/*/run.json"))
        ]
        meta = MetadataCatalog.get(self.test)
        content = json.loads(Path(meta.panoptic_json).read_text())
        images = [a["image_id"] for a in content["annotations"]]
        categories = [c["id"] for c in content["categories"]]
        things = [i for i, c in enumerate(content["categories"]) if c["isthing"]]
        stuff = [i for i, c in enumerate(content["categories"]) if not c["isthing"]]
        counts = {
            (r["row"], r["seed"]): read_segments(
                self.place(r["seed"], r["row"]) / "segments.csv", images, categories
            )
            for r in runs
        }
        metrics = {(r["row"], r["seed"]): r["metrics"] for r in runs}
        comparisons = COMPARISONS
        if self.args.search:
            comparisons = [(row, "baseline") for row in SEARCH if row != "baseline"]
        resamples = 50 if self.args.quick else 2000
        differences = []
        for ours, base in comparisons:
            pairs = [
                ((row, seed), (base, seed))
                for row, seed in counts
                if (row == ours or (ours == "end to end" and row == f"{ours}, second seed"))
                and (base, seed) in counts
            ]
            if not pairs:
                continue
            a, b = (np.stack([counts[key] for key in side]) for side in zip(*pairs))
            entry = {"ours": ours, "base": base, "runs": len(pairs)}
            for name, chosen in (("PQ", slice(None)), ("PQ_th", things), ("PQ_st", stuff)):
                entry[name] = difference(a, b, chosen, resamples)
            for name, key in (("AP", "segm/AP"), ("mIoU", "amwc/mIoU")):
                if any(metrics[run][key] is None for pair in pairs for run in pair):
                    continue
                each = [metrics[p][key] - metrics[q][key] for p, q in pairs]
                entry[name] = {"mean": float(np.mean(each)), "each": each, "images": None,
                               "seeds": seed_interval(each)}  # fmt: skip
            differences.append(entry)
        cfg = self.config(end_to_end=True, seed=0)
        ceiling = grid_ceiling(
            self.test,
            cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            upsampling=cfg.MODEL.AMWC.UPSAMPLING,
        )
        results = {
            "dataset": self.args.dataset,
            "test": self.test,
            "test_images": len(images),
            "search": self.args.search,
            "quick": self.args.quick,
            "commit": self.commit,
            "config": cfg.dump(),
            "ceiling": {k: ceiling["panoptic_seg"][k] for k in ("PQ", "PQ_th", "PQ_st")},
            "runs": runs,
            "differences": differences,
        }
        name = "search.json" if self.args.search else "results.json"
        (self.folder / name).write_text(json.dumps(results, indent=1) + "\n")
        logger.info("wrote %s", self.folder / name)
        return results


def prepare(args):
    """Once in every process that runs rows."""
    setup_logger(name="amwc_d2")
    torch.backends.cudnn.deterministic = True
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))


def run_seed(args, seed: int):
    """All rows of one seed, in a process of its own."""
    Experiment(args).run_seed(seed)


def main(args):
    prepare(args)
    experiment = Experiment(args)  # draws the toy set, which all processes share
    seeds = range(args.seeds or (1 if args.quick or args.search else SEEDS))
    if args.jobs > 1:
        spawn = get_context("spawn")
        with ProcessPoolExecutor(args.jobs, spawn, initializer=prepare, initargs=(args,)) as pool:
            list(pool.map(partial(run_seed, args), seeds))
    else:
        for seed in seeds:
            experiment.run_seed(seed)
    return experiment.summarize()


if __name__ == "__main__":
    parser = get_parser()
    args = parser.parse_args()
    check_rows(args, parser)
    main(args)
