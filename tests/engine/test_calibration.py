"""Calibration: it repairs costs that were spoilt, on images that training does not see."""

import json

import calibrate
import numpy as np
import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from helpers import DISTANCES, load, make_estimator, scene

from amwc_d2.costs import GAMMA, Costs
from amwc_d2.edges import cut_edges
from amwc_d2.engine import calibration
from amwc_d2.engine.calibration import Output, Parameters, Quality, fit, hold_back, maximize
from amwc_d2.engine.command_line import load_model
from amwc_d2.engine.trainer import training_samples

STRIDE = 4
TOY = "Toy-PanopticSegmentation/amwc_R18.yaml"
QUICK = ["MODEL.INS_EMBED_HEAD.DISTANCES", "[1, 4]", "DATALOADER.NUM_WORKERS", "0"]


def output(seed, spoil):
    """Logits whose costs are those of ``scene``, less ``spoil`` on every affinity."""
    node, edge, truth, classes = scene(seed, n=1)
    true = np.kron(truth[0], np.ones((STRIDE, STRIDE), int)) + 1
    areas = np.bincount(true.ravel(), minlength=5)[1:]
    info = [
        {"category_id": int(k), "iscrowd": False, "area": int(area)}
        for k, area in zip(classes, areas)
    ]
    return Output(-2.0 * node[0], 2.0 * edge[0] - spoil, true.shape, true, info)


def quality(min_area=(0, 0, 0), upsampling="refine"):
    return Quality(make_estimator().solver, STRIDE, np.array(min_area), upsampling)


def test_a_spoilt_offset_is_found():
    outputs = [output(seed, 3.0) for seed in range(8)]
    others = [output(seed, 3.0) for seed in range(8, 16)]
    start = Costs(3, len(DISTANCES))
    fitted, before, after = fit(start, quality(), outputs, evaluations=60)
    assert before == quality()(start, outputs) and after == quality()(fitted, outputs)
    assert after > before + 5
    assert quality()(fitted, others) > quality()(start, others) + 5
    assert fitted.edge_offset.mean() > 0.2
    assert (start.edge_offset == 0).all() and (start.edge_scale == 1).all()


def test_costs_that_cannot_be_better_stay():
    *_, truth, classes = scene(0, n=1)
    perfect = output(0, 0.0)
    labels = torch.tensor(classes[truth])
    perfect.class_logits = 9.0 * torch.nn.functional.one_hot(labels, 3)[0].permute(2, 0, 1).float()
    perfect.affinity_logits = torch.where(cut_edges(torch.tensor(truth), DISTANCES), -9.0, 9.0)[0]
    start = Costs(3, len(DISTANCES))
    judge = quality(upsampling="nearest")
    assert judge(start, [perfect]) == 100
    # Of the two things, 12 and 8 cells, the second is rejected and missed: PQ 1 / 1.5.
    strict = quality((0, 0, 10 * STRIDE**2), "nearest")
    assert strict(start, [perfect]) == pytest.approx(100 * (2 + 2 / 3) / 3)
    fitted, before, after = fit(start, judge, [perfect], evaluations=10)
    assert before == after == 100
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    again, *_ = fit(start, judge, [perfect], evaluations=10)
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), again.parameters()))
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()


def test_vector_and_costs():
    parameters = Parameters(Costs(3, 2))
    costs = parameters.costs(np.zeros(parameters.size))
    start = Costs(3, 2).state_dict()
    assert parameters.size == 2 + 2 + 3 + 1
    assert all(torch.equal(v, start[k]) for k, v in costs.state_dict().items())
    costs = parameters.costs(np.array([1, 2, np.log(3), np.log(4), 5, 6, 7, np.log(2)]))
    assert costs.edge_offset.tolist() == [1, 2] and costs.class_offset.tolist() == [5, 6, 7]
    np.testing.assert_allclose(costs.edge_scale, [3, 4], rtol=1e-6)
    assert costs.gamma.item() == pytest.approx(2 * GAMMA)


def test_search_finds_a_maximum():
    best = np.array([0.5, -0.4, 0.2])
    assert np.abs(maximize(lambda x: -((x - best) ** 2).sum(), 3, 300) - best).max() < 0.02


def test_images_are_held_back_alike(repository, toy_root):
    samples = [{"i": i} for i in range(20)]
    fitting, held = hold_back(samples, 100)
    assert len(held) == 4 and len(hold_back(samples, 3)[1]) == 3
    assert sorted(x["i"] for x in fitting + held) == list(range(20))
    assert hold_back(samples, 100) == (fitting, held) and hold_back(samples, 0) == (samples, [])
    with pytest.raises(ValueError, match=r"CALIBRATION_IMAGES must be >= 0 \(0 = off\), got -1"):
        hold_back(samples, -1)
    cfg = load(repository, TOY)
    assert [len(part) for part in training_samples(cfg)] == [10, 2]
    cfg.MODEL.AMWC.CALIBRATED = False
    assert [len(part) for part in training_samples(cfg)] == [12, 0]
    cfg.merge_from_list(["MODEL.AMWC.CALIBRATED", True, "MODEL.AMWC.STAGE", "end_to_end"])
    assert [len(part) for part in training_samples(cfg)] == [12, 0]


@pytest.fixture(scope="module")
def trained(repository, toy_root, tmp_path_factory):
    """Stage 1, two steps, calibrated; and with what images."""
    folder = tmp_path_factory.mktemp("stage_1")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "EVALUATIONS", 15)
        patch.setattr(
            calibration,
            "network_outputs",
            lambda cfg, model, samples, run=calibration.network_outputs: (
                seen.extend(s["image_id"] for s in samples) or run(cfg, model, samples)
            ),
        )
        arguments = ["--config-file", str(repository / "configs" / TOY), "--num-gpus", "0", *QUICK]
        arguments += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"]
        train_net.main(
            default_argument_parser().parse_args([*arguments, "OUTPUT_DIR", str(folder)])
        )
    return folder, seen


def test_stage_1_ends_calibrated(repository, trained):
    folder, seen = trained
    cfg = load(repository, TOY, *QUICK)
    _, held = training_samples(cfg)
    assert seen == [sample["image_id"] for sample in held]
    costs = {
        key.removeprefix("costs."): value
        for key, value in torch.load(folder / "model_final.pth", weights_only=True)["model"].items()
        if key.startswith("costs.")
    }
    assert any((value != Costs(10, 2).state_dict()[key]).any() for key, value in costs.items())
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    loaded = load_model(cfg).costs.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in costs.items())
    cfg.MODEL.AMWC.CALIBRATED = False
    plain = load_model(cfg).costs.state_dict()
    assert all(torch.equal(v, Costs(10, 2).state_dict()[key]) for key, v in plain.items())


def test_tool_writes_a_checkpoint_with_the_fitted_costs(repository, trained, tmp_path):
    options = ["--config-file", repository / "configs" / TOY, "--output", tmp_path / "c.pth"]
    options += ["--evaluations", 15, "--json", tmp_path / "c.json"]
    opts = ["--opts", "MODEL.WEIGHTS", trained[0] / "model_final.pth", *QUICK]
    calibrate.main(calibrate.get_parser().parse_args([str(o) for o in options + opts]))
    saved = torch.load(tmp_path / "c.pth", weights_only=True)["model"]
    results = json.loads((tmp_path / "c.json").read_text())
    assert results["images"] == 2 and results["PQ_after"] >= results["PQ_before"]
    for name, value in results["costs"].items():
        np.testing.assert_allclose(saved[f"costs.{name}"], value, rtol=1e-6)
    names = DatasetCatalog.get("toy_panoptic_val")
    options[4:] = ["--dataset", "toy_panoptic_val", "--num-images", 1, "--evaluations", 3]
    fitted = calibrate.main(calibrate.get_parser().parse_args([str(o) for o in options + opts]))
    assert fitted["images"] == 1 < len(names)
