"""tools/explain.py: a page for each image."""

import json

import explain
import pytest

from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.data.toy_scenes import CATEGORIES

CONFIG = "configs/Toy-PanopticSegmentation/amwc_R18.yaml"
OPTIONS = ["--opts", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def run(repository, tmp_path):
    def run(*args):
        command = [*args, "--config-file", repository / CONFIG, "--output", tmp_path / "out"]
        return explain.main(explain.get_parser().parse_args([str(a) for a in [*command, *OPTIONS]]))

    return run


def test_images_and_datasets(run, toy_root):
    assert [page.name for page in run(toy_root / "val" / "000001.jpg")] == ["000001.html"]
    pages = run("--dataset", "toy_panoptic_val", "--num", 1)
    text = pages[0].read_text()
    assert text.startswith("<!doctype html>") and '"state":' in text


def test_one_source_is_needed(run):
    with pytest.raises(SystemExit, match="one of the two"):
        run()


def test_corrections_are_applied_to_the_image_of_their_name(run, toy_root, tmp_path):
    clicks = {
        "format": "amwc_d2 clicks 1", "file_name": "elsewhere/000001.jpg", "height": 128,
        "width": 256, "class_offsets": [0] * 10, "distance_offsets": [0] * 5,
        "clicks": [{"tool": "carve", "points": [[9, 100]], "class": 7}],
    }  # fmt: skip
    file = tmp_path / "000001.clicks.json"
    file.write_text(json.dumps(clicks))
    (saved,) = run(toy_root / "val", "--corrections", file)
    segments = json.loads(saved.read_text())["annotations"][0]["segments_info"]
    ids = read_panoptic_png(saved.with_name("000001.png"))
    (clicked,) = (s for s in segments if s["id"] == ids[100, 9])
    assert clicked["category_id"] == CATEGORIES[7]["id"]
    with pytest.raises(ValueError, match="0 images have this name, not 1"):
        run(toy_root / "val" / "000002.jpg", "--corrections", file)
