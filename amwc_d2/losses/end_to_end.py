"""Stage 2's losses: how good is what the solver makes of the costs?

Solve, compare the solution with the ground truth; the gradient comes back through the solver
(``amwc_layer``). The loss of the paper is the PQ surrogate; the others can be added to it or take
its place.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid (stride 4), padded
    S: true segments of one image    J: channels of the PQ loss, padded to the largest image
    Y, X: the ground truth's pixels: H, W times a stride >= 1
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from amwc_d2.amwc_layer import LabelFunction, MaskFunction, solve, to_arrays
from amwc_d2.costs import without_scale
from amwc_d2.edges import at_cell_centres, cut_edges, edge_weights
from amwc_d2.estimators import Estimator, Report
from amwc_d2.losses.labels import class_loss, cut_loss, fenchel_young_loss
from amwc_d2.losses.pq import SURROGATES, match_segments, pq_surrogate_loss
from amwc_d2.refinement import pixel_labels


@dataclass
class Truth:
    """The ground truth of a batch, on the CPU.

    Attributes:
        segments: int64 (N, Y, X), true segment of every pixel of the network's input, -1 = void.
        classes: N tensors (S,), int64. crowd: N tensors (S,), bool.
        class_weight, affinity_weight: float (N, H, W) or None, how much a cell counts in equations
            7 and 8 (stage 1's weights, paper A.4); None: all alike.
    """

    segments: Tensor
    classes: list[Tensor]
    crowd: list[Tensor]
    class_weight: Tensor | None = None
    affinity_weight: Tensor | None = None

    def at_centres(self, height: int) -> "Truth":
        """The truth at the centres of a grid's cells, (N, H, W), for a grid of H = ``height``."""
        stride = self.segments.shape[1] // height
        return replace(self, segments=at_cell_centres(self.segments, stride))

    def valid(self, sizes) -> Tensor:
        """Bool, as ``segments``: neither void nor crowd, and within N ``sizes`` (height, width)."""
        valid = torch.zeros(self.segments.shape, dtype=torch.bool)
        for n, (h, w) in enumerate(sizes):
            ignored = torch.cat([self.crowd[n], torch.tensor([True])])  # the last one is void
            valid[n, :h, :w] = ~ignored[self.segments[n, :h, :w]]
        return valid


class EndToEndLoss:
    """The losses on the multiway cut of a batch of costs (paper 3.3, A.4), by their weights."""

    def __init__(
        self,
        estimator: Estimator,
        *,
        thing_area: float,
        stuff_area: float,
        cells_per_area: float = 1 / 16,
        pq_weight: float = 1.0,
        surrogate: str = "symmetric",
        miss_weight: float | None = None,
        full_resolution: bool | None = None,
        separate_weight: float = 0.0,
        fenchel_young_weight: float = 0.0,
        normalize_costs: bool = False,
    ):
        """
        Args:
            estimator: how to solve and to differentiate; the partitionable classes of its
                ``solver`` are the things.
            thing_area, stuff_area: thresholds below which a segment fades, in pixels.
            cells_per_area: grid cells in a pixel: 1 / stride^2.
            pq_weight: weight of the PQ surrogate, w in the paper. It scales the perturbation, not
                the size of the gradient that comes back.
            surrogate, miss_weight: see ``pq_surrogate_loss``. By default 0.1 with "symmetric", or
                else 0.
            full_resolution: compare the cells with all their pixels, which gives the IoU that the
                metric sees, as "symmetric" does by default; otherwise with the pixel at their
                centre (the paper's grid).
            separate_weight: weight of equations 7 and 8; like ``pq_weight``.
            fenchel_young_weight: weight of ``fenchel_young_loss``, an ordinary factor.
            normalize_costs: take the gradient's part along the costs away (``without_scale``).

        Raises:
            ValueError: an unknown surrogate, or a negative weight; begins with the argument's name.
        """
        if surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {SURROGATES}, got '{surrogate}'")
        weights = {
            "pq_weight": pq_weight,
            "separate_weight": separate_weight,
            "fenchel_young_weight": fenchel_young_weight,
        }
        for name, value in weights.items():
            if not value >= 0:  # NaN too
                raise ValueError(f"{name} must be >= 0, got {value}")
        self.estimator = estimator
        self.solver = estimator.solver
        # The separate losses steer a lambda scale of their own.
        self.separate_estimator = Estimator(
            estimator.solver, estimator.gradient, estimator.generator, estimator.lambda_scale
        )
        areas = np.where(self.solver.partitionable, thing_area, stuff_area) * cells_per_area
        self.area_threshold = torch.from_numpy(areas).float()
        self.pq_weight = pq_weight
        self.surrogate = surrogate
        ours = surrogate == "symmetric"
        self.miss_weight = (0.1 if ours else 0.0) if miss_weight is None else miss_weight
        self.full_resolution = ours if full_resolution is None else full_resolution
        self.separate_weight = separate_weight
        self.fenchel_young_weight = fenchel_young_weight
        self.normalize_costs = normalize_costs

    @property
    def any_weight(self) -> bool:
        """Whether any of the losses is on."""
        return (self.pq_weight or self.separate_weight or self.fenchel_young_weight) > 0

    def __call__(
        self,
        node_costs: Tensor,
        edge_costs: Tensor,
        grid_sizes,
        truth: Truth,
        gamma: float | None = None,
    ) -> tuple[dict[str, Tensor], Report]:
        """
        Args:
            node_costs: float32 (N, K, H, W). edge_costs: float32 (N, D, 2, H, W).
            grid_sizes: N pairs (h, w), the part of the grid that is image.
            truth: the ground truth, of the grid's shape or a multiple of it.
            gamma: as in ``post_processing.pixel_labels``, for the labels that are compared with it.

        Returns:
            the weighted losses, scalars, by name: ``loss_pq`` (in [0, ``pq_weight``]),
            ``loss_separate``, ``loss_fenchel_young``, as far as their weight is not 0; and what
            the solves took (backward's part is there once that has run). Nothing is solved where
            all weights are 0.
        """
        report = Report()
        if not self.any_weight:
            return {}, report
        pixels, truth = truth, truth.at_centres(node_costs.shape[-2])
        valid = truth.valid(grid_sizes)
        node_costs, edge_costs = self._without_void_gradient(node_costs, edge_costs, valid)
        if self.normalize_costs:
            node_costs, edge_costs = without_scale(node_costs, edge_costs)
        solutions = solve(node_costs, edge_costs, grid_sizes, self.solver, report)
        problem = (node_costs, edge_costs, solutions, truth, valid)
        losses = {}
        if self.pq_weight:
            compared = pixels if self.full_resolution else truth
            pq_loss = self._pq_loss(*problem[:3], compared, gamma, report)
            losses["loss_pq"] = self.pq_weight * pq_loss
        if self.separate_weight:
            losses["loss_separate"] = self.separate_weight * self._separate_loss(*problem, report)
        if self.fenchel_young_weight:
            losses["loss_fenchel_young"] = self.fenchel_young_weight * self._fenchel_young_loss(
                *problem
            )
        return losses, report

    def _pq_loss(self, node_costs, edge_costs, solutions, truth, gamma, report):
        """1 - PQ surrogate, in [0, 1]; ``truth`` has ``stride`` x ``stride`` pixels a cell."""
        device = node_costs.device
        grid = (len(solutions), *node_costs.shape[-2:])
        stride = truth.segments.shape[-1] // grid[-1]
        sizes = [tuple(stride * side for side in s.segments.shape) for s in solutions]
        valid = truth.valid(sizes)
        grid_sizes = [s.segments.shape for s in solutions]
        labels = pixel_labels(
            solutions,
            *(to_arrays(c, grid_sizes) for c in (node_costs, edge_costs)),
            self.solver.distances,
            stride,
            sizes,
            sizes,
            gamma=gamma if stride > 1 else None,
            num_threads=self.solver.num_threads,
        )
        channels = []
        for n, ((_, segments), (y, x)) in enumerate(zip(labels, sizes)):
            found = match_segments(
                segments.numpy(),
                solutions[n].segment_classes,
                truth.segments[n, :y, :x].numpy(),
                truth.classes[n].numpy(),
                valid[n, :y, :x].numpy(),
            )
            cells = {k: getattr(found, k) / stride**2 for k in ("areas", "overlaps")}
            channels.append(replace(found, **cells))
        count = max(len(c) for c in channels)
        masks, true_masks = torch.zeros(2, len(channels), count, *grid[1:])
        for n, (c, (_, segments), (y, x)) in enumerate(zip(channels, labels, sizes)):
            shown = int((c.predicted >= 0).sum())  # the first channels
            everywhere = torch.ones(segments.shape, dtype=torch.bool)
            masks[n, :shown, : y // stride, : x // stride] = cell_shares(
                segments, everywhere, shown, stride
            )
            matched = torch.from_numpy(c.truth >= 0).nonzero()[:, 0]
            shares = cell_shares(truth.segments[n], valid[n], len(truth.classes[n]), stride)
            true_masks[n, matched] = shares[c.truth[matched]]
        masks = MaskFunction.apply(
            _of_joint_batch(node_costs),
            _of_joint_batch(edge_costs),
            masks.to(device),
            channels,
            solutions,
            self.estimator,
            report,
        )
        return pq_surrogate_loss(
            masks,
            true_masks.to(device),
            avg_pool2d(valid.float(), stride).to(device),
            _padded([c.classes for c in channels], count, -1).to(device),
            self.area_threshold.to(device),
            surrogate=self.surrogate,
            miss_weight=self.miss_weight,
            ignored=_padded([c.ignored for c in channels], count, False).to(device),
            overlap=_padded([c.overlaps for c in channels], count, 0.0).float().to(device),
        )

    def _separate_loss(self, node_costs, edge_costs, solutions, truth, valid, report):
        """Equation 7 plus equation 8: classes and cuts, each for itself."""
        device = node_costs.device
        x, y = LabelFunction.apply(
            node_costs, edge_costs, solutions, self.separate_estimator, report
        )
        x_true, y_true = self._true_labels(truth, valid, node_costs.shape[1])
        cell, edge = (
            valid.float() if weight is None else valid * weight
            for weight in (truth.class_weight, truth.affinity_weight)
        )
        edge = edge_weights(edge, self.solver.distances)
        return class_loss(x, x_true.to(device), cell.to(device)) + cut_loss(
            y, y_true.to(device), edge.to(device)
        )

    def _fenchel_young_loss(self, node_costs, edge_costs, solutions, truth, valid):
        """What the truth costs beyond the solution, per cell."""
        device = node_costs.device
        x, y = LabelFunction.apply(
            node_costs.detach(), edge_costs.detach(), solutions, self.estimator, Report()
        )
        x_true, y_true = self._true_labels(truth, valid, node_costs.shape[1])
        edge = edge_weights(valid.float(), self.solver.distances)
        return fenchel_young_loss(
            node_costs,
            edge_costs,
            x,
            y,
            x_true.to(device),
            y_true.to(device),
            valid.float().to(device),
            edge.to(device),
        )

    def _true_labels(self, truth, valid, num_classes):
        """x_true (N, K, H, W), 0 where not valid, and y_true (N, D, 2, H, W)."""
        classes = torch.full(truth.segments.shape, num_classes)
        for n, of_segment in enumerate(truth.classes):
            classes[n][valid[n]] = of_segment[truth.segments[n][valid[n]]]
        x = one_hot(classes, num_classes + 1)[..., :num_classes].permute(0, 3, 1, 2).float()
        return x, cut_edges(truth.segments, self.solver.distances).float()

    def _without_void_gradient(self, node_costs, edge_costs, valid):
        """The same costs; those of void cells, and of edges that end there, get no gradient."""
        weight = valid.float().to(node_costs.device)
        node_weight, edge_weight = weight[:, None], edge_weights(weight, self.solver.distances)
        return (
            node_costs * node_weight + node_costs.detach() * (1 - node_weight),
            edge_costs * edge_weight + edge_costs.detach() * (1 - edge_weight),
        )


def cell_shares(segments: Tensor, valid: Tensor, count: int, stride: int) -> Tensor:
    """How much of every cell belongs to each true segment.

    Args:
        segments: int64 (Y, X), from 0 to ``count`` - 1 where ``valid``.
        valid: bool (Y, X). count: S. stride: pixels of a cell along each axis.

    Returns:
        float32 (S, H, W), multiples of 1 / stride^2.
    """
    height, width = (length // stride for length in segments.shape)
    cell = torch.arange(height * width).view(height, width)
    cell = cell.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    index = segments[valid] * (height * width) + cell[valid]
    pixels = torch.bincount(index, minlength=count * height * width)
    return pixels.view(count, height, width).float() / stride**2


def _of_joint_batch(costs: Tensor) -> Tensor:
    """The same costs. The PQ loss is that of the joint batch of all processes, over which
    DistributedDataParallel takes the mean gradient: multiply it by their number first."""
    if dist.is_available() and dist.is_initialized() and costs.requires_grad:
        costs = costs.view_as(costs)
        costs.register_hook(lambda gradient: gradient * dist.get_world_size())
    return costs


def _padded(rows, count: int, value) -> Tensor:
    """(N, J) from N arrays of different lengths."""
    return torch.stack(
        [torch.from_numpy(np.append(r, np.full(count - len(r), value, r.dtype))) for r in rows]
    )
