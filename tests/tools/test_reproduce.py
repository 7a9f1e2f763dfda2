"""tools/experiments/reproduce.py in its quick setting, the statistics behind it, and the report."""

import csv
import importlib
import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from amwc_d2.config import load_config
from amwc_d2.engine.command_line import load_model

TOOLS = (
    "bootstrap", "calibrate", "experiment_rows", "feature_cache", "network_outputs", "reproduce",
    "results_report",
)  # fmt: skip
ROWS = [
    "baseline", "calibrated", "end to end", "continued cross-entropy",
    "calibrated, then end to end", "baseline, semantic oracle",
]  # fmt: skip


@pytest.fixture
def load_tool(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools/experiments"))
    yield importlib.import_module
    for name in TOOLS:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_quick_run_resumes_and_reports(load_tool, toy_root, tmp_path):
    reproduce = load_tool("reproduce")
    command = ["toy", "--quick", "--output", str(tmp_path), "--rows", *ROWS]
    results = reproduce.main(reproduce.get_parser().parse_args(command))
    rows = {run["row"]: run for run in results["runs"]}
    assert set(rows) == set(ROWS)
    for row, run in rows.items():
        trained = row not in ("baseline", "calibrated", "baseline, semantic oracle")
        assert ("curve" in run["figures"]) == trained
        assert 0 <= run["metrics"]["panoptic_seg/PQ"] <= results["ceiling"]["PQ"]
    assert rows["end to end"]["metrics"] != rows["baseline"]["metrics"]
    oracle = rows["baseline, semantic oracle"]["metrics"]
    assert oracle["amwc/mIoU"] > rows["baseline"]["metrics"]["amwc/mIoU"]
    compared = {(d["ours"], d["base"]): d["PQ"] for d in results["differences"]}
    gain = compared["end to end", "baseline"]
    assert gain["mean"] == pytest.approx(
        rows["end to end"]["metrics"]["panoptic_seg/PQ"]
        - rows["baseline"]["metrics"]["panoptic_seg/PQ"]
    )
    assert gain["images"][0] <= gain["images"][1] and gain["seeds"] is None

    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("rows/*/*/run.json")}
    again = reproduce.main(reproduce.get_parser().parse_args([*command, "N = 1", "--jobs", "2"]))
    assert {run["row"] for run in again["runs"]} == {*ROWS, "N = 1"}
    assert written == {p: p.stat().st_mtime_ns for p in written}, "finished runs were repeated"
    assert again["differences"] == results["differences"]  # N = 1 stands beside N = 5 only

    report = load_tool("results_report")
    output = tmp_path / "docs" / "results.md"
    report.main(
        report.get_parser().parse_args(
            ["--output", str(output), "--results", str(tmp_path / "results.json")]
        )
    )
    text = output.read_text()
    assert f"| end to end - baseline | {gain['mean']:+.2f}" in " ".join(text.split())
    assert str(tmp_path) not in text


def test_unknown_row_is_an_error_that_lists_them(load_tool, capsys):
    reproduce = load_tool("reproduce")
    parser = reproduce.get_parser()
    with pytest.raises(SystemExit):
        reproduce.check_rows(parser.parse_args(["toy", "--rows", "no such row"]), parser)
    message = capsys.readouterr().err
    assert "no such row" in message and "continued cross-entropy" in message


def test_fitting_and_held_back_images_are_disjoint(load_tool, toy_root, tmp_path):
    reproduce = load_tool("reproduce")
    args = reproduce.get_parser().parse_args(["toy", "--quick", "--output", str(tmp_path)])
    experiment = reproduce.Experiment(args)
    fit, held = (
        {s["image_id"] for s in DatasetCatalog.get(name)}
        for name in (experiment.fit, experiment.held)
    )
    assert len(fit) == 4 and len(held) == 2 and not fit & held
    cfg = experiment.config(end_to_end=True, seed=3, options=["NUM_LAMBDAS", 1])
    assert (experiment.fit,) == cfg.DATASETS.TRAIN and cfg.SEED == 3
    assert cfg.MODEL.AMWC.GRADIENT.NUM_SAMPLES == 1


def test_every_option_of_every_row_is_a_key(load_tool, toy_root, tmp_path):
    reproduce = load_tool("reproduce")
    args = reproduce.get_parser().parse_args(["toy", "--quick", "--output", str(tmp_path)])
    experiment = reproduce.Experiment(args)
    for options in [*reproduce.ROWS.values(), *reproduce.SEARCH.values()]:
        experiment.config(end_to_end=True, seed=0, options=options)  # KeyError otherwise
    assert {row for pair in reproduce.COMPARISONS for row in pair} <= set(reproduce.ROWS)


def test_cached_features_give_the_same_losses_and_results(load_tool, toy_root, repository):
    """A step on the cache is the ordinary step on the same crops."""
    cache = load_tool("feature_cache")
    config = repository / "configs/Toy-PanopticSegmentation/amwc_R18_e2e.yaml"
    cfg = load_config(config, ["MODEL.WEIGHTS", "", "MODEL.AMWC.COST_DROPOUT", 0.0])
    torch.manual_seed(0)
    model = load_model(cfg)
    mapper = cache.AMWCDatasetMapper(
        cfg,
        augmentations=[],
        panoptic_target_generator=cache.AMWCTargetGenerator.from_config(cfg),
    )
    batch = [mapper(s) for s in DatasetCatalog.get("toy_panoptic_train")[:2]]
    model.train()
    features = [cache.decode(model, sample) for sample in batch]
    with EventStorage():
        direct = model(batch)
        cached = cache.losses(model, features)
    assert set(direct) == set(cached)
    for key, value in direct.items():
        assert cached[key].item() == pytest.approx(value.item(), rel=1e-3)

    samples = DatasetCatalog.get("toy_panoptic_val")[:1]
    (feature,) = cache.cache_inference(cfg, model, samples)
    with torch.no_grad():
        class_logits, affinity_logits = cache.logits(model, [feature])
        mapped = cache.OracleMapper(cfg)(samples[0])
        expected = model.logits(model.preprocess([mapped]).tensor)
    torch.testing.assert_close(class_logits, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(affinity_logits, expected[1], atol=1e-4, rtol=1e-4)


def test_layers_that_are_cached_cannot_train(load_tool, toy_root, repository):
    cache = load_tool("feature_cache")
    config = repository / "configs/Toy-PanopticSegmentation/amwc_R18_e2e.yaml"
    cfg = load_config(config, ["MODEL.AMWC.TRAINED_LAYERS", "decoders"])
    with pytest.raises(ValueError, match="TRAINED_LAYERS is 'decoders', which trains layers"):
        cache.train(cfg, None, [], [])


def test_quality_and_differences_from_statistics(load_tool, tmp_path):
    bootstrap = load_tool("bootstrap")
    path = tmp_path / "segments.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "category_id", "outcome", "area", "iou"])
        writer.writerows([[7, 1, "TP", 9, 0.8], [7, 1, "FN", 9, 0], [9, 2, "TP", 9, 0.6]])
    counts = bootstrap.read_segments(path, [7, 9], [1, 2, 3])
    assert counts.shape == (2, 3, 4)
    assert counts[0, 0].tolist() == [1, 0, 1, 0.8]
    # category 3 does not occur; PQ 0.8 / 1.5 and 0.6
    assert bootstrap.panoptic_quality(counts.sum(0)) == pytest.approx(50 * (0.8 / 1.5 + 0.6))
    assert bootstrap.panoptic_quality(counts.sum(0), [1]) == pytest.approx(60)


def test_intervals_cover_as_often_as_they_say(load_tool):
    """Images of which one model finds 60 and the other 50 of 100 segments: 95 % intervals."""
    bootstrap = load_tool("bootstrap")
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        runs = []
        for chance in (0.6, 0.5):
            found = rng.binomial(5, chance, 40)
            counts = np.zeros((1, 40, 1, 4))
            counts[0, :, 0] = np.stack([found, 0 * found, 5 - found, found], 1)
            runs.append(counts)
        result = bootstrap.difference(*runs, resamples=300, seed=trial)
        truth = 100 * (0.6 / 0.8 - 0.5 / 0.75)
        covered += result["images"][0] <= truth <= result["images"][1]
    assert 50 <= covered <= 60
    assert bootstrap.seed_interval([1.0]) is None
    low, high = bootstrap.seed_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2) and high - 2 == pytest.approx(
        4.303 / 3**0.5, rel=1e-3
    )


def test_gradient_section(load_tool, tmp_path):
    report = load_tool("results_report")
    figures = {
        key: {"warm_start": 0.25, "literal": -0.5}
        for key in ("null_max_abs", "alignment", "alignment_edges", "alignment_classes",
                    "magnitude", "flip_rate")
    }  # fmt: skip
    g = {"images": 8, "directions": ["a"], "lambda_range": [1, 2], "num_lambdas": 3}
    g |= {
        "two_sided": 0.0,
        "batch": 4,
        "finite_differences_repeat": 0.9,
        "commit": "abc",
        "default": "warm_start",
    }
    path = tmp_path / "g.json"
    path.write_text(json.dumps(g | figures | {"config": "/somewhere/configs/Toy/x.yaml"}))
    text = report.gradient_section(path)
    assert "configs/Toy/x.yaml" in text and "/somewhere" not in text
    assert "warm_start (default)" in text and "-0.500" in text
