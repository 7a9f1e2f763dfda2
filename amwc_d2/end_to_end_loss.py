"""Stage 2's loss: the panoptic quality of what the solver makes of the costs.

Solve, match the solution to the ground truth, compare them mask by mask; the gradient comes back
through the solver (``amwc_layer``).

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid (stride 4), padded
    S: true segments of one image    J: channels of the loss, padded to the largest image
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from amwc_d2.amwc_layer import AMWCLayer, SolverSettings, solve
from amwc_d2.edges import edge_ends
from amwc_d2.pq_loss import SURROGATES, VOID, match_segments, one_hot_masks, pq_surrogate_loss


class EndToEndLoss:
    """1 - PQ surrogate of the multiway cut of a batch of costs (paper 3.3)."""

    def __init__(
        self,
        solver: SolverSettings,
        *,
        thing_area: float,
        stuff_area: float,
        cells_per_area: float = 1 / 16,
        surrogate: str = "symmetric",
        miss_weight: float = 0.1,
    ):
        """
        Args:
            solver: how to solve and to differentiate; its ``partitionable`` are the things.
            thing_area, stuff_area: thresholds below which a segment fades, in pixels.
            cells_per_area: grid cells in a pixel: 1 / stride^2.
            surrogate, miss_weight: see ``pq_surrogate_loss``.

        Raises:
            ValueError: an unknown surrogate.
        """
        if surrogate not in SURROGATES:
            raise ValueError(
                f"MODEL.AMWC.PQ_LOSS.SURROGATE must be one of {SURROGATES}, got '{surrogate}'"
            )
        self.solver = solver
        areas = np.where(solver.partitionable, thing_area, stuff_area) * cells_per_area
        self.area_threshold = torch.from_numpy(areas).float()
        self.surrogate = surrogate
        self.miss_weight = miss_weight

    def __call__(
        self,
        node_costs: Tensor,
        edge_costs: Tensor,
        grid_sizes,
        truth: Tensor,
        truth_classes: list[Tensor],
        truth_crowd: list[Tensor],
    ) -> tuple[Tensor, dict[str, float]]:
        """
        Args:
            node_costs: float32 (N, K, H, W). edge_costs: float32 (N, D, 2, H, W).
            grid_sizes: N pairs (h, w), the part of the grid that is image.
            truth: int64 (N, H, W) on the CPU, true segment of every cell, -1 = void.
            truth_classes, truth_crowd: N tensors (S,), int64 and bool.

        Returns:
            the loss, a scalar in [0, 1], and figures for the log.
        """
        device = node_costs.device
        solutions = solve(node_costs, edge_costs, grid_sizes, self.solver)
        predicted = torch.full(truth.shape, VOID)
        valid = torch.zeros(truth.shape, dtype=torch.bool)
        channels = []
        for n, (solution, (h, w)) in enumerate(zip(solutions, grid_sizes)):
            inside = truth[n, :h, :w]
            ignored = torch.cat([truth_crowd[n], torch.tensor([True])])  # the last one is void
            valid[n, :h, :w] = ~ignored[inside]
            predicted[n, :h, :w] = torch.from_numpy(solution.segments)
            channels.append(
                match_segments(
                    solution.classes,
                    solution.segments,
                    inside.numpy(),
                    truth_classes[n].numpy(),
                    valid[n, :h, :w].numpy(),
                )
            )

        count = max(len(c) for c in channels)
        weight = valid.float().to(device)
        costs = self._without_void_gradient(node_costs, edge_costs, weight)
        if dist.is_available() and dist.is_initialized() and costs[0].requires_grad:
            # The loss is that of the joint batch, but DistributedDataParallel averages.
            for c in costs:
                c.register_hook(lambda gradient: gradient * dist.get_world_size())
        masks = AMWCLayer.apply(
            *costs,
            _masks(predicted, [c.predicted for c in channels], count).to(device),
            channels,
            solutions,
            self.solver,
        )
        loss = pq_surrogate_loss(
            masks,
            _masks(truth, [c.truth for c in channels], count).to(device),
            weight,
            _padded([c.classes for c in channels], count, -1).to(device),
            self.area_threshold.to(device),
            surrogate=self.surrogate,
            miss_weight=self.miss_weight,
            ignored=_padded([c.ignored for c in channels], count, False).to(device),
        )
        scalars = {
            "amwc/pq_surrogate": 1 - loss.item(),
            "amwc/segments": float(np.mean([s.segments.max() + 1 for s in solutions])),
            "amwc/flip_rate": self.solver.flip_rate,  # of the step before, as its backward time
            **{f"time/solver_{part}": value for part, value in self.solver.seconds.items()},
        }
        return loss, scalars

    def _without_void_gradient(self, node_costs, edge_costs, weight):
        """The same costs; those of void cells, and of edges that end there, get no gradient."""
        edges = []
        for d in self.solver.distances:
            anchor, other = edge_ends(weight, d)
            edges.append(anchor * other)
        node_weight, edge_weight = weight[:, None], torch.stack(edges, dim=1)
        return (
            node_costs * node_weight + node_costs.detach() * (1 - node_weight),
            edge_costs * edge_weight + edge_costs.detach() * (1 - edge_weight),
        )


def _masks(labels: Tensor, channel_labels, count: int) -> Tensor:
    """(N, J, H, W): the mask of each channel's label."""
    return torch.stack([one_hot_masks(z, c, count) for z, c in zip(labels, channel_labels)])


def _padded(rows, count: int, value) -> Tensor:
    """(N, J) from N arrays of different lengths."""
    return torch.stack(
        [torch.from_numpy(np.append(r, np.full(count - len(r), value, r.dtype))) for r in rows]
    )
