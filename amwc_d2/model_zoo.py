"""Released checkpoints by name: from the repository, another folder, or a URL.

A zoo is a folder with ``index.json``, ``{name: {"checkpoint": file, "sha256": hash}}``, and a
folder for each name: the checkpoint (tensors only), ``config.yaml``, ``classes.json`` (the
categories of its training set), ``card.json`` (both, and the scale: what ``Predictor`` needs),
``metrics.json`` (the evaluation of exactly this file) and
``log.jsonl`` (the training). ``tools/maintainer/release_checkpoint.py`` writes them. All functions
take ``root``, the zoo's folder or URL; by default ``$AMWC_D2_MODEL_ZOO``, or else the repository's
``checkpoints``.
"""

import hashlib
import json
import os
import urllib.request
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from amwc_d2.config import add_amwc_config, use_available_device
from amwc_d2.data.panoptic_format import class_metadata

__all__ = ["get", "get_checkpoint_path", "get_config", "get_metrics", "names"]

REPOSITORY_ZOO = Path(__file__).resolve().parent.parent / "checkpoints"


def names(root=None):
    """List the names of all released checkpoints."""
    return sorted(_index(root))


def get_checkpoint_path(name, root=None):
    """Fetch a checkpoint and check its hash.

    Args:
        name (str): one of :func:`names`.
        root (str or None): see the module.

    Returns:
        str: a local path; what came from a URL is cached where Detectron2 caches downloads.

    Raises:
        KeyError: no such name.
        ValueError: the file is not the one that was released.
    """
    entry = _entry(name, root)
    path = PathManager.get_local_path(_join(root, name, entry["checkpoint"]))
    found = file_hash(path)
    if found != entry["sha256"]:
        raise ValueError(
            f"{path} has SHA-256 {found}, but '{name}' was released with {entry['sha256']}. "
            "The file is damaged or has been replaced: delete it and fetch it again."
        )
    return path


def get_config(name, trained=True, root=None):
    """Get the config that a checkpoint was trained with.

    It works in Detectron2's ``DefaultPredictor`` and ``Trainer``: the classes of its datasets are
    made known even where the data are not, and ``MODEL.DEVICE`` is the CPU where there is no GPU.

    Args:
        name (str): one of :func:`names`.
        trained (bool): let ``MODEL.WEIGHTS`` be the checkpoint; otherwise it is empty.
        root (str or None): see the module.

    Returns:
        CfgNode

    Raises:
        KeyError: no such name.
        ValueError: see :func:`get_checkpoint_path`.
    """
    _entry(name, root)
    cfg = get_cfg()
    add_amwc_config(cfg)
    cfg.merge_from_other_cfg(CfgNode.load_cfg(_read(root, name, "config.yaml")))
    cfg.MODEL.WEIGHTS = get_checkpoint_path(name, root) if trained else ""
    use_available_device(cfg)
    classes = class_metadata(json.loads(_read(root, name, "classes.json")), f"classes of '{name}'")
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if dataset not in DatasetCatalog and dataset not in MetadataCatalog:
            MetadataCatalog.get(dataset).set(ignore_label=255, label_divisor=1000, **classes)
    return cfg


def get(name, trained=True, device=None, root=None):
    """Build a released model.

    Args:
        name (str): one of :func:`names`.
        trained (bool): with its weights; otherwise with random ones.
        device (str or None): such as "cuda"; None: the config's.
        root (str or None): see the module.

    Returns:
        AMWCPanoptic: in evaluation mode.

    Raises:
        KeyError, ValueError: see :func:`get_config`.
    """
    cfg = get_config(name, trained, root)
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    if trained:
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def get_metrics(name, root=None):
    """Get what ``metrics.json`` says: ``dataset``, ``images``, ``results`` and ``per_class``."""
    _entry(name, root)
    return json.loads(_read(root, name, "metrics.json"))


def file_hash(path):
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _root(root):
    return str(root or os.environ.get("AMWC_D2_MODEL_ZOO") or REPOSITORY_ZOO)


def _join(root, *parts):
    return "/".join([_root(root).rstrip("/"), *parts])


def _read(root, *parts):
    """Text of a file of the zoo; from a URL it is fetched anew, for it may have changed."""
    location = _join(root, *parts)
    if "://" in location:
        with urllib.request.urlopen(location) as response:
            return response.read().decode()
    return Path(location).read_text()


def _index(root):
    try:
        return json.loads(_read(root, "index.json"))
    except OSError as error:
        raise FileNotFoundError(
            f"there is no model zoo at '{_root(root)}' ({error}). Set AMWC_D2_MODEL_ZOO to a "
            "folder or URL with an index.json, or work in a clone of the repository."
        ) from error


def _entry(name, root):
    index = _index(root)
    if name not in index:
        raise KeyError(f"no released checkpoint is called '{name}'; there are {sorted(index)}.")
    return index[name]
