"""Two processes with gloo against one process: training, gradients, evaluation."""

import atexit
import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers import load, toy_batch

from amwc_d2.engine.launch import launch
from amwc_d2.engine.trainer import Trainer

pytestmark = pytest.mark.slow  # every test starts processes that import everything

STAGES = {"pretrain": "", "end_to_end": "_e2e"}
OPTIONS = [
    # What makes a process see its own images only, as anywhere in the field: hard-pixel mining
    # and the statistics of batch norm.
    "MODEL.RESNETS.NORM", "naiveSyncBN",  # SyncBN for the CPU
    "MODEL.SEM_SEG_HEAD.NORM", "naiveSyncBN",
    "MODEL.INS_EMBED_HEAD.NORM", "naiveSyncBN",
    "MODEL.SEM_SEG_HEAD.LOSS_TOP_K", 1.0,
    "MODEL.INS_EMBED_HEAD.LOSS_TOP_K", 1.0,
    # What is drawn at random.
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0,
    "MODEL.INS_EMBED_HEAD.ASPP_DROPOUT", 0.0,
    "MODEL.AMWC.COST_DROPOUT", 0.0,
    "MODEL.AMWC.GRADIENT.LAMBDA_RANGE", [20.0, 20.0],
    "MODEL.AMWC.GRADIENT.NUM_SAMPLES", 1,
    "INPUT.CROP.SIZE", (64, 128),
    "DATALOADER.NUM_WORKERS", 0,
]  # fmt: skip


def joint_batch():
    """Four images; one has no things left, one no labels at all."""
    batch = toy_batch([(64, 128)] * 4)
    for key, value in {"segments": -1, "affinity_weights": 0, "sem_seg": 255}.items():
        batch[1][key].fill_(value)
    batch[2]["segments"][batch[2]["sem_seg"] >= 5] = -1
    return batch


def build(repository, stage, folder):
    """The stage's config and a model, always the same, in double precision: the gradient through
    many layers of batch norm amplifies rounding a thousandfold."""
    name = f"Toy-PanopticSegmentation/amwc_R18{STAGES[stage]}.yaml"
    cfg = load(repository, name, *OPTIONS, "OUTPUT_DIR", str(folder))
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).double()
    for layer in (
        model.sem_seg_head.predictor,
        *(c.predictor for c in model.ins_embed_head.classifiers),
    ):
        torch.nn.init.normal_(layer.weight, 0, 0.2)  # so that the cut has many segments
    return cfg, model


def train(cfg, model, batch, steps):
    """Losses, the first step's gradients and the trained weights."""
    optimizer = Trainer.build_optimizer(cfg, model)
    losses, first = [], None
    with EventStorage():
        for _ in range(steps):
            total = sum(model.train()(batch).values())
            optimizer.zero_grad()
            total.backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
            first = first or gradients
            optimizer.step()
            losses.append(total.item())
    return {
        "losses": losses,
        "gradients": {name.removeprefix("module."): g for name, g in first.items()},
        "weights": [p.detach() for p in model.parameters()],
    }


def evaluate(repository, folder):
    """The evaluation's results without its times; None but in the main process."""
    cfg, model = build(repository, "pretrain", folder)
    Trainer.test(cfg, model)
    if not comm.is_main_process():
        return None
    results = json.loads((folder / "inference/results.json").read_text())
    for key in ("solver_seconds", "solver_seconds_p95"):
        results["results"]["amwc"].pop(key)
    return results


def work(repository, folder):
    """What each of the two processes does."""
    rank = comm.get_rank()
    torch.set_num_threads(1)
    found = {}
    for stage in STAGES:
        cfg, model = build(repository, stage, folder)
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
        found[stage] = train(cfg, model, joint_batch()[2 * rank : 2 * rank + 2], steps=3)
    found["evaluation"] = evaluate(repository, folder)
    torch.save(found, folder / f"rank{rank}.pth")


@pytest.fixture(scope="module")
def ranks(repository, toy_root, tmp_path_factory):
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # two processes with gloo, whatever is here
        launch(work, 2, dist_url="auto", args=(repository, folder))
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_those_of_the_joint_batch(stage, ranks, repository, tmp_path):
    cfg, model = build(repository, stage, tmp_path)
    alone = train(cfg, model, joint_batch(), steps=1)
    assert alone["losses"][0] == pytest.approx(
        sum(found[stage]["losses"][0] for found in ranks) / 2, rel=1e-5
    )
    for found in ranks:
        assert set(found[stage]["gradients"]) == set(alone["gradients"])
        for name, expected in alone["gradients"].items():
            gap = (found[stage]["gradients"][name] - expected).abs().max()
            assert gap <= 1e-5 * max(1, expected.abs().max()), name
    assert sum(float(g.abs().sum()) for g in alone["gradients"].values()) > 0


@pytest.mark.parametrize("stage", STAGES)
def test_processes_stay_together(stage, ranks):
    first, second = (found[stage] for found in ranks)
    assert len(first["losses"]) == 3 and all(torch.tensor(first["losses"]).isfinite())
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"]))


def test_evaluation_of_two_processes_equals_that_of_one(ranks, repository, toy_root, tmp_path):
    assert ranks[0]["evaluation"] == evaluate(repository, tmp_path)


def gloo_threads():
    """Names of this process's threads that belong to gloo."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def leave_a_note(folder):
    """Talk, and write down at the very end of the process which of gloo's threads still run."""
    comm.gather(comm.get_rank())
    assert gloo_threads()
    note = folder / f"threads{comm.get_rank()}.json"
    atexit.register(lambda: note.write_text(json.dumps(gloo_threads())))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads threads from /proc")
def test_processes_leave_their_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(leave_a_note, 2, dist_url="auto", args=(tmp_path,))
    for rank in range(2):
        assert json.loads((tmp_path / f"threads{rank}.json").read_text()) == []
