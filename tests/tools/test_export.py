"""Exported networks give the model's costs, and through the solver its segments."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from export_model import describe, export_model
from helpers import load, toy_batch
from scipy.optimize import linear_sum_assignment

from amwc_d2.solver_cython import refine_labels, solve_amwc

TOY = "Toy-PanopticSegmentation/amwc_R18.yaml"
SIZE = (128, 256)
PREPARE_AND_SOLVE = """
import json, sys
import numpy, onnxruntime
sys.modules["torch"] = sys.modules["detectron2"] = None  # must do without
from amwc_d2.solver_cython import refine_labels, solve_amwc

model, description, image, output = sys.argv[1:]
info = json.load(open(description))
x = numpy.load(image).astype(numpy.float32)
x = (x - numpy.reshape(info["images"]["mean"], (3, 1, 1))) / numpy.reshape(
    info["images"]["std"], (3, 1, 1))
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
node_costs, edge_costs = session.run(info["outputs"], {"images": x[None].astype(numpy.float32)})
solution = solve_amwc(node_costs[0], edge_costs[0], info["distances"], info["partitionable"],
                      method=info["method"])
classes, segments = refine_labels(
    solution, node_costs[0], edge_costs[0], info["distances"], stride=info["stride"],
    image_size=x.shape[1:], output_size=x.shape[1:], gamma=info["gamma"])
numpy.save(output, numpy.stack([classes, segments]))
"""


@pytest.fixture(scope="module")
def model(repository, toy_root):
    """A model with confident costs: nothing is a matter of the last digit."""
    torch.manual_seed(0)
    model = build_model(load(repository, TOY)).eval()
    for layer in (
        model.sem_seg_head.predictor,
        *(c.predictor for c in model.ins_embed_head.classifiers),
    ):
        torch.nn.init.normal_(layer.weight, 0, 1)
    return model


def agreement(first, second):
    """Share of cells in segments that correspond, one to one."""
    overlap = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(overlap, (first.ravel(), second.ravel()), 1)
    return overlap[linear_sum_assignment(overlap, maximize=True)].sum() / first.size


@pytest.mark.parametrize("suffix", [".onnx", ".ts", ".pt2"])
def test_costs_are_those_of_the_model(suffix, model, tmp_path):
    assert export_model(model, SIZE, tmp_path / f"model{suffix}") < 1e-4 * costs_size(model)


def costs_size(model):
    """The largest cost on noise, by which differences are measured."""
    with torch.no_grad():
        return max(float(c.abs().max()) for c in model.predict_costs(torch.randn(1, 3, *SIZE)))


def test_onnxruntime_and_solver_give_the_model_s_segments(model, repository, tmp_path):
    """In a process that has neither torch nor Detectron2."""
    (image,) = toy_batch([SIZE])
    with torch.no_grad():
        (result,) = model([image])
    assert result["amwc"]["segments"].max() > 5

    onnx, script = tmp_path / "model.onnx", tmp_path / "solve.py"
    export_model(model, SIZE, onnx)
    description = describe(model, load(repository, TOY), SIZE)
    onnx.with_suffix(".json").write_text(json.dumps(description))
    np.save(tmp_path / "image.npy", image["image"].numpy())
    script.write_text(PREPARE_AND_SOLVE)
    files = [onnx, onnx.with_suffix(".json"), tmp_path / "image.npy", tmp_path / "labels.npy"]
    subprocess.run([sys.executable, script, *files], check=True, cwd=repository)
    classes, segments = np.load(tmp_path / "labels.npy")
    assert (classes == result["classes"].numpy()).mean() >= 0.999
    model.thing_area = model.stuff_area = 0  # so that panoptic_seg shows every segment
    with torch.no_grad():
        (result,) = model([image])
    assert agreement(segments, result["panoptic_seg"][0].numpy()) >= 0.999


def test_eager_costs_and_solver_are_the_model(model):
    (image,) = toy_batch([SIZE])
    with torch.no_grad():
        (result,) = model([image])
        images = model.preprocess([image]).tensor
        node_costs, edge_costs = (c[0].numpy() for c in model.predict_costs(images))
    settings = model.solver
    solution = solve_amwc(node_costs, edge_costs, settings.distances, settings.partitionable)
    assert np.array_equal(solution.segments, result["amwc"]["segments"])
    classes, _ = refine_labels(
        solution,
        node_costs,
        edge_costs,
        settings.distances,
        stride=4,
        image_size=SIZE,
        output_size=SIZE,
        gamma=model.costs.gamma.item(),
    )
    assert np.array_equal(classes, result["classes"].numpy())


def test_wrong_size_and_suffix_are_named(model, tmp_path):
    with pytest.raises(ValueError, match=r"--size 100 256: .*multiples of \(128, 256\)"):
        export_model(model, (100, 256), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"suffix must be one of \.onnx, \.ts, \.pt2"):
        export_model(model, SIZE, tmp_path / "model.pb")
