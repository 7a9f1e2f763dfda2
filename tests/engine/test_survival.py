"""A training outlives bad images, failing evaluations, NaN gradients and full disks."""

import errno
import logging
import math
import os
import shutil

import pytest
import torch
from test_resume import assert_equal, config, train, weights

from amwc_d2.engine import checkpoint as checkpoint_module
from amwc_d2.engine.checkpoint import AMWCCheckpointer, write_atomically
from amwc_d2.engine.trainer import Trainer


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


class SpoilsGradient(Trainer):
    """The gradient of one parameter is NaN in step 1."""

    def run_step(self):
        parameter = self.model.sem_seg_head.predictor.weight
        if self.iter == 1:
            self.before = {k: v.clone() for k, v in self.model.named_parameters()}
            hook = parameter.register_hook(lambda gradient: gradient * math.nan)
        super().run_step()
        if self.iter == 1:
            hook.remove()
            self.after = {k: v.clone() for k, v in self.model.named_parameters()}


def test_a_step_with_nan_gradients_is_refused(repository, toy_root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "amwc_d2"):
        trainer = train(config(repository, 1, tmp_path), trainer=SpoilsGradient)
    assert_equal(trainer.before, trainer.after)
    assert trainer.faults == {"steps refused": 1}
    assert "sem_seg_head.predictor.weight" in caplog.text and "1 steps refused" in caplog.text
    assert all(torch.isfinite(v).all() for v in weights(tmp_path).values())


def test_weights_that_are_nan_are_not_saved(tmp_path):
    model = torch.nn.Linear(2, 3)
    checkpointer = AMWCCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    model.bias.data[1] = math.inf
    with pytest.raises(FloatingPointError, match=r"bias: no checkpoint 'model_0000002'"):
        checkpointer.save("model_0000002")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "model_0000002.pth").exists()


# ---------------------------------------------------------------------------- disks
def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, lambda file: file.write(b"first"))

    def half(file):
        file.write(b"sec")
        full_disk()

    with pytest.raises(OSError, match=r"file' could not be written: .*No space.* MB are free"):
        write_atomically(path, half)
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == ["file"]


def test_full_disks_cost_a_checkpoint_and_a_log(repository, toy_root, tmp_path, monkeypatch):
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    save = torch.save

    def second_fails(content, file):
        if content["trainer"]["iteration"] == 1:
            full_disk()
        save(content, file)

    monkeypatch.setattr(checkpoint_module.torch, "save", second_fails)
    options = ("SOLVER.CHECKPOINT_PERIOD", 1)
    trainer = train(config(repository, 1, tmp_path, *options))
    assert trainer.faults["checkpoints not written"] == 1
    assert trainer.faults["writes of JSONWriter failed"] >= 1
    names = {p.name for p in tmp_path.glob("*.pth*")}
    assert names == {"model_0000000.pth", "model_0000002.pth", "model_final.pth"}

    shutil.rmtree(tmp_path)
    with pytest.raises(OSError, match=r"model_0000001\.pth' could not be written"):
        train(config(repository, 1, tmp_path, *options, "STRICT", True))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


# ---------------------------------------------------------------------------- images, evaluations
def test_bad_images_are_replaced(repository, toy_root, tmp_path, register_toy_copy, caplog):
    name, folder = register_toy_copy(4)
    images = sorted((folder / "train").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:600])
    images[1].write_bytes(b"no picture")
    options = ("DATASETS.TRAIN", f"('{name}',)", "DATALOADER.NUM_WORKERS", 1)
    with caplog.at_level(logging.WARNING, "amwc_d2"):
        trainer = train(config(repository, 1, tmp_path / "out", *options))
    assert trainer.faults == {"unreadable images": 2}
    assert all(f"{image} (truth " in caplog.text for image in images[:2])
    with pytest.raises(ValueError, match=r"cannot be used: .*Mend or remove the file"):
        train(config(repository, 1, tmp_path / "strict", *options, "STRICT", True))
    for image in images[2:]:
        image.write_bytes(b"")
    with pytest.raises(ValueError, match=r"4 in a row"):
        train(config(repository, 1, tmp_path / "all", *options))


class FailingEvaluation(Trainer):
    @classmethod
    def test(cls, cfg, model, evaluators=None):
        model.eval()
        raise RuntimeError("the evaluator's own bug")


def test_an_evaluation_that_fails_costs_no_training(repository, toy_root, tmp_path, caplog):
    cfg = config(repository, 1, tmp_path, "TEST.EVAL_PERIOD", 3)
    with pytest.raises(RuntimeError, match="the evaluator's own bug"):  # the last one
        train(cfg, trainer=FailingEvaluation)
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["model_0000001.pth", "model_final.pth"]  # model_0000002 was there meanwhile
    cfg = config(repository, 1, tmp_path / "strict", "TEST.EVAL_PERIOD", 3, "STRICT", True)
    with pytest.raises(RuntimeError, match="the evaluator's own bug"):
        train(cfg, trainer=FailingEvaluation)
    assert not (tmp_path / "strict/model_final.pth").exists()
    assert (tmp_path / "strict/last_checkpoint").read_text() == "model_0000002.pth"
