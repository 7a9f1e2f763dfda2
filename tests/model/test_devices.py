"""No code assumes the CPU or a GPU, and tensors move between them once.

The network and stage 1 run on a *fake* GPU: every operation checks its devices and computes
nothing, so that no GPU is needed. The solver's side is real and on the CPU.
"""

from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import load, toy_batch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Transfers(TorchDispatchMode):
    """Counts copies from the CPU to the GPU and back; a scalar that is read counts as 0."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count["scalar read"] += args[0].device.type == "cuda"
            return False if args[0].dtype == torch.bool else 0.0
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            source, target = args[0].device.type, result.device.type
            if source != target:
                self.count[f"{source} to {target}"] += 1
        return result


@pytest.fixture
def fake_gpu(repository, toy_root):
    """A toy model on a fake GPU, and a batch of two images on the CPU."""
    model = build_model(load(repository, "Toy-PanopticSegmentation/amwc_R18.yaml"))
    batch = toy_batch([(128, 256), (101, 203)])
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    gpu = torch.empty(p.shape, device="cuda")
                    module._parameters[name] = torch.nn.Parameter(gpu, p.requires_grad)
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cuda")
        yield model, batch


def test_stage_1_moves_each_image_and_target_once(fake_gpu):
    model, batch = fake_gpu
    with EventStorage(), Transfers() as transfers:
        images = model.train().preprocess(batch)
        losses = model.pretrain_losses(batch, images, *model.logits(images.tensor))
    assert all(loss.device.type == "cuda" and loss.requires_grad for loss in losses.values())
    targets = ("sem_seg", "sem_seg_weights", "segments", "affinity_weights")
    assert transfers.count == {
        "cpu to cuda": len(batch) * (1 + len(targets)),
        "scalar read": len(model.solver.distances),  # for the log
    }


def test_inference_moves_only_the_costs_to_the_solver(fake_gpu):
    model, batch = fake_gpu
    with torch.no_grad(), Transfers() as transfers:
        prediction = model.eval().predict(batch)
    assert prediction.class_logits.device.type == "cuda"
    assert prediction.node_costs.device.type == prediction.edge_costs.device.type == "cpu"
    assert transfers.count == {
        "cpu to cuda": len(batch),
        "cuda to cpu": 2,  # node costs and edge costs
        "scalar read": 2,  # are all costs finite?
    }
