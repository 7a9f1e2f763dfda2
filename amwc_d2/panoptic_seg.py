"""AMWCPanoptic: from an image to its panoptic segmentation.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    h, w: the grid (stride 4)
    J: channels of the PQ loss (panoptic labels of one image)
"""

import logging
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.layers import ASPP
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.projects.panoptic_deeplab import build_ins_embed_branch
from detectron2.structures import ImageList
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor, nn
from torch.nn import functional as F

from amwc_d2.amwc_layer import solve, to_arrays
from amwc_d2.config import STAGES, from_keys
from amwc_d2.config_names import check_keys_without_effect
from amwc_d2.costs import Costs, check_finite
from amwc_d2.data.images import check_pixels
from amwc_d2.data.model_card import FAR, model_metadata, read_card
from amwc_d2.edges import VOID, at_cell_centres
from amwc_d2.estimators import Estimator, GradientConfig, Report, SolverConfig
from amwc_d2.freezing import TRAINED_LAYERS, freeze_all_but
from amwc_d2.losses.affinity import affinity_loss, affinity_targets
from amwc_d2.losses.end_to_end import EndToEndLoss, Truth
from amwc_d2.post_processing import (
    panoptic_result,
    panoptic_to_instances,
    segment_scores,
)
from amwc_d2.refinement import UPSAMPLING, pixel_labels
from amwc_d2.solver_cython import lower_bound

logger = logging.getLogger(__name__)

# Keys of MODEL.AMWC.RESEARCH that are arguments of GradientConfig; the others are EndToEndLoss's.
OF_THE_GRADIENT = {"LAMBDA_AREA", "TARGET_FLIP_RATE", "TWO_SIDED", "NOISE", "PROXIMAL"}


@dataclass
class Prediction:
    """What the network says about a batch, and the solver needs.

    Attributes:
        image_sizes: N pairs (height, width) of the network's input, without padding.
        class_logits: float (N, K, h, w), on the model's device.
        node_costs, edge_costs: float32 (N, K, h, w) and (N, D, 2, h, w), on the CPU.
    """

    image_sizes: list[tuple[int, int]]
    class_logits: Tensor
    node_costs: Tensor
    edge_costs: Tensor


@META_ARCH_REGISTRY.register()
class AMWCPanoptic(nn.Module):
    """Panoptic segmentation by an asymmetric multiway cut over a network's costs."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        ins_embed_head: nn.Module,
        costs: Costs,
        criterion: EndToEndLoss,
        thing_ids,
        pixel_mean,
        pixel_std,
        affinity_weight: float = 0.25,
        affinity_top_k: float = 0.25,
        stage: str = "pretrain",
        trained_layers: str = "heads",
        learn_cost_scales: bool = False,
        cross_entropy_weight: float = 0.0,
        thing_area: int = 200,
        stuff_area: int = 2048,
        upsampling: str = "refine",
        calibrated: bool = True,
        report_bound: bool = False,
        card: dict | None = None,
    ):
        """
        Args:
            backbone: image -> feature maps, as ``build_backbone`` makes them.
            sem_seg_head: a ``PanopticDeepLabSemSegHead``.
            ins_embed_head: an ``AMWCAffinityHead``.
            costs: logits -> costs.
            criterion: stage 2's losses, weighted; its ``solver`` is the one of inference, too.
            thing_ids: contiguous ids of the thing classes (which may have many segments).
            pixel_mean, pixel_std: per channel, in the order of INPUT.FORMAT.
            affinity_weight, affinity_top_k: stage 1's affinity loss.
            stage: "pretrain" or "end_to_end".
            trained_layers: what stage 2 trains (``freezing.freeze_all_but``).
            learn_cost_scales: train the scales and offsets of ``costs`` in stage 2.
            cross_entropy_weight: weight that stage 1's losses have in stage 2.
            thing_area, stuff_area: smaller segments become void, in pixels of the image.
            upsampling: from labels of cells to labels of pixels (``refinement.UPSAMPLING``).
            calibrated: take scales and offsets of ``costs`` from checkpoints; False: keep 1 and 0.
            report_bound: bound the optimum of every multiway cut at inference.
            card: what came with the weights (``data/model_card.py``), None if nothing did.

        Raises:
            ValueError: an unknown stage, set of layers or upsampling; no loss in stage 2.
        """
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"MODEL.AMWC.STAGE must be one of {STAGES}, got '{stage}'")
        if trained_layers not in TRAINED_LAYERS:
            raise ValueError(
                f"MODEL.AMWC.TRAINED_LAYERS must be one of {TRAINED_LAYERS}, got '{trained_layers}'"
            )
        if stage == "end_to_end" and not (criterion.any_weight or cross_entropy_weight):
            raise ValueError(
                "stage 2 (MODEL.AMWC.STAGE 'end_to_end') has no loss: PQ_WEIGHT and "
                "CROSS_ENTROPY_WEIGHT of MODEL.AMWC.LOSS (and those of MODEL.AMWC.RESEARCH) are "
                "all 0. Set one of them above 0."
            )
        if upsampling not in UPSAMPLING:
            raise ValueError(
                f"MODEL.AMWC.UPSAMPLING must be one of {UPSAMPLING}, got '{upsampling}'"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.ins_embed_head = ins_embed_head
        self.costs = costs
        self.criterion = criterion
        self.solver = criterion.solver
        self.thing_ids = frozenset(thing_ids)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.size_divisibility = input_divisibility(self)
        self.stride = sem_seg_head.common_stride
        self.affinity_weight = affinity_weight
        self.affinity_top_k = affinity_top_k
        self.stage = stage
        self.cross_entropy_weight = cross_entropy_weight
        self.thing_area = thing_area
        self.stuff_area = stuff_area
        self.upsampling = upsampling
        self.report_bound = report_bound
        self.card = card
        self._warned = False  # of an image of another magnification

        if not calibrated:
            self.costs.register_load_state_dict_pre_hook(_keep_state)
        for p in self.costs.parameters():
            # Without a loss through the solver nothing reaches them, and DDP would wait for it.
            p.requires_grad = stage == "end_to_end" and learn_cost_scales and criterion.any_weight
        if stage == "end_to_end":
            freeze_all_but(trained_layers, sem_seg_head, ins_embed_head, backbone)

    @classmethod
    def from_config(cls, cfg):
        check_keys_without_effect(cfg)
        amwc = cfg.MODEL.AMWC
        card = read_card(cfg.MODEL.WEIGHTS)
        metadata = model_metadata(cfg, card)
        thing_ids = set(metadata.thing_dataset_id_to_contiguous_id.values())
        backbone = build_backbone(cfg)
        head = cfg.MODEL.INS_EMBED_HEAD
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        # A generator of its own, so that N changes neither the data order nor the dropout.
        seed = cfg.SEED + comm.get_rank() if cfg.SEED >= 0 else torch.initial_seed()
        research = amwc.get("RESEARCH", {})
        solver = from_keys(
            partial(
                SolverConfig,
                partitionable=np.isin(np.arange(num_classes), sorted(thing_ids)),
            ),
            cfg,
            distances="MODEL.INS_EMBED_HEAD.DISTANCES",
            method="MODEL.AMWC.SOLVER.METHOD",
            num_threads="MODEL.AMWC.SOLVER.NUM_THREADS",
        )
        gradient = from_keys(
            GradientConfig,
            cfg,
            estimator="MODEL.AMWC.GRADIENT.ESTIMATOR",
            num_samples="MODEL.AMWC.GRADIENT.NUM_SAMPLES",
            lambda_range="MODEL.AMWC.GRADIENT.LAMBDA_RANGE",
            **{k.lower(): f"MODEL.AMWC.RESEARCH.{k}" for k in research if k in OF_THE_GRADIENT},
        )
        criterion = from_keys(
            partial(
                EndToEndLoss,
                Estimator(solver, gradient, torch.Generator().manual_seed(seed)),
                cells_per_area=cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE**-2,
            ),
            cfg,
            thing_area="MODEL.AMWC.THING_AREA",
            stuff_area="MODEL.AMWC.STUFF_AREA",
            pq_weight="MODEL.AMWC.LOSS.PQ_WEIGHT",
            surrogate="MODEL.AMWC.LOSS.SURROGATE",
            **{k.lower(): f"MODEL.AMWC.RESEARCH.{k}" for k in research if k not in OF_THE_GRADIENT},
        )
        costs = partial(Costs, num_classes, len(head.DISTANCES))
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "ins_embed_head": build_ins_embed_branch(cfg, backbone.output_shape()),
            "costs": from_keys(costs, cfg, dropout="MODEL.AMWC.COST_DROPOUT"),
            "criterion": criterion,
            "thing_ids": thing_ids,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "affinity_weight": head.LOSS_WEIGHT,
            "affinity_top_k": head.LOSS_TOP_K,
            "stage": amwc.STAGE,
            "trained_layers": amwc.TRAINED_LAYERS,
            "learn_cost_scales": amwc.LEARN_COST_SCALES,
            "cross_entropy_weight": amwc.LOSS.CROSS_ENTROPY_WEIGHT,
            "thing_area": amwc.THING_AREA,
            "stuff_area": amwc.STUFF_AREA,
            "upsampling": amwc.UPSAMPLING,
            "calibrated": amwc.CALIBRATED,
            "report_bound": cfg.TEST.LOWER_BOUND,
            "card": card,
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def train(self, mode: bool = True):
        """As ``nn.Module.train``; in stage 2 batch norm and dropout of the network stay frozen."""
        super().train(mode)
        if self.stage == "end_to_end":
            for module in (self.backbone, self.sem_seg_head, self.ins_embed_head):
                module.eval()
        return self

    # ---- forward pass --------------------------------------------------------------------------

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: one dict an image, as ``AMWCDatasetMapper`` (training) or
                ``InferenceMapper`` (inference) makes them: ``image`` (C, H, W); for training the
                targets of ``AMWCTargetGenerator``; for inference optionally ``height`` and
                ``width``, the output size.

        Returns:
            In training a dict of losses: ``loss_sem_seg`` and ``loss_affinity`` (stage 1) or those
            of ``EndToEndLoss``, by default ``loss_pq`` (stage 2). Otherwise one dict an image:

            * ``panoptic_seg``: int32 (H, W), 0 = void, and its ``segments_info``;
            * ``sem_seg``: (K, H, W) class logits; ``classes``: int64 (H, W), the class that the
              solver gives each pixel, before small segments are dropped;
            * ``instances``: the thing segments with masks, boxes, classes and scores;
            * ``amwc``: ``solver_seconds``, ``upsampling_seconds``, ``objective``, ``num_segments``
              and ``segments``, the solver's labels on the grid; ``lost_segments``, how many of them
              no pixel of the output shows; with ``TEST.LOWER_BOUND`` also ``lower_bound`` of all
              solutions' objectives and ``gap``, how far in percent this one may be above it.
        """
        if not self.training:
            return self.label(batched_inputs, self.predict(batched_inputs))
        images = self.preprocess(batched_inputs)
        logits = (x.float().contiguous() for x in self.logits(images.tensor))  # autocast ends here
        if self.stage == "pretrain":
            return self.pretrain_losses(batched_inputs, images, *logits)
        return self.end_to_end_loss(batched_inputs, images, *logits)

    def preprocess(self, batched_inputs) -> ImageList:
        """Normalise, and pad height and width separately to what the network needs."""
        for x in batched_inputs:
            check_pixels(x["image"], len(self.pixel_mean), x.get("file_name", "an image"))
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return self._pad(images, 0.0)

    def _pad(self, tensors, value) -> ImageList:
        """Batch tensors (..., H, W) of different sizes, padded at the right and the bottom."""
        sizes = [tuple(t.shape[-2:]) for t in tensors]
        target = [
            -(-max(side) // divisor) * divisor
            for side, divisor in zip(zip(*sizes), self.size_divisibility)
        ]
        padded = [
            F.pad(t, (0, target[1] - w, 0, target[0] - h), value=value)
            for t, (h, w) in zip(tensors, sizes)
        ]
        return ImageList(torch.stack(padded), sizes)

    def _grid_sizes(self, image_sizes) -> list[tuple[int, int]]:
        """The part of the grid that is image: padding takes no part in the multiway cut."""
        return [(-(-h // self.stride), -(-w // self.stride)) for h, w in image_sizes]

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (N, K, h, w) and affinity logits (N, D, 2, h, w) of padded images."""
        features = self.backbone(images)
        class_logits = self.sem_seg_head.layers(features)
        return class_logits, self.ins_embed_head(features, class_logits)

    def predict_costs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The network's half: normalised, padded images -> node and edge costs.

        This is the boundary for export; ``solver_cython.solve_amwc`` does the rest.

        Args:
            images: (N, 3, H, W), from ``preprocess(batched_inputs).tensor``.

        Returns:
            node costs (N, K, h, w) and edge costs (N, D, 2, h, w), float32.
        """
        return self.costs(*self.logits(images))

    # ---- stage 1 -------------------------------------------------------------------------------

    def pretrain_losses(self, batched_inputs, images, class_logits, affinity_logits):
        """Top-k cross-entropy on classes and on the affinities of every distance (paper 4.2)."""

        def target(key, value):
            return self._pad([x[key].to(self.device) for x in batched_inputs], value).tensor

        losses = self.sem_seg_head.losses(
            class_logits,
            target("sem_seg", self.sem_seg_head.ignore_value),
            target("sem_seg_weights", 0.0),
        )
        segments, weights = self._on_grid(batched_inputs, "segments", "affinity_weights")
        edge_target, edge_weight = affinity_targets(segments, weights, self.solver.distances)
        by_distance = affinity_loss(
            affinity_logits.float(), edge_target, edge_weight, self.affinity_top_k
        )
        storage = get_event_storage()
        for d, value in zip(self.solver.distances, by_distance.tolist()):
            storage.put_scalar(f"affinity/distance_{d}", value, smoothing_hint=True)
        losses["loss_affinity"] = self.affinity_weight * by_distance.sum()
        return losses

    def _on_grid(self, batched_inputs, *keys):
        """Pixel targets, padded as void and sampled at the centre of every grid cell."""
        values = []
        for key in keys:
            padded = self._pad(
                [x[key].to(self.device) for x in batched_inputs], VOID if key == "segments" else 0
            )
            values.append(at_cell_centres(padded.tensor, self.stride))
        return values

    # ---- stage 2 -------------------------------------------------------------------------------

    def end_to_end_loss(self, batched_inputs, images, class_logits, affinity_logits):
        """Panoptic quality of the multiway cut, with a gradient through the solver (paper 3.3)."""
        node_costs, edge_costs = self.costs(class_logits, affinity_logits)
        node_costs, edge_costs = self.costs.drop(
            node_costs, edge_costs, self.criterion.estimator.generator
        )
        check_finite(node_costs, edge_costs)
        weights = self._on_grid(batched_inputs, "sem_seg_weights", "affinity_weights")
        truth = Truth(
            self._pad([x["segments"] for x in batched_inputs], VOID).tensor,
            [x["segment_classes"] for x in batched_inputs],
            [x["segment_crowd"] for x in batched_inputs],
            *(weight.cpu() for weight in weights),
        )
        losses, report = self.criterion(
            node_costs, edge_costs, self._grid_sizes(images.image_sizes), truth
        )
        self._log(report, losses)
        if self.cross_entropy_weight:
            stage_1 = self.pretrain_losses(batched_inputs, images, class_logits, affinity_logits)
            losses.update({k: self.cross_entropy_weight * v for k, v in stage_1.items()})
        return losses

    def _log(self, report: Report, losses) -> None:
        """Scalars of the step: those of the forward pass now, the others when backward has run."""
        storage = get_event_storage()
        storage.put_scalar("time/solver_forward", report.forward_seconds)
        if losses:
            storage.put_scalar("amwc/segments", report.segments)
        if "loss_pq" in losses:
            value = losses["loss_pq"].item() / self.criterion.pq_weight
            storage.put_scalar("amwc/pq_surrogate", 1 - value)
        report.on_backward = lambda done: storage.put_scalars(
            **{
                "amwc/flip_rate": done.flip_rate,
                "amwc/lambda_scale": done.lambda_scale,
                "time/solver_backward": done.backward_seconds,
            }
        )

    # ---- inference -----------------------------------------------------------------------------

    def predict(self, batched_inputs) -> Prediction:
        """The network's half of inference; ``label`` is the solver's.

        The two may run on different threads, so that the solver works on one batch while the
        network computes the next (``evaluation/loop.py``).
        """
        self._warn_of_magnification(batched_inputs)
        images = self.preprocess(batched_inputs)
        class_logits, affinity_logits = self.logits(images.tensor)
        node_costs, edge_costs = self.costs(class_logits, affinity_logits)
        check_finite(node_costs, edge_costs)
        costs = (c.detach().cpu() for c in (node_costs, edge_costs))
        return Prediction(images.image_sizes, class_logits.detach(), *costs)

    def _warn_of_magnification(self, batched_inputs) -> None:
        """Say once that an image was resized by another factor than those of the training."""
        low, _, high = (self.card or {}).get("scale") or (0, 1, float("inf"))
        for x in batched_inputs:
            if "height" not in x:
                continue
            factor = x.get("scale", 1.0) * max(x["image"].shape[-2:]) / max(x["height"], x["width"])
            if not self._warned and not low / FAR <= factor <= high * FAR:
                self._warned = True
                logger.warning(
                    "%s of %dx%d pixels is resized by a factor of %.2f, the images of the training "
                    "by %.2f to %.2f: its objects look %s than any that the model knows. "
                    "amwc_d2.Predictor resizes as the training did; elsewhere set "
                    "INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST.",
                    x.get("file_name", "An image"), x["height"], x["width"], factor, low, high,
                    "smaller" if factor < low else "larger",
                )  # fmt: skip

    def label(self, batched_inputs, prediction: Prediction) -> list[dict]:
        """Solve, refine, drop small segments (paper 4.1); see ``forward`` for the results."""
        grid_sizes = self._grid_sizes(prediction.image_sizes)
        costs = prediction.node_costs, prediction.edge_costs
        arrays = [to_arrays(c, grid_sizes) for c in costs]
        report = Report()
        solutions = solve(*costs, grid_sizes, self.solver, report)
        seconds = report.forward_seconds / len(solutions)
        sizes = [
            (x.get("height", size[0]), x.get("width", size[1]))
            for x, size in zip(batched_inputs, prediction.image_sizes)
        ]
        start = time.perf_counter()
        labels_of_pixels = pixel_labels(
            solutions,
            *arrays,
            self.solver.distances,
            self.stride,
            prediction.image_sizes,
            sizes,
            gamma=self.costs.gamma.item() if self.upsampling == "refine" else None,
            num_threads=self.solver.num_threads,
        )
        upsampling_seconds = (time.perf_counter() - start) / len(solutions)
        results = []
        for n, (solution, (h, w)) in enumerate(zip(solutions, grid_sizes)):
            labels = torch.from_numpy(np.stack([solution.classes, solution.segments])).long()
            scores = segment_scores(
                *labels, *(c[n, ..., :h, :w] for c in costs), self.solver.distances
            )
            segment_class = solution.segment_classes
            classes, segments = (v.to(self.device) for v in labels_of_pixels[n])
            panoptic_seg, segments_info = panoptic_result(
                segments,
                segment_class.tolist(),
                scores.tolist(),
                self.thing_ids,
                self.thing_area,
                self.stuff_area,
            )
            results.append(
                {
                    "panoptic_seg": (panoptic_seg, segments_info),
                    "instances": panoptic_to_instances(panoptic_seg, segments_info),
                    "sem_seg": self._full_size(
                        prediction.class_logits[n], prediction.image_sizes[n], sizes[n]
                    ),
                    "classes": classes,
                    "amwc": {
                        "solver_seconds": seconds,
                        "upsampling_seconds": upsampling_seconds,
                        "objective": float(solution.objective),
                        "num_segments": len(segment_class),
                        "lost_segments": len(segment_class) - len(torch.unique(segments)),
                        "segments": solution.segments,
                    },
                }
            )
        if self.report_bound:
            for result, *cost in zip(results, *arrays):
                result["amwc"].update(self._bound(*cost, result["amwc"]["objective"]))
        return results

    def _bound(self, node_costs, edge_costs, objective) -> dict[str, float]:
        """A bound that no solution is below, and the gap to it in percent of the objective."""
        bound = lower_bound(
            node_costs, edge_costs, self.solver.distances, self.solver.partitionable
        )
        return {"lower_bound": bound, "gap": 100 * (objective - bound) / max(abs(objective), 1e-9)}

    def _full_size(self, class_logits, image_size, output_size):
        """Class logits (K, h, w) as (K, H, W), the way Panoptic-DeepLab enlarges them."""
        upsampled = F.interpolate(
            class_logits[None].float(),
            scale_factor=self.stride,
            mode="bilinear",
            align_corners=False,
        )
        return retry_if_cuda_oom(sem_seg_postprocess)(upsampled[0], image_size, *output_size)


def _keep_state(module, state_dict, prefix, *_):
    """``load_state_dict`` of ``module`` changes nothing."""
    state_dict.update({prefix + name: value for name, value in module.state_dict().items()})


def input_divisibility(model: nn.Module) -> tuple[int, int]:
    """What height and width of the network's input must be multiples of.

    ASPP's pooling, where it has a size (that of the training crops), must fit into the backbone's
    coarsest features a whole number of times.
    """
    stride = max(shape.stride for shape in model.backbone.output_shape().values())
    pooled = [m.pool_kernel_size for m in model.modules() if isinstance(m, ASPP)]
    sizes = [(stride * height, stride * width) for height, width in filter(None, pooled)]
    return tuple(map(max, zip(*sizes))) if sizes else (32, 32)
