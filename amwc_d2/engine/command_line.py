"""What the tools share: the arguments that name a model, loading it, and the commit of the code."""

import argparse
import logging
import subprocess
from pathlib import Path

from detectron2.modeling import build_model

from amwc_d2.config import use_available_device
from amwc_d2.data.model_card import check_classes
from amwc_d2.engine.checkpoint import AMWCCheckpointer

logger = logging.getLogger(__name__)


def model_parser(description, config_file=None):
    """Make a parser with ``--config-file`` and ``--opts``, which say what model to load.

    Args:
        description (str): the tool's docstring, shown as it stands.
        config_file (str or None): the default; None makes the argument a required one.

    Returns:
        ArgumentParser
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", metavar="FILE", default=config_file, required=config_file is None,
        help="the model's config" + (f" (default: {config_file})" if config_file else ""),
    )  # fmt: skip
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="config options, last on the line; MODEL.WEIGHTS is the checkpoint",
    )  # fmt: skip
    return parser


def load_model(cfg):
    """The model of a config with MODEL.WEIGHTS (random ones if empty), on the CPU without a GPU.

    Raises:
        FileNotFoundError, ValueError: see :meth:`AMWCCheckpointer.load_whole`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    use_available_device(cfg)
    model = build_model(cfg)
    check_classes(cfg, model.card)
    if cfg.MODEL.WEIGHTS:
        AMWCCheckpointer(model).load_whole(cfg.MODEL.WEIGHTS)
    else:
        logger.warning("MODEL.WEIGHTS is empty: the weights are random.")
    return model


def commit() -> str:
    """The repository's commit, with "+changes" where files differ from it; "" outside git."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
