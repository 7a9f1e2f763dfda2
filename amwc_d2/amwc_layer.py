"""The asymmetric multiway cut as a layer: solve forward, differentiate by perturbation.

Forward, the solver turns costs into classes x, segments z and cuts y. Backward (paper Algorithm 1,
averaged as in equation 4), the gradient of the loss perturbs the costs, and the gradient of the
costs is the difference that the perturbation makes to the solution (``estimators``). A loss on the
panoptic labels z perturbs a *lifted* multiway cut, which has one label for each panoptic label
(``AMWCLayer``); a loss on x and y perturbs the problem itself (``LabelLayer``).

The gradient is Vlastelica's ``-(1/lambda)(y - y_lambda)``. It is *not* multiplied by the incoming
gradient again, and it is not linear in it: loss scaling (AMP's GradScaler) changes its direction.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid, padded
    J: channels of the loss (panoptic labels)    h, w: one image's part of the grid
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from amwc_d2.edges import cut_edges
from amwc_d2.estimators import ESTIMATORS, AMWCProblem, LiftedProblem, estimate
from amwc_d2.solver_cython import solve_amwc_batch


@dataclass
class SolverSettings:
    """How to solve, and how to differentiate (the formulas are in ``estimators``).

    Attributes:
        distances: the D edge distances.
        partitionable: bool (K,), thing classes.
        method: of ``solve_amwc``.
        num_threads: 0 = as many as the process may use.
        estimator: the reference and the start of the perturbed solution.
            ``same_solver``: the lifted problem solved afresh without and with the perturbation;
            ``warm_start``: both solved by local moves from the forward solution;
            ``literal``: Algorithm 1 as printed: the forward solution against a fresh solution at
            lambda, two different heuristics, whose disagreement does not vanish without a
            perturbation.
        num_lambdas: N of equation 4.
        lambda_range: lambda is uniform on it, drawn for every image and sample.
        lambda_area: 0, or the largest segment, in cells, for which ``lambda_range`` is meant: the
            lambda of a larger one is larger in proportion, as its PQ gradient a cell is smaller.
        two_sided: kappa in [0, 1]: the reference is solved at minus kappa times lambda. 0 is the
            one-sided difference, 1 the central one.
        noise: standard deviation of Gaussian noise on all costs, shared by both sides.
        proximal: rho >= 0, the pull of both sides towards the forward solution.
        target_flip_rate: 0, or the share of cells that the perturbation should move; every
            backward pass then steers ``lambda_scale`` towards it, by at most a tenth.
        lambda_scale: factor of ``lambda_range``; not kept in checkpoints, it settles again.
        generator: draws lambda and noise; the global one if None.
        seconds: filled in: wall time of the last "forward" and "backward" solve.
        flip_rate: filled in: share of cells that the perturbation moved (``estimate``).
    """

    distances: tuple[int, ...]
    partitionable: np.ndarray
    method: str = "fast"
    num_threads: int = 0
    estimator: str = "warm_start"
    num_lambdas: int = 5
    lambda_range: tuple[float, float] = (1.0, 5000.0)
    lambda_area: float = 0.0
    two_sided: float = 0.0
    noise: float = 0.0
    proximal: float = 0.0
    target_flip_rate: float = 0.0
    lambda_scale: float = 1.0
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
        if not 0 <= self.target_flip_rate < 1:
            raise ValueError(
                "MODEL.AMWC.TARGET_FLIP_RATE must be a share in [0, 1), such as 0.01, got "
                f"{self.target_flip_rate}"
            )
        if not 0 <= self.two_sided <= 1:
            raise ValueError(
                "MODEL.AMWC.TWO_SIDED must be a share of lambda in [0, 1], 0 for one-sided "
                f"differences, got {self.two_sided}"
            )
        for key in ("noise", "proximal", "lambda_area"):
            if getattr(self, key) < 0:
                raise ValueError(f"MODEL.AMWC.{key.upper()} must be >= 0, got {getattr(self, key)}")
        if self.estimator == "literal" and (self.two_sided or self.noise or self.proximal):
            raise ValueError(
                "MODEL.AMWC.ESTIMATOR 'literal' is Algorithm 1 as printed: it takes neither "
                "TWO_SIDED nor NOISE nor PROXIMAL. Use 'same_solver' or 'warm_start' with these."
            )


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
        return *_gradients(problems, *costs, ctx.settings), None, None, None, None


class LabelLayer(torch.autograd.Function):
    """Attaches the perturbation gradient to classes and cuts (paper A.4).

    ``LabelLayer.apply(node_costs, edge_costs, solutions, settings)`` returns x, float32
    (N, K, H, W), the one-hot classes, and y, float32 (N, D, 2, H, W), the cuts at the edges'
    anchors, of ``solutions``; both are 0 in the padding. The perturbed problems are solved by the
    solver of the forward pass, whatever ``settings.estimator`` says.
    """

    @staticmethod
    def forward(ctx, node_costs, edge_costs, solutions, settings):
        ctx.save_for_backward(node_costs, edge_costs)
        ctx.solutions, ctx.settings = solutions, settings
        x, y = torch.zeros(node_costs.shape), torch.zeros(edge_costs.shape)
        for n, s in enumerate(solutions):
            h, w = s.classes.shape
            x[n, :, :h, :w].scatter_(0, torch.from_numpy(s.classes).long()[None], 1)
            y[n, ..., :h, :w] = cut_edges(torch.from_numpy(s.segments), settings.distances)
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
        return *_gradients(problems, *costs, ctx.settings), None, None


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


def _gradients(problems, node_costs, edge_costs, settings):
    """dL/dc_V and dL/dc_E, zero in the padding, on the costs' device; times the work."""
    start = time.perf_counter()
    node_gradient, edge_gradient = torch.zeros(node_costs.shape), torch.zeros(edge_costs.shape)
    for n, (node, edge) in enumerate(estimate(problems, node_costs.shape[1], settings)):
        h, w = node.shape[-2:]
        node_gradient[n, :, :h, :w] = node
        edge_gradient[n, ..., :h, :w] = edge
    settings.seconds["backward"] = time.perf_counter() - start
    return node_gradient.to(node_costs.device), edge_gradient.to(edge_costs.device)
