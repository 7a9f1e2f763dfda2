#!/usr/bin/env python3
"""Export the network, from images to the costs of the multiway cut, for use without Detectron2.

    tools/export_model.py --config-file F --size 1024 2048 --output model.onnx \\
        --opts MODEL.WEIGHTS model_final.pth

writes model.onnx, and model.json with all that a caller must know: how to prepare an image, and
what to tell the solver. The suffix chooses the format: .onnx, .ts (TorchScript) or .pt2
(torch.export). ``amwc_d2.solver_cython.solve_amwc``, which needs NumPy alone, does the rest.
"""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from amwc_d2.config import load_config
from amwc_d2.engine.command_line import load_model, model_parser

logger = logging.getLogger("amwc_d2.export_model")

OUTPUTS = ["node_costs", "edge_costs"]


class CostNetwork(torch.nn.Module):
    """``AMWCPanoptic.predict_costs`` as the ``forward`` of a module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.predict_costs(images)


def _save_onnx(network, images, path):
    names = {"input_names": ["images"], "output_names": OUTPUTS}
    torch.onnx.export(network, (images,), path, dynamo=False, opset_version=17, **names)


def _save_torchscript(network, images, path):
    torch.jit.trace(network, images).save(str(path))


def _save_torch_export(network, images, path):
    torch.export.save(torch.export.export(network, (images,)), path)


def _load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(OUTPUTS, {"images": images.numpy()})


FORMATS = {  # suffix: (save, load), where what load returns maps images to the two costs
    ".onnx": (_save_onnx, _load_onnx),
    ".ts": (_save_torchscript, lambda path: torch.jit.load(str(path))),
    ".pt2": (_save_torch_export, lambda path: torch.export.load(path).module()),
}


@torch.no_grad()
def export_model(model, size, path, batch=1):
    """Export ``model.predict_costs`` for images of one size, and check the file against it.

    Args:
        model (AMWCPanoptic): on the CPU, in eval mode.
        size: (height, width) of the padded images; multiples of ``model.size_divisibility``.
        path: the file; its suffix is one of ``FORMATS``.
        batch: N, the images of a batch.

    Returns:
        float: the largest difference between the file's costs and the model's.

    Raises:
        ValueError: an unknown suffix, or a size that the network cannot take.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"--output '{path}': the suffix must be one of {', '.join(FORMATS)}")
    if any(side % divisor for side, divisor in zip(size, model.size_divisibility)):
        raise ValueError(
            f"--size {size[0]} {size[1]}: height and width must be multiples of "
            f"{model.size_divisibility}, to which the model pads its images"
        )
    save, load = FORMATS[path.suffix]
    channels = len(model.pixel_mean)
    images = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))
    save(CostNetwork(model).eval(), images, path)
    expected, found = model.predict_costs(images), load(path)(images)
    return max(float(np.abs(np.asarray(f) - e.numpy()).max()) for f, e in zip(found, expected))


def describe(model, cfg, size, batch=1):
    """What the caller of an exported network must know, as a dict for JSON."""
    meta = MetadataCatalog.get((tuple(cfg.DATASETS.TEST) + tuple(cfg.DATASETS.TRAIN))[0])
    return {
        "images": {
            "shape": [batch, len(cfg.MODEL.PIXEL_MEAN), *size],
            "channels": cfg.INPUT.FORMAT,
            "scaling": [cfg.INPUT.SCALING, *cfg.INPUT.SCALING_RANGE],
            "prepare": "subtract mean, divide by std, pad with 0 at the right and the bottom",
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "trained_scale": (model.card or {}).get("scale"),
        },
        "outputs": OUTPUTS,
        "stride": model.stride,
        "distances": list(model.solver.distances),
        "partitionable": [bool(p) for p in model.solver.partitionable],
        "method": model.solver.method,
        "upsampling": model.upsampling,
        "gamma": model.costs.gamma.item(),
        "thing_area": model.thing_area,
        "stuff_area": model.stuff_area,
        "classes": list(meta.stuff_classes),
    }


def main():
    parser = model_parser(__doc__)
    parser.add_argument("--size", required=True, nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    setup_logger(name="amwc_d2")

    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    model = load_model(cfg).eval()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    difference = export_model(model, args.size, args.output, args.batch)
    description = json.dumps(describe(model, cfg, args.size, args.batch), indent=2)
    args.output.with_suffix(".json").write_text(description + "\n")
    logger.info("%s: costs differ from the model's by at most %.2g", args.output, difference)


if __name__ == "__main__":
    main()
