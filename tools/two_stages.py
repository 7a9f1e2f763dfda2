#!/usr/bin/env python3
"""Train both stages of a recipe, evaluate each, print one table and draw panels.

Runs the ordinary commands, one after another, and shows them:

    tools/two_stages.py configs/Toy-PanopticSegmentation/amwc_R18.yaml

trains that config (stage 1), then the one called ..._e2e.yaml beside it (stage 2) from its weights.
Interrupted or killed, the same command goes on where it was; a stage that is finished is only
evaluated. The table sets both models beside
the grid ceiling: the ground truth brought to the solver's grid and back. With --oracle, also beside
the last model with the truth in place of some of its costs (TEST.ORACLE). All of it is on the
first dataset of DATASETS.TEST.
"""

import argparse
import json
import logging
import shlex
import subprocess
import sys
import time
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from amwc_d2.config import load_config
from amwc_d2.data.datasets import check_panoptic_metadata
from amwc_d2.evaluation import grid_ceiling
from amwc_d2.evaluation.oracle import ORACLES

logger = logging.getLogger("amwc_d2.two_stages")
TOOLS = Path(__file__).resolve().parent
COLUMNS = ("PQ", "PQ_th", "PQ_st", "SQ", "RQ")


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="the config of stage 1")
    parser.add_argument("--output", type=Path, help="default: the parent of stage 1's OUTPUT_DIR")
    parser.add_argument("--panels", type=int, default=8, help="validation images to draw")
    parser.add_argument("--stage-1-only", action="store_true")
    parser.add_argument(
        "--oracle", action="append", choices=ORACLES[1:], default=[], help="may be repeated"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options of both stages")
    return parser


def run(script, *arguments):
    """Run one of the tools, show its command line, and stop where it fails."""
    command = ["python", str(TOOLS / script), *map(str, arguments)]
    logger.info("$ %s", shlex.join(["python", f"tools/{script}", *command[2:]]))
    result = subprocess.run([sys.executable, *command[1:]])
    if result.returncode:
        raise SystemExit(f"tools/{script} failed (exit status {result.returncode}): see above.")


def train(config, folder, opts):
    """Train a stage or go on with it; return checkpoint, results, and minutes if undisturbed."""
    anew = not any(folder.glob("model_*.pth"))
    start = time.perf_counter()
    run("train_net.py", "--config-file", config, "--resume", *opts, "OUTPUT_DIR", folder)
    minutes = (time.perf_counter() - start) / 60
    results = json.loads((folder / "inference" / "results.json").read_text())["results"]
    return folder / "model_final.pth", results, minutes if anew else None


def evaluate_oracle(config, checkpoint, oracle, opts):
    """The results of a model that is told some of its costs, in a folder beside its own."""
    folder = checkpoint.parent
    run("train_net.py", "--config-file", config, "--eval-only", *opts, "MODEL.WEIGHTS", checkpoint,
        "OUTPUT_DIR", folder, "TEST.ORACLE", oracle)  # fmt: skip
    return json.loads((folder / f"inference_{oracle}_oracle/results.json").read_text())["results"]


def evaluate_uncalibrated(config, checkpoint, opts):
    """The results of stage 1 without the scales and offsets that it was calibrated to."""
    folder = checkpoint.parent / "uncalibrated"
    run("train_net.py", "--config-file", config, "--eval-only", *opts, "MODEL.WEIGHTS", checkpoint,
        "OUTPUT_DIR", folder, "MODEL.AMWC.CALIBRATED", False)  # fmt: skip
    return json.loads((folder / "inference/results.json").read_text())["results"]


def table_row(name, results, minutes=None):
    panoptic, amwc = results["panoptic_seg"], results.get("amwc", {})
    return [
        name,
        *(panoptic[column] for column in COLUMNS),
        amwc.get("mIoU"),
        amwc.get("solver_seconds"),
        minutes,
    ]


def main(args):
    setup_logger(name="amwc_d2")
    cfg = load_config(args.config, args.opts)
    output = args.output or Path(cfg.OUTPUT_DIR).parent
    end_to_end = args.config.with_name(f"{args.config.stem}_e2e.yaml")
    if not (args.stage_1_only or end_to_end.is_file()):
        raise SystemExit(
            f"{end_to_end} does not exist: expected the config of stage 2 there. Write it, with "
            f"_BASE_: {args.config.name} and MODEL.AMWC.STAGE end_to_end (see the recipes), or "
            "train stage 1 alone with --stage-1-only."
        )
    check_panoptic_metadata(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    val, *others = cfg.DATASETS.TEST
    if others:  # the table is that of one dataset
        args.opts += ["DATASETS.TEST", f"('{val}',)"]
    ceiling = grid_ceiling(
        val,
        cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        thing_area=cfg.MODEL.AMWC.THING_AREA,
        stuff_area=cfg.MODEL.AMWC.STUFF_AREA,
        upsampling=cfg.MODEL.AMWC.UPSAMPLING,
    )
    logger.info("No model can be above the grid ceiling: PQ %.2f", ceiling["panoptic_seg"]["PQ"])

    first, results, minutes = train(args.config, output / args.config.stem, args.opts)
    name = f"stage 1 ({args.config.stem})"
    rows = [table_row(name, results, minutes)]
    if cfg.MODEL.AMWC.CALIBRATED and cfg.MODEL.AMWC.CALIBRATION_IMAGES:
        plain = evaluate_uncalibrated(args.config, first, args.opts)
        rows = [table_row(name, plain, minutes), table_row("stage 1, calibrated", results)]
    last, last_config = first, args.config
    if not args.stage_1_only:
        last, results, minutes = train(
            end_to_end, output / end_to_end.stem, [*args.opts, "MODEL.WEIGHTS", first]
        )
        rows.append(table_row(f"stage 2 ({end_to_end.stem})", results, minutes))
        last_config = end_to_end

    for oracle in args.oracle:
        results = evaluate_oracle(last_config, last, oracle, args.opts)
        rows.append(table_row(f"{last_config.stem}, oracle: {oracle}", results))

    rows.append(table_row("grid ceiling", ceiling))
    panels = output / "panels"
    if args.panels:
        run("demo.py", "--config-file", last_config, "--dataset", val, "--num", args.panels,
            "--output", panels, "--opts", *args.opts, "MODEL.WEIGHTS", last)  # fmt: skip

    headers = [val, *COLUMNS, "mIoU", "solver s/image", "minutes"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=(None, *[".2f"] * 6, ".4f", ".1f"))
    (output / "table.md").write_text(table + "\n")
    logger.info("The results are in %s, the panels in %s\n%s", output / "table.md", panels, table)


if __name__ == "__main__":
    main(get_parser().parse_intermixed_args())
