"""tools/collect_corrections.py: what pages save becomes a dataset."""

import json

import collect_corrections
import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

from amwc_d2.data.panoptic_format import load_panoptic_json

CATEGORIES = [
    {"id": 7, "name": "background", "isthing": 0, "color": [0, 0, 0]},
    {"id": 9, "name": "cell", "isthing": 1, "color": [200, 0, 0]},
]


@pytest.fixture
def saved(tmp_path):
    """Two corrected images as pages save them, and their images."""
    ids = np.ones((6, 8), np.uint32)
    ids[2:4, 3:6] = 2
    segments = [
        {"id": 1, "category_id": 7, "area": 42, "iscrowd": 0, "bbox": [0, 0, 8, 6]},
        {"id": 2, "category_id": 9, "area": 6, "iscrowd": 0, "bbox": [3, 2, 3, 2]},
    ]
    files = []
    for stem in ("a", "b"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{stem}.jpg")
        Image.fromarray(id2rgb(ids)).save(tmp_path / f"{stem}.png")
        image = {"id": 0, "file_name": f"{stem}.jpg", "height": 6, "width": 8}
        annotation = {"image_id": 0, "file_name": f"{stem}.png", "segments_info": segments}
        panoptic = {"images": [image], "annotations": [annotation], "categories": CATEGORIES}
        files.append(tmp_path / f"{stem}.panoptic.json")
        files[-1].write_text(json.dumps(panoptic))
    return files


def test_a_dataset_that_loads(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_corrections, "datasets_root", lambda: tmp_path / "datasets")
    args = [*map(str, saved), "--images", str(tmp_path), "--name", "fixed"]
    folder = collect_corrections.main(collect_corrections.get_parser().parse_args(args))
    samples = load_panoptic_json(
        folder / "panoptic_train.json", folder / "train", folder / "panoptic_train"
    )
    assert [s["image_id"] for s in samples] == [1, 2]
    assert [s["category_id"] for s in samples[1]["segments_info"]] == [0, 1]
    with pytest.raises(FileExistsError):
        collect_corrections.collect(saved, tmp_path, folder)


def test_what_does_not_go_together_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"are both of image a\.jpg: keep one"):
        collect_corrections.collect([saved[0], saved[0]], tmp_path, tmp_path / "out")
    other = json.loads(saved[1].read_text())
    other["categories"][0]["id"] = 8
    saved[1].write_text(json.dumps(other))
    with pytest.raises(ValueError, match="other categories"):
        collect_corrections.collect(saved, tmp_path, tmp_path / "out")
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png is missing"):
        collect_corrections.collect(saved[:1], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
