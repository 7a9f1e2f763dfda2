"""Files from strangers: configs, checkpoints, zoos and datasets run no code and write nowhere else.

The hostile files here only touch a marker file.
"""

import csv
import hashlib
import json
import os
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from amwc_d2 import model_zoo
from amwc_d2.config import load_config
from amwc_d2.data.images import list_files
from amwc_d2.data.panoptic_format import class_metadata
from amwc_d2.engine.checkpoint import AMWCCheckpointer
from amwc_d2.evaluation import AMWCPanopticEvaluator, report


@pytest.fixture
def marker(tmp_path):
    """A path that hostile files create if their code runs; checked at the end."""
    path = tmp_path / "code_ran"
    yield path
    assert not path.exists(), "code of a file ran"


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def checkpointer():
    model = torch.nn.Linear(2, 3)
    return AMWCCheckpointer(model), {k: v.clone() for k, v in model.state_dict().items()}


# ---------------------------------------------------------------------------- configs
@pytest.mark.parametrize(
    "text, said",
    [
        ("SEED: !!python/object/apply:os.mkdir ['{}']", "not plain YAML"),
        ("SEED: !!python/name:os.system", "not plain YAML"),
        ("_BASE_: base.yaml", "not plain YAML"),
        ("_BASE_: config.yaml", "its own _BASE_"),
        ("", "holds no keys"),
        ("- 1", "holds no keys"),
        ("SEED: [", "not plain YAML"),
        ("a: &a [1]\nb: {{{{c: 1", "not plain YAML"),
    ],
)
def test_a_config_is_plain_yaml(text, said, marker, tmp_path):
    (tmp_path / "base.yaml").write_text(f"SEED: !!python/object/apply:os.mkdir ['{marker}']")
    (tmp_path / "config.yaml").write_text(text.format(marker))
    with pytest.raises(ValueError, match=said):
        load_config(tmp_path / "config.yaml")


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml' does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_all_recipes_are_plain_yaml(repository):
    for path in (repository / "configs").rglob("*.yaml"):
        load_config(path)


# ---------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("suffix", ["pth", "pkl", "pyth"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_checkpoint_is_refused(suffix, writer, marker, tmp_path):
    path = tmp_path / f"model.{suffix}"
    content = {"model": {}, "model_state": {}, "__author__": "x", "extra": Hostile(marker)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"(?s)is refused.*SECURITY.md") as error:
        checkpointer()[0].load(path)
    assert str(path) in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickled_arrays_still_load(protocol, tmp_path):
    """As in Detectron2's zoo and in Caffe2's files."""
    ours, before = checkpointer()
    arrays = {k: v.numpy() + 1 for k, v in before.items()}
    for content in (
        {"model": arrays, "__author__": "Detectron2 Model Zoo", "scale": np.float32(2)},
        {"blobs": {**arrays, "bias_momentum": arrays["bias"]}},
    ):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
        ours.load(tmp_path / "model.pkl")
        assert torch.equal(ours.model.weight, before["weight"] + 1)
        torch.save(before, tmp_path / "before.pth")
        ours.load(tmp_path / "before.pth")
        assert torch.equal(ours.model.weight, before["weight"])


def test_damaged_and_foreign_checkpoints_are_named(tmp_path):
    path = tmp_path / "model.pth"
    ours, before = checkpointer()
    torch.save({"model": {"weight": torch.ones(300, 200)}}, tmp_path / "whole.pth")
    whole = bytearray((tmp_path / "whole.pth").read_bytes())
    flipped = whole.copy()
    flipped[len(whole) // 2] ^= 255
    for content, said in [
        (whole[: len(whole) // 2], "model.pth' is (damaged|refused)"),
        (whole[:-100], "model.pth' is damaged"),
        (flipped, "model.pth' is damaged: the checksum of its part"),
        (b"", "model.pth' is empty"),
        (b"<html>not found</html>", "model.pth' is (damaged|refused)"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            ours.load(path)
    for content in ([1, 2], "text", 3, {"model": {"weight": [1]}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"model.pth' is no checkpoint: expected a dict"):
            ours.load(path)
    for content in ({}, {"model": {"encoder": torch.ones(3), "weight": torch.ones(3)}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"nothing in the checkpoint .* fits"):
            ours.load(path)
    torch.save({"weight": before["weight"]}, path)
    ours.load(path)
    with pytest.raises(ValueError, match=r"lacks weights.*bias \(1 tensors\); the first is bias"):
        ours.load_whole(path)
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS is empty"):
        ours.load_whole("")
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth' is not there"):
        ours.load(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"is a folder"):
        ours.load(tmp_path)


# ---------------------------------------------------------------------------- zoos
def make_zoo(root, file="model.pth", content=b"weights", sha256=None):
    entry = {"checkpoint": file, "sha256": sha256 or hashlib.sha256(content).hexdigest()}
    (root / "m").mkdir(parents=True, exist_ok=True)
    (root / "index.json").write_text(json.dumps({"m": entry}))
    if "/" not in str(file):
        (root / "m" / file).write_bytes(content)
    return root


@pytest.mark.parametrize(
    "file", ["model.pkl", "../../evil.pth", "/etc/evil.pth", "a/b.pth", ".pth", "a\n.pth", 3]
)
def test_a_zoo_names_plain_files(file, tmp_path):
    root = make_zoo(tmp_path, "model.pth")
    entry = json.loads((root / "index.json").read_text())["m"]
    (root / "index.json").write_text(json.dumps({"m": {**entry, "checkpoint": file}}))
    with pytest.raises(ValueError, match=r"expected the plain name of a .pth file"):
        model_zoo.get_checkpoint_path("m", root)


@pytest.mark.parametrize("index", ["", "[]", "<html>", '{"m": 3}', '{"m": {}}'])
def test_a_wrong_index_is_named(index, tmp_path):
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ValueError, match=f"zoo '{tmp_path}'"):
        model_zoo.get("m", root=tmp_path)


class Server(BaseHTTPRequestHandler):
    """Serves a folder; /drip sends a byte now and then, /silent nothing, /short half."""

    root = None

    def do_GET(self):
        content = b"x" * 1000
        if self.path.startswith("/silent"):
            time.sleep(3)
            return
        if (self.root / self.path.lstrip("/")).is_file():
            content = (self.root / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        if not self.path.startswith("/drip"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path.startswith("/drip"):
            for _ in range(30):
                self.wfile.write(b" ")
                time.sleep(0.1)
            return
        self.wfile.write(content[: len(content) // 2] if "/short" in self.path else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_zoo, "SECONDS", 0.3)
    handler = type("Here", (Server,), {"root": tmp_path / "served"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path
        server.shutdown()


def test_downloads_are_checked_before_they_are_kept(server):
    url, folder = server
    make_zoo(folder / "served/whole")
    path = model_zoo.get_checkpoint_path("m", f"{url}/whole")
    assert path.startswith(str(folder / "cache")) and Path(path).read_bytes() == b"weights"
    # The same path with other content, as on another host: the cache goes by the hash.
    make_zoo(folder / "served/whole", content=b"others")
    assert Path(model_zoo.get_checkpoint_path("m", f"{url}/whole")).read_bytes() == b"others"

    make_zoo(folder / "served/wrong", content=b"wrong", sha256="0" * 64)
    with pytest.raises(ValueError, match=r"has SHA-256 .* released with 0000"):
        model_zoo.get_checkpoint_path("m", f"{url}/wrong")
    make_zoo(folder / "served/short", content=b"half of it")
    (folder / "served/short/index.json").rename(folder / "served/index.json")
    with pytest.raises((OSError, ValueError)):
        model_zoo.get_checkpoint_path("m", f"{url}/short")
    kept = [p.read_bytes() for p in (folder / "cache").rglob("*") if p.is_file()]
    assert sorted(kept) == [b"others", b"weights"]


@pytest.mark.parametrize("kind", ["drip", "silent"])
def test_a_server_that_does_not_answer_is_left(server, kind):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"no model zoo at .*(timed out|per second)"):
        model_zoo.names(f"{server[0]}/{kind}")
    assert time.monotonic() - start < 2.5


def test_other_protocols_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder or an http\(s\) URL"):
        model_zoo.names(f"file://{tmp_path}")


# ---------------------------------------------------------------------------- datasets
@pytest.mark.parametrize("file", ["../victim.png", "/tmp/victim.png", "a/../../victim.png", ""])
def test_predictions_stay_in_the_output_folder(file, register_scenes, tmp_path):
    segment = {"id": 1, "category_id": 7, "area": 12, "iscrowd": 0}
    category = {"id": 7, "name": "cell", "isthing": 1}
    name = register_scenes([(np.ones((3, 4), np.int32), [segment])], [category])
    path = Path(MetadataCatalog.get(name).panoptic_json)
    truth = json.loads(path.read_text())
    truth["annotations"][0]["file_name"] = file
    path.write_text(json.dumps(truth))
    with pytest.raises(ValueError, match=r"leads out of its folder"):
        AMWCPanopticEvaluator(name, tmp_path / "out")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\ud800", "\x00", None, 3])
def test_class_names_are_printable(name):
    with pytest.raises(ValueError, match=r"category 1 has the name"):
        class_metadata([{"id": 1, "name": name, "isthing": 1}], "x.json")
    class_metadata([{"id": 1, "name": "<b>Zellkörper & 核</b>", "isthing": 1}], "x.json")


def test_symbolic_links_in_a_circle_end(tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a/1.png").touch()
    for link, target in (("l1", "."), ("l2", "."), ("a/up", ".."), ("b", "a")):
        (folder / link).symlink_to(target, target_is_directory=True)
    assert [str(p) for p in list_files(folder)] == ["a/1.png", "b/1.png"]


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    report._write_csv(tmp_path / "x.csv", [{"class": "=cmd|'/c calc'!A0", "PQ": -1.5}])
    with open(tmp_path / "x.csv", newline="") as f:
        assert list(csv.reader(f))[1] == ["'=cmd|'/c calc'!A0", "-1.5"]
