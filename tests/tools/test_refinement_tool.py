"""The experiment that chose gamma."""

from detectron2.data import DatasetCatalog
from helpers import load
from refinement import compare

from amwc_d2.engine.trainer import Trainer


def test_rows_are_those_of_each_gamma(repository, toy_root):
    cfg = load(repository, "Toy-PanopticSegmentation/amwc_R18.yaml")
    model = Trainer.build_model(cfg)
    gamma = model.costs.gamma.item()
    rows = compare(cfg, model, DatasetCatalog.get("toy_panoptic_val")[:2], [0.1, gamma])
    assert list(rows) == ["nearest", "gamma 0.1", f"gamma {gamma:g}"]
    assert all(0 <= pq <= 100 for pq in rows.values())
    assert model.costs.gamma.item() == gamma and model.upsampling == "refine"
