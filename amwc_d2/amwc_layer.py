"""The asymmetric multiway cut as a layer: solve forward, differentiate by perturbation.

Forward, the solver turns costs into classes x, segments z and cuts y. Backward (paper Algorithm 1,
averaged as in equation 4), the gradient of the loss on the panoptic labels perturbs the node costs
of a *lifted* multiway cut, which has one label for each panoptic label, and the gradient of the
costs is the difference that the perturbation makes:

    dL/dc_V = mean over lambda of (x(c + lambda g) - x(c)) / lambda,    g = dL/dz
    dL/dc_E = mean over lambda of (y(c + lambda g) - y(c)) / lambda

This is Vlastelica's ``-(1/lambda)(y - y_lambda)``. It is *not* multiplied by the incoming gradient
again, and it is not linear in it: loss scaling (AMP's GradScaler) changes its direction.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid
    J: channels of the loss (panoptic labels)    L: labels of one image's lifted multiway cut
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from amwc_d2.edges import cut_edges
from amwc_d2.solver_cython import solve_amwc_batch, solve_mwc

ESTIMATORS = ("same_solver", "warm_start", "literal")


@dataclass
class SolverSettings:
    """How to solve, and how to differentiate.

    Attributes:
        distances: the D edge distances.
        partitionable: bool (K,), thing classes.
        method: of ``solve_amwc``.
        num_threads: 0 = as many as the process may use.
        estimator: the reference and the start of the perturbed solution.
            ``same_solver``: the lifted problem solved afresh at 0 and at lambda;
            ``warm_start``: both solved by local moves from the forward solution;
            ``literal``: Algorithm 1 as printed: the forward solution against a fresh solution at
            lambda, two different heuristics, whose disagreement does not vanish without a
            perturbation.
        num_lambdas: N of equation 4.
        lambda_range: lambda is uniform on it, drawn for every image and sample.
        generator: draws them; the global one if None.
        seconds: filled in: wall time of the last "forward" and "backward" solve.
        flip_rate: filled in: share of cells whose class or segment the perturbation moved.
    """

    distances: tuple[int, ...]
    partitionable: np.ndarray
    method: str = "fast"
    num_threads: int = 0
    estimator: str = "warm_start"
    num_lambdas: int = 5
    lambda_range: tuple[float, float] = (1.0, 5000.0)
    generator: torch.Generator | None = None
    seconds: dict = field(default_factory=dict)
    flip_rate: float = 0.0

    def __post_init__(self):
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"MODEL.AMWC.ESTIMATOR must be one of {ESTIMATORS}, got '{self.estimator}'"
            )
        low, high = self.lambda_range
        if not 0 < low <= high:
            raise ValueError(
                f"MODEL.AMWC.LAMBDA_RANGE must be (low, high), 0 < low <= high, got {low, high}"
            )
        if self.num_lambdas < 1:
            raise ValueError(f"MODEL.AMWC.NUM_LAMBDAS must be >= 1, got {self.num_lambdas}")


def to_arrays(costs: Tensor, grid_sizes) -> list[np.ndarray]:
    """Split a padded batch of costs (N, ..., H, W) into one C-contiguous array an image."""
    batch = costs.detach().cpu().numpy()
    return [np.ascontiguousarray(c[..., :h, :w]) for c, (h, w) in zip(batch, grid_sizes)]


def solve(node_costs: Tensor, edge_costs: Tensor, grid_sizes, settings: SolverSettings):
    """Solve a batch of asymmetric multiway cuts.

    Args:
        node_costs: float32 (N, K, H, W). edge_costs: float32 (N, D, 2, H, W), at the anchor.
        grid_sizes: N pairs (h, w): the part of the grid that is image, not padding.

    Returns:
        N solutions of ``solve_amwc`` with arrays of shape (h, w).
    """
    start = time.perf_counter()
    solutions = solve_amwc_batch(
        to_arrays(node_costs, grid_sizes),
        to_arrays(edge_costs, grid_sizes),
        settings.distances,
        settings.partitionable,
        method=settings.method,
        num_threads=settings.num_threads,
    )
    settings.seconds["forward"] = time.perf_counter() - start
    return solutions


@dataclass
class _Lifted:
    """One image's lifted multiway cut.

    Its labels are the J channels of the loss, then every class that has no channel; all labels of
    a class share its node cost, and the perturbation tells them apart.
    """

    node_costs: np.ndarray  # (K, h, w)
    edge_costs: np.ndarray  # (D, 2, h, w)
    classes: np.ndarray  # (L,) class of each label
    start: np.ndarray  # (h, w) the forward solution, as labels
    gradient: np.ndarray  # (J, h, w) dL/dz

    def costs(self, lam: float) -> np.ndarray:
        """Node costs of the labels, (L, h, w): Algorithm 1, line 1."""
        lifted = self.node_costs[self.classes]
        if lam:
            lifted[: len(self.gradient)] += np.float32(lam) * self.gradient
        return lifted


class AMWCLayer(torch.autograd.Function):
    """Attaches the perturbation gradient to the predicted masks.

    ``AMWCLayer.apply(node_costs, edge_costs, masks, channels, solutions, settings)`` returns
    ``masks`` (N, J, H, W), the one-hot panoptic labels that ``solutions`` predict, now a function
    of the costs. ``channels[n]`` (``pq_loss.Channels``) says what the J masks of image n are.

    The perturbation moves along ``dL/dmasks``; masked cells (all channels zero there) simply do
    not push.
    """

    @staticmethod
    def forward(ctx, node_costs, edge_costs, masks, channels, solutions, settings):
        ctx.save_for_backward(node_costs, edge_costs)
        ctx.channels, ctx.solutions, ctx.settings = channels, solutions, settings
        return masks.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, mask_gradient):
        node_costs, edge_costs = ctx.saved_tensors
        settings = ctx.settings
        start = time.perf_counter()
        grid_sizes = [s.segments.shape for s in ctx.solutions]
        gradients = mask_gradient.detach().float().cpu().numpy()
        problems = [
            _lift(c_v, c_e, channels, solution, gradient)
            for c_v, c_e, channels, solution, gradient in zip(
                to_arrays(node_costs, grid_sizes),
                to_arrays(edge_costs, grid_sizes),
                ctx.channels,
                ctx.solutions,
                gradients,
            )
        ]
        low, high = settings.lambda_range
        lambdas = torch.rand(len(problems), settings.num_lambdas, generator=settings.generator)
        lambdas = (low + (high - low) * lambdas.double()).numpy()

        node_gradient = torch.zeros(node_costs.shape)
        edge_gradient = torch.zeros(edge_costs.shape)
        moved = cells = 0
        for n, (problem, labels) in enumerate(
            zip(problems, _perturbed(problems, lambdas, settings))
        ):
            reference, *perturbed = (torch.from_numpy(z).long() for z in labels)
            classes = torch.from_numpy(problem.classes)
            h, w = reference.shape
            x = _one_hot(classes[reference], node_costs.shape[1])
            y = cut_edges(reference, settings.distances).float()
            for lam, z in zip(lambdas[n], perturbed):
                share = 1.0 / (lam * settings.num_lambdas)
                x_p = _one_hot(classes[z], node_costs.shape[1])
                node_gradient[n, :, :h, :w] += share * (x_p - x)
                edge_gradient[n, ..., :h, :w] += share * (
                    cut_edges(z, settings.distances).float() - y
                )
                moved += int((z != reference).sum())
                cells += z.numel()
        settings.flip_rate = moved / max(cells, 1)
        settings.seconds["backward"] = time.perf_counter() - start
        device = node_costs.device
        return node_gradient.to(device), edge_gradient.to(device), None, None, None, None


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(classes, num_classes).permute(2, 0, 1).float()


def _lift(node_costs, edge_costs, channels, solution, gradient) -> _Lifted:
    absent = np.setdiff1d(np.arange(len(node_costs)), channels.classes)
    height, width = solution.segments.shape
    return _Lifted(
        node_costs,
        edge_costs,
        classes=np.concatenate([channels.classes, absent]),
        start=solution.segments,  # predicted segments are the first channels, in order
        gradient=np.ascontiguousarray(gradient[: len(channels), :height, :width]),
    )


def _perturbed(problems, lambdas, settings):
    """Labels of every image: the reference, then one solution for each lambda.

    All images and samples are independent problems on threads; each makes its lifted costs when
    its turn comes, so that memory is bounded by the number of threads.
    """
    warm = settings.estimator == "warm_start"
    fresh_reference = settings.estimator != "literal"

    def labels_at(job):
        problem, lam = job
        solution = solve_mwc(
            problem.costs(lam),
            problem.edge_costs,
            settings.distances,
            init=problem.start if warm else None,
        )
        return solution.classes

    jobs = [
        (problem, lam)
        for problem, row in zip(problems, lambdas)
        for lam in ([0.0, *row] if fresh_reference else row)
    ]
    with ThreadPoolExecutor(settings.num_threads or len(os.sched_getaffinity(0))) as pool:
        solved = iter(list(pool.map(labels_at, jobs)))
    for problem, row in zip(problems, lambdas):
        reference = next(solved) if fresh_reference else problem.start
        yield [reference, *(next(solved) for _ in row)]
