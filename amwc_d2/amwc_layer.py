"""The asymmetric multiway cut as a layer: solve forward, differentiate by perturbation.

Forward, the solver turns costs into classes x, segments z and cuts y. Backward (paper Algorithm 1,
averaged as in equation 4), the gradient of the loss perturbs the costs, and the gradient of the
costs is the difference that the perturbation makes to the solution (``estimators``). A loss on x
and y perturbs the problem itself (``AMWCLayer``, for any loss of your own); a loss on the panoptic
labels z perturbs a *lifted* multiway cut, which has one label for each panoptic label
(``MaskFunction``, for the PQ loss of ``losses.end_to_end``).

The gradient is Vlastelica's ``-(1/lambda)(y - y_lambda)``. It is *not* multiplied by the incoming
gradient again, and it is not linear in it: loss scaling (AMP's GradScaler) changes its direction.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid, padded
    J: channels of the loss (panoptic labels)    h, w: one image's part of the grid
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amwc_d2.edges import cut_edges
from amwc_d2.estimators import (
    AMWCProblem,
    Estimator,
    GradientConfig,
    LiftedProblem,
    Report,
    SolverConfig,
)
from amwc_d2.solver_cython import solve_amwc_batch


class Labelling(NamedTuple):
    """What the layer returns.

    Attributes:
        x: float32 (N, K, H, W), one-hot classes, with a gradient.
        y: float32 (N, D, 2, H, W), 1 where an edge is cut, at its anchor, with a gradient.
        z: int64 (N, H, W), segments of each image from 0 without gaps; no gradient.
    """

    x: Tensor
    y: Tensor
    z: Tensor


class AMWCLayer(nn.Module):
    """The asymmetric multiway cut between costs and any loss on its classes and cuts.

    ::

        layer = AMWCLayer(distances=[1, 4], partitionable=[False, True, True])
        x, y, z = layer(node_costs, edge_costs)
        loss = ((x - x_true) ** 2).mean() + ((y - y_true) ** 2).mean()
        loss.backward()  # node_costs.grad and edge_costs.grad

    Plain PyTorch; docs/examples/layer.py learns a scene with a loss of its own. The gradient is
    Vlastelica's (https://arxiv.org/abs/1912.02175), averaged over ``num_samples`` values of lambda.
    Choose ``lambda_range`` in the order of (margin of the costs) / (derivative of the loss per
    cell): where lambda is too small nothing moves and the gradient is 0 (``report.flip_rate``).
    """

    def __init__(
        self,
        distances,
        partitionable,
        *,
        method: str = "fast",
        num_threads: int = 0,
        num_samples: int = 5,
        lambda_range: tuple[float, float] = (1.0, 5000.0),
        two_sided: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            distances: D distinct ints >= 1, the edge distances.
            partitionable: K bools, True for classes with any number of segments (things).
            method: of ``solve_amwc``: "fast", "greedy" or "best".
            num_threads: that solve images and perturbed problems; 0 = as many as the process may
                use. Results do not depend on it.
            num_samples: perturbed problems per image and backward pass.
            lambda_range: (low, high); lambda is drawn uniformly for every image and sample.
            two_sided: share of lambda in [0, 1] by which the reference is perturbed the other way.
            generator: draws lambda; torch's global one if None.

        Raises:
            ValueError: names the wrong argument.
        """
        super().__init__()
        self.estimator = Estimator(
            SolverConfig(distances, partitionable, method, num_threads),
            GradientConfig(
                estimator="same_solver",
                num_samples=num_samples,
                lambda_range=tuple(lambda_range),
                two_sided=two_sided,
            ),
            generator,
        )

    def forward(
        self,
        node_costs: Tensor,
        edge_costs: Tensor,
        grid_sizes=None,
        report: Report | None = None,
    ) -> Labelling:
        """
        Args:
            node_costs: float (N, K, H, W), finite, lower is better.
            edge_costs: float (N, D, 2, H, W), finite, positive is attractive. ``[n, d, 0, y, x]``
                joins (y, x) and (y, x + distances[d]), ``[n, d, 1, y, x]`` joins (y, x) and
                (y + distances[d], x); entries whose other end lies outside are ignored.
            grid_sizes: N pairs (h, w) where images are padded at the right and the bottom: the
                part that is image. Padding is 0 in x and y, and -1 in z.
            report: filled in, if given: times, segments, and after backward the flip rate.

        Raises:
            ValueError, TypeError: shapes, dtypes or values are wrong (``solve_amwc``).
        """
        n, k, height, width = node_costs.shape
        if (k, n) != (len(self.estimator.solver.partitionable), len(edge_costs)):
            raise ValueError(
                f"node_costs: expected shape (N, {len(self.estimator.solver.partitionable)}, H, W) "
                f"and edge_costs of as many images, got {tuple(node_costs.shape)} and "
                f"{tuple(edge_costs.shape)}"
            )
        grid_sizes = grid_sizes or [(height, width)] * n
        report = report or Report()
        node_costs, edge_costs = node_costs.float(), edge_costs.float()
        solutions = solve(node_costs, edge_costs, grid_sizes, self.estimator.solver, report)
        x, y = LabelFunction.apply(node_costs, edge_costs, solutions, self.estimator, report)
        z = torch.full((n, height, width), -1)
        for segments, solution, (h, w) in zip(z, solutions, grid_sizes):
            segments[:h, :w] = torch.from_numpy(solution.segments)
        return Labelling(x, y, z.to(node_costs.device))


def to_arrays(costs: Tensor, grid_sizes) -> list[np.ndarray]:
    """Split a padded batch of costs (N, ..., H, W) into one C-contiguous array an image."""
    batch = costs.detach().cpu().numpy()
    return [np.ascontiguousarray(c[..., :h, :w]) for c, (h, w) in zip(batch, grid_sizes)]


def solve(
    node_costs: Tensor,
    edge_costs: Tensor,
    grid_sizes,
    solver: SolverConfig,
    report: Report | None = None,
):
    """Solve a batch of asymmetric multiway cuts.

    Args:
        node_costs: float32 (N, K, H, W). edge_costs: float32 (N, D, 2, H, W), at the anchor.
        grid_sizes: N pairs (h, w): the part of the grid that is image, not padding.
        solver: what to solve, and how.
        report: its ``forward_seconds`` and ``segments`` are set, if given.

    Returns:
        N solutions of ``solve_amwc`` with arrays of shape (h, w).
    """
    start = time.perf_counter()
    solutions = solve_amwc_batch(
        to_arrays(node_costs, grid_sizes),
        to_arrays(edge_costs, grid_sizes),
        solver.distances,
        solver.partitionable,
        method=solver.method,
        num_threads=solver.num_threads,
    )
    if report is not None:
        report.forward_seconds = time.perf_counter() - start
        report.segments = float(np.mean([s.segments.max() + 1 for s in solutions]))
    return solutions


class MaskFunction(torch.autograd.Function):
    """Attaches the perturbation gradient to the predicted masks.

    ``MaskFunction.apply(node_costs, edge_costs, masks, channels, solutions, estimator, report)``
    returns ``masks`` (N, J, H, W), the one-hot panoptic labels that ``solutions`` predict, now a
    function of the costs. ``channels[n]`` (``losses.pq.Channels``) says what the J masks of image n
    are.

    The perturbation moves along ``dL/dmasks``; masked cells (all channels zero there) simply do
    not push.
    """

    @staticmethod
    def forward(ctx, node_costs, edge_costs, masks, channels, solutions, estimator, report):
        ctx.save_for_backward(node_costs, edge_costs)
        ctx.channels, ctx.solutions = channels, solutions
        ctx.estimator, ctx.report = estimator, report
        return masks.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, mask_gradient):
        costs = ctx.saved_tensors
        sizes = [s.segments.shape for s in ctx.solutions]
        problems = [
            _lift(*parts)
            for parts in zip(
                *(to_arrays(c, sizes) for c in costs),
                ctx.channels,
                ctx.solutions,
                to_arrays(mask_gradient.float(), sizes),
            )
        ]
        return *_gradients(problems, *costs, ctx), None, None, None, None, None


class LabelFunction(torch.autograd.Function):
    """Attaches the perturbation gradient to classes and cuts (paper A.4).

    ``LabelFunction.apply(node_costs, edge_costs, solutions, estimator, report)`` returns x, float32
    (N, K, H, W), the one-hot classes, and y, float32 (N, D, 2, H, W), the cuts at the edges'
    anchors, of ``solutions``; both are 0 in the padding. The perturbed problems are solved by the
    solver of the forward pass, whatever ``estimator.gradient.estimator`` says.
    """

    @staticmethod
    def forward(ctx, node_costs, edge_costs, solutions, estimator, report):
        ctx.save_for_backward(node_costs, edge_costs)
        ctx.solutions, ctx.estimator, ctx.report = solutions, estimator, report
        x, y = torch.zeros(node_costs.shape), torch.zeros(edge_costs.shape)
        for n, s in enumerate(solutions):
            h, w = s.classes.shape
            x[n, :, :h, :w].scatter_(0, torch.from_numpy(s.classes).long()[None], 1)
            y[n, ..., :h, :w] = cut_edges(torch.from_numpy(s.segments), estimator.solver.distances)
        return x.to(node_costs.device), y.to(edge_costs.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, class_gradient, cut_gradient):
        costs = ctx.saved_tensors
        sizes = [s.segments.shape for s in ctx.solutions]
        problems = [
            AMWCProblem(c_v, c_e, (s.classes, s.segments), g_x, g_y)
            for c_v, c_e, s, g_x, g_y in zip(
                *(to_arrays(c, sizes) for c in costs),
                ctx.solutions,
                to_arrays(class_gradient.float(), sizes),
                to_arrays(cut_gradient.float(), sizes),
            )
        ]
        return *_gradients(problems, *costs, ctx), None, None, None


def _lift(node_costs, edge_costs, channels, solution, gradient) -> LiftedProblem:
    absent = np.setdiff1d(np.arange(len(node_costs)), channels.classes)
    return LiftedProblem(
        node_costs,
        edge_costs,
        classes=np.concatenate([channels.classes, absent]),
        start=solution.segments,  # predicted segments are the first channels, in order
        gradient=gradient[: len(channels)],
        areas=channels.areas,
    )


def _gradients(problems, node_costs, edge_costs, ctx):
    """dL/dc_V and dL/dc_E, zero in the padding, on the costs' device."""
    node_gradient, edge_gradient = torch.zeros(node_costs.shape), torch.zeros(edge_costs.shape)
    for n, (node, edge) in enumerate(ctx.estimator(problems, ctx.report)):
        h, w = node.shape[-2:]
        node_gradient[n, :, :h, :w] = node
        edge_gradient[n, ..., :h, :w] = edge
    if ctx.report.on_backward:
        ctx.report.on_backward(ctx.report)
    return node_gradient.to(node_costs.device), edge_gradient.to(edge_costs.device)
