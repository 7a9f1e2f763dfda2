"""tools/experiments/calibrate.py: it repairs costs that were spoilt by known offsets and scales."""

import itertools
import json

import calibrate
import numpy as np
import pytest
import torch
from helpers import DISTANCES, scene, settings

from amwc_d2.costs import Costs
from amwc_d2.edges import cut_edges
from amwc_d2.losses.end_to_end import Truth


def batch(seed, spoil):
    """Logits whose costs are those of ``scene``, less ``spoil`` on every affinity."""
    node, edge, truth, classes = scene(seed)
    truth = Truth(
        torch.tensor(truth), [torch.tensor(classes)] * 2, [torch.zeros(4, dtype=torch.bool)] * 2
    )
    return -2.0 * node, 2.0 * edge - spoil, [(8, 10), (8, 10)], truth


def test_search_finds_a_spoilt_offset():
    quality = calibrate.Quality(settings(), np.zeros(3))
    search, check = [batch(s, 3.0) for s in range(4)], [batch(s, 3.0) for s in range(4, 8)]
    start = Costs(3, len(DISTANCES))
    fitted, history = calibrate.fit(start, quality, search, check, rounds=3)
    assert history[0]["search"] == quality(start, search)
    assert all(a["search"] <= b["search"] for a, b in itertools.pairwise(history))
    assert quality(fitted, check) == max(h["check"] for h in history)
    assert quality(fitted, check) > history[0]["check"] + 5
    assert fitted.edge_offset.mean() > 0.5
    assert (start.edge_offset == 0).all() and (start.edge_scale == 1).all()


def test_quality_on_the_grid():
    """Perfect costs have PQ 100; rejecting what is small costs its recall; void is not judged."""
    node, edge, _, truth = batch(0, 0.0)
    classes = truth.classes[0][truth.segments]
    node = 9.0 * torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()
    edge = torch.where(cut_edges(truth.segments, DISTANCES), -9.0, 9.0)
    perfect = [(node, edge, [(8, 10), (8, 10)], truth)]
    costs = Costs(3, len(DISTANCES))
    assert calibrate.Quality(settings(), np.zeros(3))(costs, perfect) == 100
    things = calibrate.Quality(settings(), np.array([0, 0, 10]))(costs, perfect)
    # of the two things, 12 and 8 cells, the second is missed: PQ 1 / 1.5
    assert things == pytest.approx(100 * (2 + 2 / 3) / 3)
    truth.segments[:, 2:6, 7:9] = -1
    assert calibrate.Quality(settings(), np.zeros(3))(costs, perfect) == pytest.approx(
        100 * (2 + 1 / 1.5) / 3
    )  # the absent true segment still counts as missed


def test_tool_writes_a_checkpoint_with_the_fitted_costs(repository, toy_root, tmp_path):
    config = repository / "configs/Toy-PanopticSegmentation/amwc_R18.yaml"
    options = ["--config-file", config, "--output", tmp_path / "c.pth", "--num-images", 4]
    options += ["--rounds", 1, "--json", tmp_path / "c.json"]
    opts = ["--opts", "MODEL.WEIGHTS", "", "MODEL.INS_EMBED_HEAD.DISTANCES", "[1, 4]"]
    calibrate.main(calibrate.get_parser().parse_args([str(o) for o in options + opts]))
    saved = torch.load(tmp_path / "c.pth", weights_only=True)["model"]
    results = json.loads((tmp_path / "c.json").read_text())
    for name, value in results["costs"].items():
        np.testing.assert_allclose(saved[f"costs.{name}"], value, rtol=1e-6)
    assert [h["round"] for h in results["history"]] == [0, 1]
