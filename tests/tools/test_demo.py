"""tools/demo.py: images, folders and datasets in, panels out."""

import demo
import numpy as np
import pytest
from PIL import Image

from amwc_d2.data.images import ImageReader
from amwc_d2.solver_cython import solve_amwc

CONFIG = "configs/Toy-PanopticSegmentation/amwc_R18.yaml"
OPTIONS = ["--opts", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def run(repository, tmp_path):
    def run(*args):
        command = ["--config-file", repository / CONFIG, "--output", tmp_path / "out", *args]
        return demo.main(demo.get_parser().parse_args([str(a) for a in [*command, *OPTIONS]]))

    return run


def test_dataset_panels_have_ground_truth_and_costs(run, toy_root):
    plain = run("--dataset", "toy_panoptic_val", "--num", 1)
    assert [panel.name for panel in plain] == ["000001.png"]
    size = Image.open(plain[0]).size
    full = run("--dataset", "toy_panoptic_val", "--num", 1, "--costs")
    width, height = Image.open(full[0]).size
    assert (width, height) == (size[0], size[1] // 2 * 5)  # 4 tiles, and 10 with the costs


def test_images_and_folders(run, toy_root, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        small = Image.open(toy_root / "val" / "000001.jpg").resize((64, 32))
        small.save(tmp_path / folder / "street.png")
    (tmp_path / "one" / "notes.txt").write_text("not an image")
    panels = run("--input", tmp_path / "one", tmp_path / "two" / "street.png")
    assert len(set(panels)) == 2 and all(panel.is_file() for panel in panels)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in panels)


def test_the_drawn_costs_are_those_that_were_solved(repository, toy_root):
    args = ["--config-file", str(repository / CONFIG), "--input", "x", "--output", "y", *OPTIONS]
    cfg = demo.setup_cfg(demo.get_parser().parse_args(args))
    predictor = demo.Predictor(cfg)
    image = ImageReader()(toy_root / "val" / "000002.jpg")[5:, 9:]  # 123 x 247
    prediction = predictor(image)
    grid = prediction["amwc"]["segments"].shape
    node_costs, edge_costs = predictor.predict_costs(image, grid)
    assert node_costs.shape[1:] == edge_costs.shape[2:] == grid
    thing_ids = predictor.metadata.thing_dataset_id_to_contiguous_id.values()
    solved = solve_amwc(
        node_costs.numpy(),
        edge_costs.numpy(),
        cfg.MODEL.INS_EMBED_HEAD.DISTANCES,
        np.isin(np.arange(10), list(thing_ids)),
        method=cfg.MODEL.AMWC.SOLVER.METHOD,
    )
    assert np.array_equal(solved.segments, prediction["amwc"]["segments"])


def test_wrong_input(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        run("--input", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no image"):
        run("--input", tmp_path / "empty")
    with pytest.raises(KeyError, match=r"Did you mean \['toy_panoptic_val'"):
        run("--dataset", "toy_panoptic_vla")
