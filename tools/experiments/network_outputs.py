"""What a trained network makes of images, kept with their ground truth on the solver's grid.

The tools that look at the solver and not at the network (check_gradient.py, calibrate.py) run the
network once and then work on these outputs.

Shape shorthand in this module:

    K: classes    D: distances    2: directions    H, W: the grid of one image    S: true segments
"""

import logging
from dataclasses import dataclass

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from amwc_d2.data.mappers import AMWCDatasetMapper
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.edges import VOID
from amwc_d2.losses.end_to_end import Truth

logger = logging.getLogger("amwc_d2.network_outputs")


@dataclass
class Output:
    """One image: logits, float32, and ground truth, on the CPU."""

    class_logits: Tensor  # (K, H, W)
    affinity_logits: Tensor  # (D, 2, H, W), at the anchor
    segments: Tensor  # int64 (stride H, stride W), true segment, -1 = void
    segment_classes: Tensor  # int64 (S,)
    segment_crowd: Tensor  # bool (S,)


def pick_images(dataset: str, count: int, seed: int = 0) -> list[dict]:
    """``count`` images of a registered dataset, drawn with a seed (all if there are fewer)."""
    samples = DatasetCatalog.get(dataset)
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    return [samples[i] for i in sorted(order)]


@torch.no_grad()
def network_outputs(cfg, model, samples: list[dict], batch_size: int = 8) -> list[Output]:
    """Run the network on whole images at test size, without augmentation.

    Args:
        cfg: the model's config; its INPUT and DATASETS.TRAIN make the targets.
        model: an ``AMWCPanoptic``; put into evaluation mode.
        samples: dicts of the DatasetCatalog.
    """
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = AMWCDatasetMapper(
        cfg,
        augmentations=[resize],
        panoptic_target_generator=AMWCTargetGenerator.from_config(cfg),
    )
    model.eval()
    outputs = []
    for start in tqdm(range(0, len(samples), batch_size), desc="network", leave=False):
        batch = [mapper(sample) for sample in samples[start : start + batch_size]]
        images = model.preprocess(batch)
        class_logits, affinity_logits = model.logits(images.tensor)
        for n, x in enumerate(batch):
            segments = whole_cells(x["segments"], model.stride)
            h, w = (length // model.stride for length in segments.shape)
            outputs.append(
                Output(
                    class_logits[n, :, :h, :w].float().cpu().contiguous(),
                    affinity_logits[n, ..., :h, :w].float().cpu().contiguous(),
                    segments,
                    x["segment_classes"],
                    x["segment_crowd"],
                )
            )
    return outputs


def whole_cells(segments: Tensor, stride: int) -> Tensor:
    """The true segments, void beyond the image as far as the last cells reach."""
    height, width = segments.shape
    return F.pad(segments, (0, -width % stride, 0, -height % stride), value=VOID)


def collate(outputs: list[Output]):
    """Batch images of any sizes.

    Returns:
        class logits (N, K, H, W), affinity logits (N, D, 2, H, W), N grid sizes, and ``Truth``.
    """
    sizes = [tuple(o.class_logits.shape[-2:]) for o in outputs]

    def stack(tensors, value=0.0):
        height, width = (max(side) for side in zip(*(t.shape[-2:] for t in tensors)))
        return torch.stack(
            [
                F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2]), value=value)
                for t in tensors
            ]
        )

    truth = Truth(
        stack([o.segments for o in outputs], VOID),
        [o.segment_classes for o in outputs],
        [o.segment_crowd for o in outputs],
    )
    return (
        stack([o.class_logits for o in outputs]),
        stack([o.affinity_logits for o in outputs]),
        sizes,
        truth,
    )
