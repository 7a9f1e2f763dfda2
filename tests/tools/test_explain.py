"""tools/explain.py: a page for each image."""

import explain
import pytest

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
