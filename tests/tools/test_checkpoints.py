"""Releasing checkpoints, and the zoo they are loaded from by name."""

import functools
import json
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import release_checkpoint as tool
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor

from amwc_d2 import Trainer, model_zoo, register_panoptic_dataset
from amwc_d2.config import load_config
from amwc_d2.data.toy_dataset import make_toy_dataset

NAME = "toy_two_steps"


@pytest.fixture(scope="module")
def run(repository, toy_root, tmp_path_factory):
    """OUTPUT_DIR of a training of two steps."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config(
        repository / "configs/Toy-PanopticSegmentation/amwc_R18.yaml",
        ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", str(folder),
         "MODEL.AMWC.CALIBRATION_IMAGES", 0,
         "DATASETS.TEST", ()],
    )  # fmt: skip
    trainer = Trainer(cfg)
    trainer.train()
    cfg.DATASETS.TEST = ("toy_panoptic_val",)
    cfg.TEST.ORACLE = "semantic"  # of the last evaluation, none of the release's
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="module")
def zoo(run, tmp_path_factory):
    """A zoo with one release, in half precision."""
    folder = tmp_path_factory.mktemp("zoo")
    tool.release(NAME, run, "model_final.pth", True, folder)
    return folder


def test_release_holds_tensors_only_and_no_path(zoo, run):
    (checkpoint,) = (zoo / NAME).glob("*.pth")
    assert checkpoint.name == f"model_{model_zoo.file_hash(checkpoint)[:8]}.pth"
    content = torch.load(checkpoint, weights_only=True)
    trained = torch.load(run / "model_final.pth", weights_only=True)["model"]
    assert set(content) == {"model"} and set(content["model"]) == set(trained)
    for name, value in content["model"].items():
        half = trained[name].dim() > 1
        assert value.dtype == (torch.float16 if half else trained[name].dtype), name
        torch.testing.assert_close(
            value.to(trained[name].dtype), trained[name], rtol=1e-3, atol=1e-6
        )
    for path in (zoo / NAME).iterdir():
        if path.suffix != ".pth":
            assert str(run) not in path.read_text() and str(zoo) not in path.read_text()
    assert (zoo / NAME / "log.jsonl").read_text() == (run / "metrics.json").read_text()
    assert tool.write_checkpoint(run / "model_final.pth", run, True).name == checkpoint.name


def test_loading_by_name_reproduces_the_metrics(zoo, tmp_path):
    assert model_zoo.names(zoo) == [NAME]
    model = model_zoo.get(NAME, root=zoo)
    assert not model.training
    cfg = model_zoo.get_config(NAME, root=zoo)
    cfg.OUTPUT_DIR = str(tmp_path)
    results = json.loads(json.dumps(Trainer.test(cfg, model)))
    released = model_zoo.get_metrics(NAME, zoo)
    assert released["images"] == 6
    assert results["panoptic_seg"] == released["results"]["panoptic_seg"]


def test_a_release_can_be_evaluated_again(zoo, tmp_path):
    """After the solver has changed: only what was measured is written."""
    path = zoo / NAME / "metrics.json"
    files = {p.name: p.read_bytes() for p in (zoo / NAME).iterdir() if p != path}
    metrics = json.loads(path.read_text())
    path.write_text("{}")
    assert tool.evaluate(NAME, zoo) == zoo / NAME
    renewed = json.loads(path.read_text())
    assert renewed["results"]["panoptic_seg"] == metrics["results"]["panoptic_seg"]
    assert renewed["dataset"] == metrics["dataset"]
    assert files == {p.name: p.read_bytes() for p in (zoo / NAME).iterdir() if p != path}


def test_wrong_commands_are_refused_before_anything_is_lost(run, tmp_path, capsys):
    for command, said in [
        ([NAME, "--half"], "without a run"),
        ([NAME, "--checkpoint", "model_final.pth"], "without a run"),
        ([NAME, str(tmp_path)], "holds no model_final.pth"),
        ([NAME, str(run), "--checkpoint", "model_9.pth"], "holds no model_9.pth"),
    ]:
        with pytest.raises(SystemExit):
            tool.parse_args(command)
        assert said in capsys.readouterr().err
    assert tool.parse_args([NAME, str(run)]).checkpoint == "model_final.pth"


def test_a_release_that_fails_leaves_the_zoo_as_it_was(zoo, run, tmp_path):
    for file in ("model_final.pth", "metrics.json"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    config = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("toy_panoptic_train", "no_such_train"))
    before = {p: p.read_bytes() for p in zoo.rglob("*") if p.is_file()}
    with pytest.raises((KeyError, AttributeError)):
        tool.release(NAME, tmp_path, "model_final.pth", True, zoo)
    assert before == {p: p.read_bytes() for p in zoo.rglob("*") if p.is_file()}


def test_untrained(zoo):
    cfg = model_zoo.get_config(NAME, trained=False, root=zoo)
    assert cfg.MODEL.WEIGHTS == cfg.TEST.ORACLE == ""
    torch.manual_seed(0)
    untrained = model_zoo.get(NAME, trained=False, root=zoo).sem_seg_head.predictor.weight
    assert not torch.equal(untrained, model_zoo.get(NAME, root=zoo).sem_seg_head.predictor.weight)


def test_default_predictor_on_a_bgr_array(zoo):
    predict = DefaultPredictor(model_zoo.get_config(NAME, root=zoo))
    image = np.random.default_rng(0).integers(0, 256, (75, 90, 3), dtype=np.uint8)
    panoptic, segments_info = predict(image)["panoptic_seg"]
    assert panoptic.shape == (75, 90)
    assert {s["id"] for s in segments_info} == set(panoptic.unique().tolist()) - {0}


def test_classes_are_known_without_the_data(zoo, tmp_path):
    """A model of somebody's own dataset must work where that dataset is not."""
    folder = tmp_path / NAME
    folder.mkdir()
    (tmp_path / "index.json").write_bytes((zoo / "index.json").read_bytes())
    for path in (zoo / NAME).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("toy_panoptic", "elsewhere_panoptic"))
    try:
        model = model_zoo.get(NAME, root=tmp_path)
        assert model.thing_ids == model_zoo.get(NAME, root=zoo).thing_ids
        classes = MetadataCatalog.get("elsewhere_panoptic_val").stuff_classes
        assert classes == MetadataCatalog.get("toy_panoptic_val").stuff_classes
    finally:
        for split in ("train", "val"):
            MetadataCatalog.remove(f"elsewhere_panoptic_{split}")


def test_zoo_at_a_url(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(zoo))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AMWC_D2_MODEL_ZOO", f"http://127.0.0.1:{server.server_port}")
        path = model_zoo.get_checkpoint_path(NAME)
        cfg = model_zoo.get_config(NAME)
        server.shutdown()
    assert path.startswith(str(tmp_path)) and path == cfg.MODEL.WEIGHTS
    assert model_zoo.file_hash(path) == model_zoo.file_hash(
        model_zoo.get_checkpoint_path(NAME, zoo)
    )


def test_wrong_names_and_files_are_named(zoo, tmp_path):
    with pytest.raises(KeyError, match=f"'nothing'; there are .*{NAME}"):
        model_zoo.get("nothing", root=zoo)
    with pytest.raises(FileNotFoundError, match="AMWC_D2_MODEL_ZOO"):
        model_zoo.names(tmp_path / "nowhere")
    (tmp_path / NAME).mkdir()
    (tmp_path / "index.json").write_bytes((zoo / "index.json").read_bytes())
    (checkpoint,) = (zoo / NAME).glob("*.pth")
    (tmp_path / NAME / checkpoint.name).write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"SHA-256 .* was released with"):
        model_zoo.get_checkpoint_path(NAME, tmp_path)


def test_page_is_renewed(zoo, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tool.TABLE_START}\nold\n{tool.TABLE_END}\nafter\n")
    tool.update_page(page, zoo)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert f"| `{NAME}` | trained | toy_panoptic_val (6) |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="START TABLE"):
        tool.update_page(page, zoo)


# ---------------------------------------------------------------------------- what is released here
def test_page_claims_what_was_measured(repository):
    """The page's table is that of the releases' own metrics; recipes without one have no number."""
    page = (repository / "MODEL_ZOO.md").read_text()
    table = page.partition(tool.TABLE_START)[2].partition(tool.TABLE_END)[0].strip()
    zoo = repository / "checkpoints"
    assert table == (tool.zoo_table(zoo) if (zoo / "index.json").exists() else "")
    recipes = page.partition("## Recipes")[2].partition("## Releasing")[0]
    for line in recipes.splitlines():
        if line.startswith("| ["):
            assert line.endswith("| not trained |")
            (config,) = re.findall(r"\]\((configs/[^)]*)\)", line)
            assert (repository / config).is_file()


def released_toy_models():
    """Names of the repository's checkpoints for the toy set, which can be drawn anywhere."""
    index = model_zoo.REPOSITORY_ZOO / "index.json"
    released = json.loads(index.read_text()) if index.exists() else {}
    return sorted(name for name in released if name.startswith("toy_"))


@pytest.mark.slow
@pytest.mark.parametrize("name", released_toy_models())
def test_released_model_reproduces_its_metrics(name, tmp_path_factory):
    """From its name alone, on the full val set (image i of the toy set is always the same)."""
    released = model_zoo.get_metrics(name)
    root = make_toy_dataset(
        tmp_path_factory.getbasetemp() / "released", num_train=1, num_val=released["images"]
    )
    dataset = f"{name}_val"
    register_panoptic_dataset(
        dataset, root / "val", root / "panoptic_val", root / "panoptic_val.json"
    )
    try:
        cfg = model_zoo.get_config(name)
        cfg.DATASETS.TEST = (dataset,)
        cfg.OUTPUT_DIR = str(tmp_path_factory.mktemp("out"))
        results = Trainer.test(cfg, model_zoo.get(name))
    finally:
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)
    for key in ("PQ", "PQ_th", "PQ_st"):
        expected = released["results"]["panoptic_seg"][key]
        assert results["panoptic_seg"][key] == pytest.approx(expected, abs=0.05)


def test_recipes_by_name():
    cfg = load_config(model_zoo.get_config_file("COCO-PanopticSegmentation/amwc_R50_e2e.yaml"))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
    with pytest.raises(FileNotFoundError, match=r"no recipe is called 'a.yaml'.*DSB2018"):
        model_zoo.get_config_file("a.yaml")
