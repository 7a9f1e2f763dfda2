"""Evaluation with its parts side by side: same results, same order, errors, bounded memory."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from helpers import load, toy_batch

from amwc_d2.evaluation.loop import MAX_WAITING, evaluate, run_inference

TOY = "Toy-PanopticSegmentation/amwc_R18.yaml"


class Collector:
    """An evaluator that keeps what it sees."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        assert not torch.is_grad_enabled()
        self.seen.append((inputs, outputs))

    def evaluate(self):
        return {"seen": len(self.seen)}


class Steps(torch.nn.Module):
    """A model whose network and solver only count, and may fail."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at, self.predicted, self.labelled = fail_at, 0, 0

    def predict(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        self.predicted += 1
        return inputs[0]

    def label(self, inputs, prediction):
        assert not torch.is_grad_enabled()
        if prediction == self.fail_at:
            raise RuntimeError(f"image {prediction} is bad")
        self.labelled += 1
        return [prediction]


def test_the_same_as_one_after_the_other(repository, toy_root):
    """Batches of two images, the last one smaller, of different sizes."""
    model = build_model(load(repository, TOY)).train()
    batch = toy_batch([(64, 128), (50, 90), (64, 100), (33, 128), (64, 128)])
    batches = [batch[:2], batch[2:4], batch[4:]]
    evaluator = Collector()
    assert evaluate(model, batches, evaluator) == {"seen": 3}
    assert model.training
    model.eval()
    for inputs, (seen, outputs) in zip(batches, evaluator.seen):
        assert seen is inputs
        with torch.no_grad():
            expected = model(inputs)
        for found, wanted in zip(outputs, expected):
            assert torch.equal(found["panoptic_seg"][0], wanted["panoptic_seg"][0])
            assert found["panoptic_seg"][1] == wanted["panoptic_seg"][1]
            assert torch.equal(found["sem_seg"], wanted["sem_seg"])
            assert found["amwc"]["objective"] == wanted["amwc"]["objective"]


def test_order_and_count():
    evaluator = Collector()
    evaluator.reset()
    count, seconds, parts = run_inference(Steps(), [[i] for i in range(50)], evaluator)
    assert count == 50 and seconds > 0
    assert set(parts) == {"data", "network", "labels", "evaluator"}
    assert evaluator.seen == [([i], [i]) for i in range(50)]


def test_network_and_solver_run_at_the_same_time():
    """Each waits for the other: one after the other, they would wait in vain."""
    network_is_at = {i: threading.Event() for i in range(4)}

    class Model(Steps):
        def predict(self, inputs):
            network_is_at[inputs[0]].set()
            return inputs[0]

        def label(self, inputs, prediction):
            if prediction + 1 in network_is_at:
                assert network_is_at[prediction + 1].wait(60), "the network waited for the solver"
            return [prediction]

    run_inference(Model(), [[i] for i in range(4)], SimpleNamespace(process=lambda *_: None))


def test_network_does_not_run_away():
    """A slow evaluator holds the network back, so that memory is bounded."""
    model, ahead = Steps(), []

    def process(inputs, outputs):
        time.sleep(0.02)
        ahead.append(model.predicted - inputs[0])

    run_inference(model, [[i] for i in range(20)], SimpleNamespace(process=process))
    assert max(ahead) <= MAX_WAITING + 1


@pytest.mark.parametrize("part", ["data", "labels", "evaluator"])
def test_errors_come_out(part):
    """The first error of any thread ends the run."""

    def data():
        for i in range(1000):
            if part == "data" and i == 3:
                raise RuntimeError("image 3 is bad")
            yield [i]

    def process(inputs, outputs):
        if part == "evaluator" and inputs[0] == 3:
            raise RuntimeError("image 3 is bad")

    model = Steps(fail_at=3 if part == "labels" else None)
    with pytest.raises(RuntimeError, match="image 3 is bad"):
        run_inference(model, data(), SimpleNamespace(process=process))
    assert model.predicted <= 4 + MAX_WAITING + 1
