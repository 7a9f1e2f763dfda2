#!/usr/bin/env python3
"""Release a trained model: tensors only, its config, classes and log, and its evaluation.

The evaluation is that of the released file, made here and now, so that the numbers are its own.
Also updates the zoo's index.json and the table in MODEL_ZOO.md. Without a run, a release is
evaluated again, after the solver or the evaluator has changed. Examples:

    python tools/maintainer/release_checkpoint.py toy_amwc_r18 output/toy/amwc_R18 --half
    python tools/maintainer/release_checkpoint.py toy_amwc_r18
"""

import argparse
import json
import logging
import shutil
import tempfile
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from amwc_d2 import Trainer, model_zoo
from amwc_d2.data.model_card import trained_scale
from amwc_d2.data.panoptic_format import read_panoptic_json

logger = logging.getLogger("amwc_d2.release_checkpoint")
REPOSITORY = Path(__file__).resolve().parents[2]
TABLE_START, TABLE_END = "<!-- START TABLE -->", "<!-- END TABLE -->"
COLUMNS = ("Name", "Status", "Dataset", "PQ", "PQ things", "PQ stuff", "SQ", "RQ", "AP", "mIoU",
           "Solver ms", "MB", "Files")  # fmt: skip


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", help="name of the release, such as toy_amwc_r18")
    parser.add_argument(
        "run", type=Path, nargs="?", help="OUTPUT_DIR of the training; none: evaluate NAME again"
    )
    parser.add_argument("--checkpoint", help="which file of the run (model_final.pth)")
    parser.add_argument("--half", action="store_true", help="store matrices in half precision")
    parser.add_argument("--zoo", type=Path, default=model_zoo.REPOSITORY_ZOO, help="folder")
    parser.add_argument("--page", type=Path, default=REPOSITORY / "MODEL_ZOO.md")
    args = parser.parse_args(arguments)
    if args.run is None and (args.half or args.checkpoint):
        parser.error(
            "--half and --checkpoint say how a run is released; without a run, the release "
            f"{args.name} is evaluated as it is. Add the run's OUTPUT_DIR, or leave them out."
        )
    args.checkpoint = args.checkpoint or "model_final.pth"
    if args.run is not None:
        for file in (args.checkpoint, "config.yaml", "metrics.json"):
            if not (args.run / file).is_file():
                parser.error(f"{args.run} holds no {file}: expected the OUTPUT_DIR of a training")
    return args


def write_checkpoint(source, folder, half):
    """Write the model's tensors of a training checkpoint to ``folder/model_<hash>.pth``.

    Args:
        source (Path): a checkpoint of Detectron2's trainer.
        folder (Path): an existing folder.
        half (bool): store what has two dimensions or more as float16; vectors (norms and their
            statistics, biases) keep their precision.

    Returns:
        Path: the file, whose name has the first 8 digits of its SHA-256.
    """
    state = torch.load(source, map_location="cpu", weights_only=True)["model"]
    model = {
        name: value.half() if half and value.dtype == torch.float32 and value.dim() > 1 else value
        for name, value in state.items()
    }
    path = folder / "model.pth"
    torch.save({"model": model}, path)
    return path.rename(folder / f"model_{model_zoo.file_hash(path)[:8]}.pth")


def write_config(run, folder, name):
    """Write the run's config without what belongs to the machine or to its last evaluation."""
    cfg = CfgNode.load_cfg((run / "config.yaml").read_text())
    cfg.MODEL.WEIGHTS = cfg.TEST.ORACLE = ""
    cfg.TEST.LOWER_BOUND = False
    cfg.OUTPUT_DIR = f"output/{name}"
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg


def release(name, run, checkpoint, half, zoo):
    """Write a release and evaluate it; see the module.

    Returns:
        Path: its folder.
    """
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=zoo) as made:  # what fails here leaves the zoo as it was
        folder = Path(made) / name
        folder.mkdir()
        cfg = write_config(run, folder, name)
        path = write_checkpoint(run / checkpoint, folder, half)
        truth = read_panoptic_json(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).panoptic_json)
        (folder / "classes.json").write_text(json.dumps(truth["categories"]) + "\n")
        card = {
            "categories": truth["categories"],
            "config": cfg.dump(),
            "scale": trained_scale(cfg),
        }
        (folder / "card.json").write_text(json.dumps(card) + "\n")
        shutil.copyfile(run / "metrics.json", folder / "log.jsonl")
        if (zoo / name).exists():
            shutil.rmtree(zoo / name)
        path = folder.rename(zoo / name) / path.name

    index_path = zoo / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    index[name] = {"checkpoint": path.name, "sha256": model_zoo.file_hash(path)}
    index_path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    return evaluate(name, zoo)


def evaluate(name, zoo):
    """Write a release's ``metrics.json``: its file evaluated on the first of ``DATASETS.TEST``.

    Returns:
        Path: its folder.
    """
    cfg = model_zoo.get_config(name, root=zoo)
    with tempfile.TemporaryDirectory() as output:
        cfg.OUTPUT_DIR = output
        cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
        Trainer.test(cfg, model_zoo.get(name, root=zoo))
        shutil.copyfile(Path(output) / "inference/results.json", zoo / name / "metrics.json")
    return zoo / name


def zoo_table(zoo):
    """The table of all releases, as Markdown, from their ``metrics.json``."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for name in model_zoo.names(zoo):
        metrics = model_zoo.get_metrics(name, zoo)
        panoptic, amwc = metrics["results"]["panoptic_seg"], metrics["results"]["amwc"]
        values = [panoptic[key] for key in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ")]
        values += [metrics["results"]["segm"]["AP"], amwc["mIoU"], 1000 * amwc["solver_seconds"]]
        path = Path(model_zoo.get_checkpoint_path(name, zoo))
        values.append(path.stat().st_size / 2**20)
        numbers = ["" if value is None else f"{value:.1f}" for value in values]
        folder = f"checkpoints/{name}"
        files = {"model": path.name, "config": "config.yaml", "metrics": "metrics.json",
                 "log": "log.jsonl"}  # fmt: skip
        links = " ".join(f"[{text}]({folder}/{file})" for text, file in files.items())
        dataset = f"{metrics['dataset']} ({metrics['images']})"
        lines.append([f"`{name}`", "trained", dataset, *numbers, links])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def update_page(page, zoo):
    """Replace the table between the page's two markers."""
    head, _, rest = page.read_text().partition(TABLE_START)
    _, end, tail = rest.partition(TABLE_END)
    if not end:
        raise ValueError(f"{page} has no '{TABLE_START}' followed by '{TABLE_END}'; add both.")
    page.write_text(f"{head}{TABLE_START}\n{zoo_table(zoo)}\n{TABLE_END}{tail}")


def main():
    args = parse_args()
    setup_logger(name="detectron2")
    setup_logger(name="amwc_d2")
    if args.run is None:
        folder = evaluate(args.name, args.zoo)
    else:
        folder = release(args.name, args.run, args.checkpoint, args.half, args.zoo)
    update_page(args.page, args.zoo)
    logger.info("Released %s: %s", args.name, ", ".join(sorted(p.name for p in folder.iterdir())))


if __name__ == "__main__":
    main()
