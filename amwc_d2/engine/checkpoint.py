"""Checkpoints: opened without running code, written whole or not at all, verified before use.

A ``.pth`` file is a zip archive that holds a CRC-32 of each of its parts, so that a file which was
cut off, or in which a byte has changed, is found. A new file is written under another name, brought
to the disk and renamed: whatever happens, ``last_checkpoint`` names a whole one.
"""

import logging
import os
import pickle
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

logger = logging.getLogger(__name__)

# What pickled NumPy arrays are made of, by the names that NumPy 1 and 2 give it.
_ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    *((f"numpy.{core}.multiarray", name)
      for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}  # fmt: skip
_NUMBERED = re.compile(r"model_(\d+|final)\.pth")


# ---------------------------------------------------------------------------- files
class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays in plain containers, and refuses whatever else a pickle asks for."""

    def find_class(self, module, name):
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(path):
    """Read a ``.pkl`` file of NumPy arrays, such as those of Detectron2's model zoo.

    Raises:
        ValueError: it holds anything else; opening that could run code.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(
                f"'{path}' is refused: it is damaged, or holds more than NumPy arrays ({error}), "
                "and opening that could run code. Get the weights as a .pth of tensors, from "
                "somebody you trust (SECURITY.md)."
            ) from error


def read_tensors(path):
    """Read a file of ``torch.save``, tensors and plain containers only; verify its checksums.

    Raises:
        ValueError: it is damaged, or holds anything else; opening that could run code.
    """
    if os.path.getsize(path) == 0:
        raise ValueError(f"'{path}' is empty, expected a checkpoint (.pth).")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"the checksum of its part {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises weights_only=False.
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
        raise ValueError(
            f"'{path}' is refused: it is no checkpoint, or holds more than tensors"
            f"{f' ({reason.strip()})' if reason else ''}, and opening that could run code. Get the "
            "weights alone from somebody you trust (SECURITY.md)."
        ) from error
    except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"the checkpoint '{path}' is damaged: {error}. Copy it again, or take an older one."
        ) from error


def write_atomically(path, write):
    """Let ``write(file)`` fill a new file that then takes the place of ``path``, or nothing at all.

    Raises:
        OSError: it could not be written, for want of space for example; ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".tmp")
    try:
        with open(new, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        new.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"'{path}' could not be written: {error}. {free:.0f} MB are free there. What was there "
            "before is untouched: make space (or raise the limit), then go on with --resume."
        ) from error


def non_finite(tensors):
    """Names of the floating-point tensors, by name, that hold a NaN or an infinity."""
    return [
        name
        for name, value in tensors.items()
        if torch.is_tensor(value)
        and value.is_floating_point()
        and not bool(torch.isfinite(value).all())
    ]


# ---------------------------------------------------------------------------- the checkpointer
class AMWCCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, for files that may be damaged or hostile.

    Says for each part of the model what was taken from the checkpoint and what starts anew. Takes
    whatever fits by name and shape: our own checkpoints, Panoptic-DeepLab's of Detectron2's zoo
    (backbone, semantic head and the affinity head's decoder bear the same names), ImageNet
    backbones.

    Attributes:
        new: names of the model's tensors that the last checkpoint did not give.
    """

    new: frozenset = frozenset()

    # ---- loading ---------------------------------------------------------------------------
    def load(self, path, *args, **kwargs):
        """As Detectron2's ``load``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, holds more than tensors, or nothing of it fits the model.
        """
        path = str(path)
        file = path.partition("?")[0]
        if path and "://" not in path and not os.path.isfile(file):
            raise FileNotFoundError(
                f"MODEL.WEIGHTS '{path}' is {'a folder' if os.path.isdir(file) else 'not there'}. "
                "Train stage 1 first (tools/train_net.py), or give MODEL.WEIGHTS another one."
            )
        self.new = frozenset()
        try:
            extra = super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None
        if path and not set(self._names()) - self.new:
            raise ValueError(
                f"nothing in the checkpoint '{path}' fits the model by name and shape: it is of "
                "another architecture. Give MODEL.WEIGHTS one of this config's."
            )
        return extra

    def load_whole(self, path):
        """Load a model that is to be used as it is, to evaluate it for example.

        Raises:
            FileNotFoundError, ValueError: see :meth:`load`; no path, or weights that are missing
                in the checkpoint (the scales and offsets of the costs have neutral defaults).
        """
        if not path:
            raise ValueError(
                "MODEL.WEIGHTS is empty, so the model's weights would be random. Give it a "
                "checkpoint, such as OUTPUT_DIR/model_final.pth of a training."
            )
        self.load(path, checkpointables=[])
        missing = sorted(name for name in self.new if not name.startswith("costs."))
        if missing:
            parts = Counter(_part(name) for name in missing)
            described = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
            raise ValueError(
                f"the checkpoint '{path}' lacks weights of this model, or has them in other "
                f"shapes: {described}; the first is {missing[0]}. They would be random. Use the "
                "config that the checkpoint was trained with (config.yaml beside it)."
            )

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            content = read_pickle(filename)
            if not isinstance(content, dict):
                raise ValueError(f"'{filename}' holds a {type(content).__name__}, expected a dict.")
            if "model" in content and "__author__" in content:  # Detectron2's zoo
                return content
            arrays = content.get("blobs", content)  # Detectron 1
            arrays = {k: v for k, v in arrays.items() if not k.endswith("_momentum")}
            return {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):
            state = self._torch_load(filename).get("model_state")
            if not isinstance(state, dict):
                raise ValueError(f"'{filename}' has no 'model_state', which a .pyth needs.")
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _torch_load(self, f):
        content = read_tensors(f)
        model = content.get("model", content) if isinstance(content, dict) else content
        if isinstance(content, dict) and "model_state" in content:
            return content
        if not isinstance(model, dict) or not all(
            isinstance(v, (torch.Tensor, np.ndarray)) for v in model.values()
        ):
            raise ValueError(
                f"'{f}' is no checkpoint: expected a dict of tensors by name, or one under 'model'."
            )
        return content

    def _names(self):
        """Names of the model's tensors; older checkpoints do not count batch norm's batches."""
        names = self.model.state_dict()
        return [name for name in names if not name.endswith("num_batches_tracked")]

    def _load_model(self, checkpoint):
        names = self._names()
        incompatible = super()._load_model(checkpoint)
        new = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        self.new = frozenset(name.removeprefix("module.") for name in new) & frozenset(names)
        total = Counter(_part(name) for name in names)
        taken = Counter(_part(name) for name in names if name not in self.new)
        for part, count in total.items():
            logger.info(
                "%s: %s",
                part,
                "all new" if not taken[part] else f"{taken[part]} of {count} tensors taken",
            )
        unused = sorted({_part(name) for name in incompatible.unexpected_keys})
        if unused:
            logger.info("not used: %s", ", ".join(unused))
        return incompatible

    # ---- resuming --------------------------------------------------------------------------
    def has_checkpoint(self):
        """Whether ``save_dir`` holds a run that could be resumed."""
        return bool(self._candidates()) or bool(self._tag())

    def get_checkpoint_file(self):
        """The newest checkpoint of ``save_dir`` that is whole; says so where it is not the last.

        Raises:
            ValueError: there are checkpoints, but none is whole.
        """
        found = self._newest_whole() if comm.is_main_process() else None
        return comm.all_gather(found)[0]

    def _newest_whole(self):
        tag, refused = self._tag(), []
        if tag and not (_NUMBERED.fullmatch(tag) and (Path(self.save_dir) / tag).is_file()):
            refused.append(f"last_checkpoint names {tag[:80]!r}, which is no checkpoint here")
        for path in self._candidates():
            reason = _why_not_resumable(path)
            if reason is None:
                if refused:
                    logger.warning(
                        "Continuing from %s, the newest whole checkpoint: %s",
                        path,
                        "; ".join(refused),
                    )
                return str(path)
            refused.append(reason)
        raise ValueError(
            f"--resume: no checkpoint in '{self.save_dir}' can be continued: {'; '.join(refused)}. "
            "Remove them, or give OUTPUT_DIR a new folder, and start without --resume."
        )

    def _tag(self):
        """What ``last_checkpoint`` says; "" where it is missing or empty."""
        path = Path(self.save_dir) / "last_checkpoint"
        if path.is_dir():
            raise ValueError(f"'{path}' is a folder, expected the file that names the last "
                             "checkpoint. Remove it.")  # fmt: skip
        return path.read_text(errors="replace").strip() if path.is_file() else ""

    def _candidates(self):
        """Checkpoints of ``save_dir``: the one that ``last_checkpoint`` names, then the newest."""
        tag = self._tag()

        def order(path):
            number = _NUMBERED.fullmatch(path.name)[1]
            return path.name == tag, float("inf") if number == "final" else int(number)

        paths = [p for p in Path(self.save_dir).glob("model_*.pth") if _NUMBERED.fullmatch(p.name)]
        return sorted(paths, key=order, reverse=True)

    # ---- saving ----------------------------------------------------------------------------
    def save(self, name, **extra):
        """Write ``save_dir/NAME.pth``, whole or not at all.

        Raises:
            FloatingPointError: weights are NaN or infinite; older checkpoints stay the last ones.
            OSError: it could not be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **extra}
        bad = non_finite(content["model"])
        if bad:
            raise FloatingPointError(
                f"{len(bad)} tensors of the model are NaN or infinite, the first is {bad[0]}: no "
                f"checkpoint '{name}' is written. The training has diverged: lower SOLVER.BASE_LR, "
                "or turn SOLVER.CLIP_GRADIENTS on."
            )
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(content, file))
        self.tag_last_checkpoint(f"{name}.pth")

    def remove(self, name):
        """Delete ``save_dir/NAME.pth``, which another checkpoint has replaced."""
        if self.save_dir and self.save_to_disk:
            Path(self.save_dir, f"{name}.pth").unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename):
        write_atomically(
            os.path.join(self.save_dir, "last_checkpoint"),
            lambda file: file.write(last_filename_basename.encode()),
        )


def _why_not_resumable(path):
    """Why a run cannot be continued from a checkpoint; None where it can."""
    try:
        content = read_tensors(path)
    except (OSError, ValueError) as error:
        return str(error)
    if not isinstance(content, dict) or "iteration" not in content.get("trainer", {}):
        return f"'{path}' holds a model without the state of its training"
    bad = non_finite(content.get("model", {}))
    return f"'{path}' has NaN or infinite weights, such as {bad[0]}" if bad else None


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to, such as ``sem_seg_head.decoder``."""
    head, _, rest = name.partition(".")
    return f"{head}.{rest.partition('.')[0]}" if head.endswith("_head") else head
