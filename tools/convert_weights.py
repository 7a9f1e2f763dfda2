#!/usr/bin/env python3
"""Convert a torchvision ResNet into a checkpoint of the backbone.

    tools/convert_weights.py resnet50-0676ba61.pth output/resnet50.pth
    tools/train_net.py ... MODEL.WEIGHTS output/resnet50.pth \\
        MODEL.RESNETS.STEM_TYPE basic MODEL.RESNETS.STEM_OUT_CHANNELS 64

torchvision's ResNet has a stem of one convolution, hence the two keys; its images are prepared as
in our recipes (RGB, the same mean and standard deviation).
"""

import argparse
import logging
import re
from pathlib import Path

import torch
from detectron2.utils.logger import setup_logger

logger = logging.getLogger("amwc_d2.convert_weights")

RULES = [  # applied in this order; every name must match the last one afterwards
    (r"^(conv|bn)1\.", r"stem.\g<1>1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
]
KNOWN = re.compile(r"(stem|res[2-5]\.\d+)\.(conv\d|shortcut)\.(norm\.)?\w+")


def convert_resnet(weights):
    """Rename the tensors of a torchvision ResNet; its classifier is left out.

    Args:
        weights: dict from torchvision's names to tensors.

    Returns:
        dict from the names in ``AMWCPanoptic`` to tensors.

    Raises:
        ValueError: a name that is not of torchvision's ResNet.
    """
    converted = {}
    for name, tensor in weights.items():
        if name.startswith("fc."):
            continue
        new_name = name
        for pattern, replacement in RULES:
            new_name = re.sub(pattern, replacement, new_name)
        if not KNOWN.fullmatch(new_name):
            raise ValueError(f"'{name}' is no tensor of a torchvision ResNet (18 to 152 layers)")
        converted[f"backbone.{new_name}"] = tensor
    return converted


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="state dict of torchvision.models.resnet*")
    parser.add_argument("target", type=Path, help="the .pth to write")
    args = parser.parse_args()
    setup_logger(name="amwc_d2")
    weights = convert_resnet(torch.load(args.source, map_location="cpu", weights_only=True))
    args.target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights}, args.target)
    logger.info("%s: %d tensors of the backbone", args.target, len(weights))


if __name__ == "__main__":
    main()
