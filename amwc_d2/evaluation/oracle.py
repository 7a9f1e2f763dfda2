"""Oracles: the ground truth in place of the network's costs, for upper bounds (paper A.8).

``TEST.ORACLE`` says which costs are replaced at inference: those of the classes
("semantic", Table 7 of the paper), those of the edges ("affinity") or "both", which leaves only
what the grid cannot hold. Where the truth is unknown, the network's costs stay.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid, padded
    h, w: one image's part of the grid
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amwc_d2.data.mappers import InferenceMapper
from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.edges import VOID
from amwc_d2.losses.affinity import affinity_targets
from amwc_d2.refinement import sample_cells

ORACLES = ("", "semantic", "affinity", "both")
CERTAIN = 1000.0  # cost of contradicting the truth; more than all edges of a cell together


@dataclass
class GridTruth:
    """The ground truth of one image at the centres of its cells; -1 (``VOID``) = unknown.

    Attributes:
        classes: int64 (h, w). segments: int64 (h, w), unknown in crowd regions too.
    """

    classes: Tensor
    segments: Tensor


def oracle_costs(
    node_costs: Tensor, edge_costs: Tensor, truths: list[GridTruth], distances, oracle: str
) -> tuple[Tensor, Tensor]:
    """Costs with the truth in them.

    Args:
        node_costs: float32 (N, K, H, W). edge_costs: float32 (N, D, 2, H, W), at the anchor.
        truths: N, each of its image's part of the grid.
        distances: the D edge distances.
        oracle: one of ``ORACLES``. "semantic": 0 for the true class and ``CERTAIN`` for the
            others; "affinity": plus or minus ``CERTAIN`` as the ends lie in one true segment or
            in two; "both"; "": nothing.

    Returns:
        node costs and edge costs, new tensors where they differ; unchanged on void cells, and on
        edges with an end on void or crowd.
    """
    height, width = node_costs.shape[-2:]

    def stack(labels):
        return torch.stack(
            [F.pad(x, (0, width - x.shape[1], 0, height - x.shape[0]), value=VOID) for x in labels]
        )

    if oracle in ("semantic", "both"):
        classes = stack([truth.classes for truth in truths])
        others = 1 - F.one_hot(classes.clamp(min=0), node_costs.shape[1]).movedim(-1, 1)
        node_costs = torch.where((classes != VOID)[:, None], CERTAIN * others, node_costs)
    if oracle in ("affinity", "both"):
        segments = stack([truth.segments for truth in truths])
        same, known = affinity_targets(segments, (segments != VOID).float(), distances)
        edge_costs = torch.where(known > 0, CERTAIN * (2 * same - 1), edge_costs)
    return node_costs, edge_costs


def check_oracle(oracle: str) -> None:
    """Raise a ValueError for anything that is not one of ``ORACLES``."""
    if oracle not in ORACLES:
        raise ValueError(f"TEST.ORACLE must be one of {ORACLES}, got '{oracle}'")


class OracleModel(nn.Module):
    """An ``AMWCPanoptic`` at inference, with the truth in its costs."""

    def __init__(self, model, oracle: str):
        """
        Args:
            model (AMWCPanoptic): or ``DistributedDataParallel`` around one.
            oracle: one of ``ORACLES``.

        Raises:
            ValueError: an unknown oracle.
        """
        super().__init__()
        check_oracle(oracle)
        self.model = getattr(model, "module", model)
        self.oracle = oracle

    def predict(self, batched_inputs):
        """See ``AMWCPanoptic.predict``."""
        return self.with_truth(batched_inputs, self.model.predict(batched_inputs))

    def with_truth(self, batched_inputs, prediction):
        """The prediction with the truth that came with the images in its costs.

        Raises:
            ValueError: an image has no ``grid_truth``.
        """
        for x in batched_inputs:
            if "grid_truth" not in x:
                raise ValueError(missing_truth(x))
        node_costs, edge_costs = oracle_costs(
            prediction.node_costs,
            prediction.edge_costs,
            [x["grid_truth"] for x in batched_inputs],
            self.model.solver.distances,
            self.oracle,
        )
        return replace(prediction, node_costs=node_costs, edge_costs=edge_costs)

    def label(self, batched_inputs, prediction):
        """See ``AMWCPanoptic.label``."""
        return self.model.label(batched_inputs, prediction)

    def forward(self, batched_inputs):
        """See ``AMWCPanoptic.forward``."""
        return self.label(batched_inputs, self.predict(batched_inputs))


class OracleMapper:
    """``InferenceMapper``, with the image's ``grid_truth``."""

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): the model's.
        """
        self.mapper = InferenceMapper(cfg)
        self.generator = AMWCTargetGenerator.from_config(cfg)
        self.stride = cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Raises:
            ValueError: the dataset has no panoptic ground truth.
        """
        if "pan_seg_file_name" not in dataset_dict:
            raise ValueError(missing_truth(dataset_dict))
        panoptic = read_panoptic_png(dataset_dict["pan_seg_file_name"])
        target = self.generator(panoptic, dataset_dict["segments_info"])
        classes, segments = target["sem_seg"], target["segments"]
        classes[classes == self.generator.ignore_label] = VOID
        crowd = target["segment_crowd"].nonzero()
        segments[torch.isin(segments, crowd)] = VOID
        sample = self.mapper(dataset_dict)
        size = sample["image"].shape[-2:]
        truth = (sample_cells(labels, self.stride, size) for labels in (classes, segments))
        return {**sample, "grid_truth": GridTruth(*truth)}


def missing_truth(dataset_dict: dict) -> str:
    """What to say of an image without ground truth."""
    return (
        f"TEST.ORACLE needs the panoptic ground truth, but '{dataset_dict.get('file_name')}' "
        "came without. Evaluate a dataset that has it (tools/train_net.py --eval-only; for images "
        'mapped elsewhere, amwc_d2.evaluation.oracle.OracleMapper), or set TEST.ORACLE "".'
    )
