"""Released checkpoints by name: from the repository, another folder, or a URL.

A zoo is a folder with ``index.json``, ``{name: {"checkpoint": file, "sha256": hash}}``, and a
folder for each name: the checkpoint (tensors only), ``config.yaml``, ``classes.json`` (the
categories of its training set), ``card.json`` (both, and the scale: what ``Predictor`` needs),
``metrics.json`` (the evaluation of exactly this file) and
``log.jsonl`` (the training). ``tools/maintainer/release_checkpoint.py`` writes them. All functions
take ``root``, the zoo's folder or URL; by default ``$AMWC_D2_MODEL_ZOO``, or else the repository's
``checkpoints``. A zoo may be anybody's: names are checked before anything is read, downloads end,
and no file of it can run code (SECURITY.md).
"""

import hashlib
import json
import os
import re
import time
import urllib.request
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from fvcore.common.file_io import get_cache_dir

from amwc_d2.config import add_amwc_config, use_available_device
from amwc_d2.data.panoptic_format import class_metadata
from amwc_d2.engine.checkpoint import AMWCCheckpointer, write_atomically

__all__ = ["get", "get_checkpoint_path", "get_config", "get_config_file", "get_metrics", "names"]

PACKAGE = Path(__file__).resolve().parent
# Configs and zoo lie in an installed package, in a clone beside it.
HOME = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
REPOSITORY_ZOO = HOME / "checkpoints"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)  # of a file or folder: no path
# A server may wait SECONDS, and one more for every SLOWEST bytes that it has sent.
SECONDS, SLOWEST = 30, 10_000
LARGEST_TEXT, LARGEST_CHECKPOINT = 2**26, 2**31  # bytes


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
        ValueError: the file is not the one that was released, or its name is a path.
        TimeoutError: the server is silent, or slower than 10 kB per second.
    """
    entry = _entry(name, root)
    location, expected = _join(root, name, entry["checkpoint"]), entry["sha256"]
    if "://" not in location:
        _check_hash(name, location, file_hash(location), expected)
        return location
    # By hash: files of two zoos never take each other's place.
    path = Path(get_cache_dir()) / "amwc_d2" / expected / entry["checkpoint"]
    if not path.is_file() or file_hash(path) != expected:
        content = _download(location, LARGEST_CHECKPOINT)
        _check_hash(name, location, hashlib.sha256(content).hexdigest(), expected)
        write_atomically(path, lambda file: file.write(content))
    return str(path)


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


def get_config_file(name):
    """Find a recipe that came with the package, for ``load_config``.

    Args:
        name (str): below ``configs/``, such as "COCO-PanopticSegmentation/amwc_R50.yaml".

    Returns:
        str: a path.

    Raises:
        FileNotFoundError: no such recipe.
    """
    configs = HOME / "configs"
    if not (configs / name).is_file():
        found = sorted(str(p.relative_to(configs)) for p in configs.glob("*-*/*.yaml"))
        raise FileNotFoundError(f"no recipe is called '{name}'; there are {found}.")
    return str(configs / name)


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
        AMWCCheckpointer(model).load_whole(cfg.MODEL.WEIGHTS)
    return model.eval()


def get_metrics(name, root=None):
    """Get what ``metrics.json`` says: ``dataset``, ``images``, ``results`` and ``per_class``."""
    _entry(name, root)
    return json.loads(_read(root, name, "metrics.json"))


def _check_hash(name, location, found, expected):
    if found != expected:
        raise ValueError(
            f"{location} has SHA-256 {found}, but '{name}' was released with {expected}. The file "
            "is damaged or has been replaced: copy or fetch it again."
        )


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
        return _download(location, LARGEST_TEXT).decode()
    return Path(location).read_text()


def _download(url, largest) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"'{url}': expected a folder or an http(s) URL of a model zoo.")
    start, content = time.monotonic(), bytearray()
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        length = response.headers.get("Content-Length")
        while block := response.read1(2**16):
            content += block
            seconds = time.monotonic() - start
            if seconds > SECONDS + len(content) / SLOWEST:
                raise TimeoutError(
                    f"{url} sends less than {SLOWEST // 1000} kB per second ({len(content)} bytes "
                    f"in {seconds:.0f} s). Try again, or fetch the zoo by hand and set "
                    "AMWC_D2_MODEL_ZOO to its folder."
                )
            if len(content) > largest:
                raise ValueError(f"{url} is larger than {largest} bytes: this is no model zoo.")
    if length is not None and len(content) < int(length):
        raise OSError(
            f"the download of {url} broke off after {len(content)} of {length} bytes. Try again."
        )
    return bytes(content)


def _index(root):
    try:
        text = _read(root, "index.json")
    except OSError as error:
        raise FileNotFoundError(
            f"there is no model zoo at '{_root(root)}' ({error}). Set AMWC_D2_MODEL_ZOO to a "
            "folder or URL with an index.json, or work in a clone of the repository."
        ) from error
    try:
        index = json.loads(text)
    except ValueError as error:
        raise ValueError(f"index.json of the zoo '{_root(root)}' is not JSON: {error}.") from error
    if not isinstance(index, dict):
        raise ValueError(
            f"index.json of the zoo '{_root(root)}' is no object; expected "
            '{name: {"checkpoint": file, "sha256": hash}}.'
        )
    return index


def _entry(name, root):
    """The entry of a name; its file names are plain, so that they lead nowhere else."""
    index = _index(root)
    if name not in index:
        raise KeyError(f"no released checkpoint is called '{name}'; there are {sorted(index)}.")
    entry = index[name]
    file, sha256 = (
        entry.get(key) if isinstance(entry, dict) else None for key in ("checkpoint", "sha256")
    )
    plain = all(isinstance(x, str) and PLAIN_NAME.fullmatch(x) for x in (name, file))
    if not plain or not file.endswith(".pth"):
        raise ValueError(
            f"the zoo '{_root(root)}' names the checkpoint of {name!r} {file!r}; expected the "
            "plain name of a .pth file in the folder of that name. Do not trust this zoo."
        )
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(
            f"the zoo '{_root(root)}' gives '{name}' the sha256 {sha256!r}; expected 64 "
            "hexadecimal digits."
        )
    return entry
