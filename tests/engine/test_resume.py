"""An interrupted and resumed training ends in the weights of an uninterrupted one, to the bit."""

import logging
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import train_net
from detectron2.engine import default_argument_parser

from amwc_d2.config import load_config
from amwc_d2.engine.output_folder import claim
from amwc_d2.engine.trainer import Trainer

TOY = "configs/Toy-PanopticSegmentation/amwc_R18{}.yaml"
TINY = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2",
        "SOLVER.WARMUP_ITERS", "0",
        "MODEL.AMWC.GRADIENT.NUM_SAMPLES", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "INPUT.CROP.SIZE", "(64,64)", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16",
        "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", "16", "MODEL.AMWC.TARGET_FLIP_RATE", "0.01",
        "MODEL.AMWC.CALIBRATION_IMAGES", "0", "DATASETS.TEST", "()",
        "MODEL.WEIGHTS", ""]  # fmt: skip


def config(repository, stage, folder, *options):
    file = repository / TOY.format({1: "", 2: "_e2e"}[stage])
    return load_config(file, [*TINY, "OUTPUT_DIR", str(folder), *map(str, options)])


def train(cfg, resume=False, trainer=Trainer):
    """Train as tools/train_net.py does; the random numbers before it do not matter."""
    trainer = trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def weights(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def whole(repository, toy_root, tmp_path_factory):
    """OUTPUT_DIR of an uninterrupted run, by stage."""
    folders = {}
    for stage in (1, 2):
        folders[stage] = tmp_path_factory.mktemp(f"stage{stage}")
        torch.manual_seed(0)  # of the weights that it starts from
        train(config(repository, stage, folders[stage]))
    return folders


def copy_run(source, target, *names):
    for name in names:
        shutil.copy(source / f"{name}.pth", target)
    (target / "last_checkpoint").write_text(f"{names[-1]}.pth")


class Interrupted(Trainer):
    """Sends itself a signal in its third step."""

    number = signal.SIGTERM

    def run_step(self):
        if self.iter == 2:
            for _ in range(2):  # as one that is sent to a process and to its launcher
                os.kill(os.getpid(), self.number)
        super().run_step()


# ---------------------------------------------------------------------------- the same run
@pytest.mark.parametrize("stage, workers", [(1, 0), (1, 2), (2, 0)])
def test_resumed_run_is_the_same_run(repository, whole, tmp_path, stage, workers):
    copy_run(whole[stage], tmp_path, "model_0000001")
    cfg = config(repository, stage, tmp_path, "DATALOADER.NUM_WORKERS", workers)
    trainer = train(cfg, resume=True)
    assert trainer.start_iter == 2
    assert_equal(weights(whole[stage]), weights(tmp_path))
    if stage == 2:
        scales = [estimator.lambda_scale for estimator in trainer.estimators]
        assert scales[0] != 1
        saved = torch.load(whole[2] / "model_final.pth", weights_only=True)["trainer"]
        assert saved["processes"] == [{"lambda_scales": scales}]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_nothing_is_lost(repository, whole, tmp_path, caplog, number, status):
    torch.manual_seed(0)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    Trained = type("Trained", (Interrupted,), {"number": number})
    with pytest.raises(SystemExit) as left, caplog.at_level(logging.WARNING, "amwc_d2"):
        train(config(repository, 1, tmp_path), trainer=Trained)
    assert left.value.code == status
    assert "3 of 4 iterations are done and saved" in caplog.text and "--resume" in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert train(config(repository, 1, tmp_path), resume=True).start_iter == 3
    assert_equal(weights(whole[1]), weights(tmp_path))


def test_a_seed_that_was_drawn_is_kept(repository, toy_root, tmp_path):
    options = ("SEED", -1, "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = train(config(repository, 1, tmp_path / "a", *options))
    copy_run(tmp_path / "a", tmp_path / "b", "model_0000000")
    assert train(config(repository, 1, tmp_path / "b", *options), resume=True).seed == first.seed
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize(
    "option, said",
    [
        (("MODEL.INS_EMBED_HEAD.DISTANCES", [1, 2, 4, 8, 32]), r"DISTANCES: .*16\] there, .*32\]"),
        (("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8), "ASPP_CHANNELS: 16 there, 8 here"),
        (("SOLVER.OPTIMIZER", "SGD"), "OPTIMIZER: ADAM there, SGD here"),
        (("SOLVER.IMS_PER_BATCH", 4), "IMS_PER_BATCH: 2 there, 4 here"),
        (("SEED", 3), "SEED: 1 there, 3 here"),
    ],
)
def test_other_settings_are_named(repository, whole, option, said):
    cfg = config(repository, 1, whole[1], *option)
    with pytest.raises(ValueError, match=rf"(?s)has other settings:.*{said}"):
        Trainer(cfg).resume_or_load(resume=True)


# ---------------------------------------------------------------------------- which checkpoint
def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif how == "missing":
        path.unlink()
    else:
        state = torch.load(path, weights_only=True)
        if how == "nan":
            state["model"]["sem_seg_head.predictor.weight"].fill_(float("nan"))
        else:
            del state["trainer"]
        torch.save(state, path)


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "missing", "nan", "no trainer"])
def test_the_newest_whole_checkpoint_is_taken(repository, whole, tmp_path, caplog, how):
    copy_run(whole[1], tmp_path, "model_0000001", "model_final")
    spoil(tmp_path / "model_final.pth", how)
    trainer = Trainer(config(repository, 1, tmp_path))
    with caplog.at_level(logging.WARNING, "amwc_d2"):
        trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    assert "model_0000001.pth, the newest whole checkpoint" in caplog.text
    assert "model_final.pth" in caplog.text
    spoil(tmp_path / "model_0000001.pth", "cut")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be continued"):
        Trainer(config(repository, 1, tmp_path)).resume_or_load(resume=True)


@pytest.mark.parametrize("tag", [b"", bytes(range(200, 256)), b"../evil.pkl", None])
def test_a_wrong_last_checkpoint(repository, whole, tmp_path, tag):
    copy_run(whole[1], tmp_path, "model_0000001")
    (tmp_path / "last_checkpoint").unlink()
    if tag is not None:
        (tmp_path / "last_checkpoint").write_bytes(tag)
    trainer = Trainer(config(repository, 1, tmp_path))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2


# ---------------------------------------------------------------------------- OUTPUT_DIR
def test_an_old_run_is_not_overwritten(repository, whole):
    before = {p.name: p.read_bytes() for p in whole[1].iterdir() if p.suffix == ".pth"}
    command = ["--config-file", str(repository / TOY.format("")), "--num-gpus", "0", *TINY]
    args = default_argument_parser().parse_args([*command, "OUTPUT_DIR", str(whole[1])])
    with pytest.raises(FileExistsError, match=r"holds a run that exists already .*--resume"):
        train_net.main(args)
    assert before == {p.name: p.read_bytes() for p in whole[1].iterdir() if p.suffix == ".pth"}


def test_a_folder_belongs_to_one_process(repository, tmp_path):
    code = (
        "import sys; from amwc_d2.engine.output_folder import claim\n"
        "with claim(sys.argv[1]): print('claimed')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]

    def other():
        return subprocess.run(command, cwd=repository, capture_output=True, text=True)

    with claim(tmp_path):
        result = other()
        assert (
            result.returncode and f"in use by another run (process {os.getpid()}" in result.stderr
        )
    assert other().stdout == "claimed\n"
