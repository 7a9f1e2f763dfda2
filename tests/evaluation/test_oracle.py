"""TEST.ORACLE: the truth replaces the right costs, and reaches the model from the data."""

import json

import numpy as np
import pytest
import torch
from helpers import load

from amwc_d2 import Trainer
from amwc_d2.evaluation import grid_ceiling
from amwc_d2.evaluation.oracle import (
    CERTAIN,
    GridTruth,
    OracleMapper,
    OracleModel,
    oracle_costs,
)

TOY = "Toy-PanopticSegmentation/amwc_R18.yaml"
CATEGORIES = [
    {"id": i, "name": name, "isthing": isthing}
    for i, name, isthing in ((3, "land", 0), (9, "ship", 1), (4, "sea", 0), (8, "whale", 1))
]
SMALL = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.INS_EMBED_HEAD.DISTANCES", [1, 2],
         "INPUT.MIN_SIZE_TEST", 90, "MODEL.AMWC.THING_AREA", 0,
         "MODEL.AMWC.STUFF_AREA", 0]  # fmt: skip


def draw(rng, void, size=(61, 90)):
    """Two stuff classes and a wall of touching things on them; ``void`` adds void and a crowd."""
    ids = np.full(size, 300)
    ids[:, int(rng.integers(30, 60)) :] = 4
    category_of = {300: 3, 4: 4}
    top, left = rng.integers(2, 10, 2)
    for i in range(4):
        segment, side = 10 + i, int(rng.integers(12, 20))
        ids[top + 6 * i : top + 6 * i + side, left + 16 * i : left + 16 * (i + 1)] = segment
        category_of[segment] = (9, 8)[i // 2]
    if void:
        ids[:, :13], ids[:13] = 10, 0
    segments = [
        {"id": i, "category_id": category, "iscrowd": int(void and i == 10),
         "area": int((ids == i).sum())}
        for i, category in category_of.items() if (ids == i).any()
    ]  # fmt: skip
    return ids, segments


@pytest.fixture
def make_dataset(register_scenes):
    """A function that registers four scenes, with or without void and crowds; returns the name."""
    return lambda void: register_scenes(
        [draw(np.random.default_rng(seed), void) for seed in range(4)], CATEGORIES
    )


def config(repository, name, *options):
    datasets = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
    return load(repository, TOY, *SMALL, *datasets, *options)


@pytest.mark.parametrize("upsampling", ["nearest", "refine"])
def test_both_oracles_and_the_grid_ceiling(upsampling, repository, make_dataset, tmp_path, caplog):
    """A network that has learnt nothing, on images that are enlarged by no whole number."""
    cfg = config(repository, make_dataset(void=False), "TEST.ORACLE", "both")
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "TEST.IMS_PER_BATCH", 2])
    cfg.MODEL.AMWC.UPSAMPLING = upsampling
    with caplog.at_level("INFO", logger="amwc_d2"):
        results = Trainer.test(cfg, Trainer.build_model(cfg))
    nearest, ceiling = (
        grid_ceiling(cfg.DATASETS.TEST[0], min_size=90, upsampling=u)["panoptic_seg"]
        for u in ("nearest", upsampling)
    )
    if upsampling == "nearest":
        assert 60 < ceiling["PQ"] < 100
        assert results["panoptic_seg"] == ceiling
    else:  # where in a cell a boundary is, these costs do not tell, so the ceiling is higher
        assert 60 < results["panoptic_seg"]["PQ"] < ceiling["PQ"] < 100
        assert nearest["PQ"] < ceiling["PQ"]
    assert "with TEST.ORACLE 'both'" in caplog.text
    written = json.loads((tmp_path / "inference_both_oracle/results.json").read_text())
    assert written["oracle"] == "both" and not (tmp_path / "inference").exists()


def test_semantic_oracle_gives_the_true_classes(repository, make_dataset):
    """On all cells of known class; on the others the network's costs stay."""
    cfg = config(repository, make_dataset(void=True), "TEST.ORACLE", "semantic")
    network = Trainer.build_model(cfg).eval()
    model = OracleModel(network, "semantic")
    for (x,) in Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        truth = x["grid_truth"]
        h, w = truth.classes.shape
        assert (h, w) == (23, 34)  # 61 x 90 enlarged to 90 x 133
        with torch.no_grad():
            prediction = network.predict([x])
            (result,) = model([x])
        segments = torch.from_numpy(result["amwc"]["segments"])
        known = truth.classes >= 0
        assert known.any() and not known.all()
        for k in range(4):  # stuff: one segment a class
            mine = segments[known & (truth.classes == k)].unique()
            others = segments[known & (truth.classes != k)].unique()
            assert len(mine) and not torch.isin(mine, others).any()

        crowd = (truth.segments < 0) & known
        assert crowd.any() and (truth.classes[crowd] == 1).all()
        node, edge = prediction.node_costs, prediction.edge_costs
        node_true, edge_true = oracle_costs(node, edge, [truth], [1, 2], "both")
        assert torch.equal(node_true[0, :, :h, :w][:, ~known], node[0, :, :h, :w][:, ~known])
        assert torch.equal(edge_true[0, ..., :h, :w][..., truth.segments < 0],
                           edge[0, ..., :h, :w][..., truth.segments < 0])  # fmt: skip


def test_costs_by_hand():
    """A row of cells: class 1, 1, 0 in two segments of three cells, then void, then padding."""
    truth = GridTruth(torch.tensor([[1, 1, 0, -1]]), torch.tensor([[5, 5, 2, -1]]))
    node, edge = torch.full((1, 2, 1, 5), 0.5), torch.full((1, 2, 2, 1, 5), 0.25)
    node_true, edge_true = oracle_costs(node, edge, [truth], [1, 2], "both")
    c = CERTAIN
    assert node_true[0, :, 0].tolist() == [[c, c, 0, 0.5, 0.5], [0, 0, c, 0.5, 0.5]]
    assert edge_true[0, 0, 0, 0].tolist() == [c, -c, 0.25, 0.25, 0.25]
    assert edge_true[0, 1, 0, 0].tolist() == [-c, 0.25, 0.25, 0.25, 0.25]
    assert (edge_true[0, :, 1] == 0.25).all()  # no cell below
    for oracle, expected in (("semantic", (node_true, edge)), ("affinity", (node, edge_true))):
        found = oracle_costs(node, edge, [truth], [1, 2], oracle)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert (node == 0.5).all() and (edge == 0.25).all()


def test_images_without_ground_truth_are_named(repository, make_dataset):
    cfg = config(repository, make_dataset(void=False), "TEST.ORACLE", "affinity")
    model = OracleModel(Trainer.build_model(cfg).eval(), "affinity")
    image = {"image": torch.zeros(3, 64, 64), "file_name": "street.jpg"}
    with torch.no_grad(), pytest.raises(ValueError, match=r"ORACLE needs .*'street.jpg' came w"):
        model([image])
    with pytest.raises(ValueError, match=r"ORACLE needs .*'street.jpg' came without"):
        OracleMapper(cfg)({"file_name": "street.jpg"})


def test_a_wrong_oracle_is_named_before_the_training(repository, make_dataset):
    cfg = config(repository, make_dataset(void=False), "TEST.ORACLE", "delphi")
    with pytest.raises(ValueError, match=r"TEST.ORACLE must be one of .* got 'delphi'"):
        Trainer(cfg)


def test_lower_bound_is_reported(repository, make_dataset):
    """The bound holds for every image, and its mean is among the results."""
    cfg = config(repository, make_dataset(void=False), "TEST.LOWER_BOUND", True)
    model = Trainer.build_model(cfg).eval()
    images = [x for (x,) in Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])]
    with torch.no_grad():
        numbers = [result["amwc"] for result in model(images)]
    for n in numbers:
        gap = 100 * (n["objective"] - n["lower_bound"]) / abs(n["objective"])
        assert n["gap"] == pytest.approx(gap) and 0 <= gap < 50
    results = Trainer.test(cfg, model)["amwc"]
    assert results["gap"] == pytest.approx(np.mean([n["gap"] for n in numbers]), rel=1e-3)
