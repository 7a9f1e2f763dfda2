"""Calibration: scales and offsets of the costs, fitted to panoptic quality on held-back images.

Stage 1's affinity loss weighs and selects edges, so that its zero is not where the solver's should
be. At the end of stage 1 this fits a scale and an offset for each edge distance, an offset for each
class and the weight ``gamma`` of refinement (``costs.Costs``) on images that were kept out of
training (``MODEL.AMWC.CALIBRATION_IMAGES``); the checkpoint holds them. The network runs once on
those images; a step of the search only solves, refines and compares.

Shape shorthand in this module:

    K: classes    D: distances    2: directions    h, w: the grid of one image
    H, W: the image    S: its true segments
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from amwc_d2.costs import GAMMA, Costs
from amwc_d2.data.mappers import InferenceMapper
from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.evaluation import segment_metrics
from amwc_d2.refinement import pixel_labels
from amwc_d2.solver_cython import solve_amwc_batch

logger = logging.getLogger(__name__)

BATCH = 24  # images solved at a time
EVALUATIONS = 200
SPREAD = 0.3  # of the first population, in nats of an offset and logarithms of a scale
PRIOR = 0.1  # PQ that one unit of the vector must be worth
LARGEST_SHARE = 5  # at most a fifth of the training images are held back


def hold_back(samples: list[dict], count: int) -> tuple[list[dict], list[dict]]:
    """Split training images into those that train and those held back to calibrate.

    Args:
        samples: dicts of the DatasetCatalog.
        count: images to hold back, at most a fifth of all; drawn alike whatever the run's seed.

    Returns:
        the two parts, each in the order of ``samples``.

    Raises:
        ValueError: a negative count.
    """
    if count < 0:
        raise ValueError(f"MODEL.AMWC.CALIBRATION_IMAGES must be >= 0 (0 = off), got {count}")
    order = np.random.default_rng(0).permutation(len(samples))
    held = set(order[: min(count, len(samples) // LARGEST_SHARE)].tolist())
    fitting = [sample for i, sample in enumerate(samples) if i not in held]
    return fitting, [sample for i, sample in enumerate(samples) if i in held]


@dataclass
class Output:
    """What the network makes of one image, and the truth, on the CPU.

    Attributes:
        class_logits: float32 (K, h, w). affinity_logits: float32 (D, 2, h, w), at the anchor.
        image_size: (height, width) of the network's input, without padding.
        true: int64 array (H, W), 0 = void, otherwise 1 + the place in ``true_info``.
        true_info: S dicts ``category_id`` (contiguous), ``iscrowd``, ``area``.
    """

    class_logits: Tensor
    affinity_logits: Tensor
    image_size: tuple[int, int]
    true: np.ndarray
    true_info: list[dict]


def read_truth(generator: AMWCTargetGenerator, sample: dict) -> tuple[np.ndarray, list[dict]]:
    """``true`` and ``true_info`` (see ``Output``) of a dict of the DatasetCatalog."""
    truth = generator(read_panoptic_png(sample["pan_seg_file_name"]), sample["segments_info"])
    true = truth["segments"].numpy() + 1
    areas = np.bincount(true.ravel(), minlength=1 + len(truth["segment_classes"]))[1:]
    info = [
        {"category_id": int(k), "iscrowd": bool(crowd), "area": int(area)}
        for k, crowd, area in zip(truth["segment_classes"], truth["segment_crowd"], areas)
    ]
    return true, info


def inference_inputs(cfg, samples: list[dict]) -> list[dict]:
    """What the model takes at inference, for dicts of the DatasetCatalog."""
    mapper = InferenceMapper(cfg)
    return [mapper(sample) for sample in samples]


@torch.no_grad()
def network_outputs(cfg, model, samples: list[dict]) -> list[Output]:
    """Run the network on whole images as at inference, one at a time.

    Args:
        cfg (CfgNode): the model's.
        model (AMWCPanoptic): in evaluation mode.
        samples: dicts of the DatasetCatalog, with panoptic ground truth.
    """
    generator, outputs = AMWCTargetGenerator.from_config(cfg), []
    for sample, inputs in zip(samples, inference_inputs(cfg, samples)):
        images = model.preprocess([inputs])
        (size,) = images.image_sizes
        h, w = (-(-side // model.stride) for side in size)
        logits = (x[0, ..., :h, :w].float().cpu() for x in model.logits(images.tensor))
        outputs.append(Output(*logits, tuple(size), *read_truth(generator, sample)))
    return outputs


@dataclass
class Quality:
    """True PQ (IoU above one half, small segments rejected, sums over all images) of outputs.

    Attributes:
        solver: ``SolverConfig``. stride: pixels of the network's input in a cell.
        min_area: (K,), segments with fewer pixels of the image are rejected.
        upsampling: ``MODEL.AMWC.UPSAMPLING``, the labels that are compared.
    """

    solver: object
    stride: int
    min_area: np.ndarray
    upsampling: str = "refine"

    @classmethod
    def of_model(cls, model):
        min_area = np.where(model.solver.partitionable, model.thing_area, model.stuff_area)
        return cls(model.solver, model.stride, min_area, model.upsampling)

    def __call__(self, costs: Costs, outputs: list[Output]) -> float:
        """PQ in percent over all classes that occur."""
        starts = range(0, len(outputs), BATCH)
        records = [r for i in starts for r in self._records(costs, outputs[i : i + BATCH])]
        return segment_metrics.panoptic_quality(np.concatenate(records), range(len(self.min_area)))

    @torch.no_grad()
    def _records(self, costs, outputs):
        arrays = [
            [c[0].numpy() for c in costs(o.class_logits[None], o.affinity_logits[None])]
            for o in outputs
        ]
        node_costs, edge_costs = zip(*arrays)
        threads = self.solver.num_threads
        solutions = solve_amwc_batch(
            node_costs, edge_costs, self.solver.distances, self.solver.partitionable,
            method=self.solver.method, num_threads=threads,
        )  # fmt: skip
        labels = pixel_labels(
            solutions, node_costs, edge_costs, self.solver.distances, self.stride,
            [o.image_size for o in outputs], [o.true.shape for o in outputs],
            gamma=costs.gamma.item() if self.upsampling == "refine" else None, num_threads=threads,
        )  # fmt: skip
        return [
            self.compare(*(x.numpy() for x in pair), o.true, o.true_info)
            for pair, o in zip(labels, outputs)
        ]

    def compare(self, classes, segments, true, true_info):
        """Records (``segment_metrics.RECORD``) of one image; ``true`` as in ``Output``."""
        area = np.bincount(segments.ravel())  # 0 where a segment has vanished
        of_segment = np.zeros(len(area), np.int64)
        of_segment[segments.ravel()] = classes.ravel()
        kept = np.flatnonzero(area >= np.maximum(self.min_area[of_segment], 1))
        number = np.zeros(len(area), np.int64)
        number[kept] = 1 + np.arange(len(kept))
        pred_info = [{"category_id": int(of_segment[i])} for i in kept]
        return segment_metrics.match_segments(true, number[segments], true_info, pred_info)


class Parameters:
    """The vector that the search moves, and the costs that it stands for; 0 is the start.

    Offsets are in nats; scales and gamma enter by their logarithm. The scale of the classes is left
    alone: scaling all costs changes no solution.
    """

    def __init__(self, costs: Costs):
        self.num_classes, self.num_distances = len(costs.class_offset), len(costs.edge_offset)
        self.sizes = {
            "edge_offset": self.num_distances,
            "edge_scale": self.num_distances,
            "class_offset": self.num_classes,
            "gamma": 1,
        }
        self.size = sum(self.sizes.values())

    def costs(self, vector: np.ndarray) -> Costs:
        """The costs with 1 and 0 replaced by what ``vector`` says."""
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        values = dict(zip(self.sizes, np.split(vector, ends)))
        values["edge_scale"] = np.exp(values["edge_scale"])
        values["gamma"] = GAMMA * np.exp(values["gamma"][0])
        costs = Costs(self.num_classes, self.num_distances).requires_grad_(False)
        for name, value in values.items():
            getattr(costs, name).copy_(torch.as_tensor(value))
        return costs


def maximize(function, size: int, evaluations: int) -> np.ndarray:
    """CMA-ES from 0: the centre of the last population, which no single lucky point decides.

    Args:
        function: from a vector (size,) to a number. evaluations: of it.
    """
    import cma  # half a second, which only the end of stage 1 needs

    rng = np.random.default_rng(0)  # cma's own seed would be that of all of NumPy
    search = cma.CMAEvolutionStrategy(
        np.zeros(size),
        SPREAD,
        {
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,
            "maxfevals": evaluations,
            "verbose": -9,
        },
    )
    while not search.stop():
        vectors = search.ask()
        search.tell(vectors, [-function(vector) for vector in vectors])
    return search.result.xfavorite


def fit(costs: Costs, quality: Quality, outputs: list[Output], evaluations: int = EVALUATIONS):
    """Fit scales and offsets to PQ, less ``PRIOR`` times the square of how far they move.

    The prior keeps what a few images cannot tell from noise near 1 and 0.

    Args:
        costs: whose sizes count; not changed.
        quality: larger is better. outputs: what to judge on. evaluations: of ``quality``.

    Returns:
        the fitted ``Costs``, those at 1 and 0 where these are better, and PQ before and after on
        ``outputs``.
    """
    parameters = Parameters(costs)

    def objective(vector):
        return quality(parameters.costs(vector), outputs) - PRIOR * float(vector @ vector)

    vector = maximize(objective, parameters.size, evaluations)
    before, after = parameters.costs(np.zeros(parameters.size)), parameters.costs(vector)
    pq_before, pq_after = quality(before, outputs), quality(after, outputs)
    if pq_after < pq_before:
        after, pq_after = before, pq_before
    return after, pq_before, pq_after


def calibrate(cfg, model, samples: list[dict], evaluations: int = EVALUATIONS) -> dict:
    """Fit ``model.costs`` in place; the model is left in evaluation mode.

    Args:
        cfg (CfgNode): the model's.
        model (AMWCPanoptic): any.
        samples: dicts of the DatasetCatalog, best those that the model was not trained on.
        evaluations: steps of the search.

    Returns:
        ``images`` (their number), ``PQ_before``, ``PQ_after`` (on them) and ``costs`` (lists).
    """
    model.eval()
    outputs = network_outputs(cfg, model, samples)
    fitted, before, after = fit(model.costs, Quality.of_model(model), outputs, evaluations)
    state = fitted.state_dict()
    model.costs.load_state_dict(state)
    logger.info(
        "calibrated on %d images held back: PQ %.2f -> %.2f there; %s", len(outputs), before, after,
        ", ".join(f"{k} {np.round(v.tolist(), 2)}" for k, v in state.items()),
    )  # fmt: skip
    return {
        "images": len(outputs),
        "PQ_before": before,
        "PQ_after": after,
        "costs": {name: value.tolist() for name, value in state.items()},
    }


class Calibration(HookBase):
    """Calibrates the model after the last step, in one process; the others take its costs."""

    def __init__(self, cfg, samples: list[dict]):
        """
        Args:
            cfg (CfgNode): the model's.
            samples: dicts of the DatasetCatalog that training does not see.
        """
        self.cfg, self.samples = cfg, samples

    def after_step(self):
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        model = getattr(self.trainer.model, "module", self.trainer.model)
        state = None
        if comm.is_main_process():
            calibrate(self.cfg, model, self.samples, EVALUATIONS)
            model.train()
            state = model.costs.state_dict()
        model.costs.load_state_dict(comm.all_gather(state)[0])
