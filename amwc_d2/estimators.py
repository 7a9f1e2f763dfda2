"""Gradient estimators through the solver S, which turns costs c into labels.

Every estimator is a difference of two solutions, taken along the gradient g of the loss and
averaged over N samples (paper equations 3 and 4):

    dL/dc = mean of (S(c + e + b g) - S(c + e + a g)) / (b - a)

* a = 0, b = lambda, e = 0: Vlastelica et al. 2020, with the solver as its own reference;
* a = -kappa lambda, b = lambda (``two_sided``, kappa in (0, 1]): a difference of both sides; the
  central one, kappa = 1, is LPGD's (Paulus et al. 2024);
* e Gaussian, the same on both sides (``noise``): I-MLE, Niepert et al. 2021;
* lambda steered so that a given share of cells moves (``target_flip_rate``): after AIMLE, Minervini
  et al. 2023;
* both problems pulled towards the forward solution x* by rho/2 |x - x*|^2 (``proximal``), which is
  linear for 0/1 labels: augmented LPGD.

No perturbation gives exactly zero. The exception is ``literal``, Algorithm 1 as printed, whose
S(c + a g) is the forward solution of another solver.

Because x(c) minimises <c, x>, the one-sided estimate has no negative product with c: descent
shrinks the costs (``EndToEndLoss``'s ``normalize_costs`` takes that part away).

Shape shorthand in this module:

    K: classes    D: distances    2: directions    H, W: the grid of one image
    J: channels of the loss (panoptic labels)    L: labels of the lifted multiway cut
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amwc_d2.edges import cut_edges, edge_ends
from amwc_d2.solver_cython import solve_amwc, solve_mwc, thread_count

ESTIMATORS = ("same_solver", "warm_start", "literal")
SCALE_STEP = 0.1  # largest relative change of the lambda scale in one step, as a logarithm


@dataclass(frozen=True)
class Point:
    """Where to solve: lambda (0 = no perturbation), and the seed of the noise (None = none)."""

    lam: float
    seed: int | None = None


@dataclass
class LiftedProblem:
    """One image's lifted multiway cut, perturbed by dL/dz (Algorithm 1, line 1).

    Its labels are the J channels of the loss, then every class that has no channel; all labels of
    a class share its node cost, and the perturbation tells them apart.
    """

    node_costs: np.ndarray  # float32 (K, H, W)
    edge_costs: np.ndarray  # float32 (D, 2, H, W)
    classes: np.ndarray  # (L,) class of each label
    start: np.ndarray  # (H, W) the forward solution, as labels
    gradient: np.ndarray  # float32 (J, H, W) dL/dz
    areas: np.ndarray  # (J,) cells of each channel

    def solve(self, point: Point, settings) -> np.ndarray:
        """Labels (H, W) at one point."""
        node_costs, edge_costs = _noisy(self.node_costs, self.edge_costs, point, settings)
        lifted = node_costs[self.classes]  # a copy
        if point.lam:
            scale = np.float32(point.lam) * self.label_scale(settings)[: len(self.gradient)]
            lifted[: len(self.gradient)] += scale[:, None, None] * self.gradient
        lifted, edge_costs = _proximal(lifted, edge_costs, self.start, self.start, settings)
        warm = settings.estimator == "warm_start"
        solution = solve_mwc(
            lifted, edge_costs, settings.distances, init=self.start if warm else None
        )
        return solution.classes

    def label_scale(self, settings) -> np.ndarray:
        """Float32 (L,): factor of lambda for each label, >= 1."""
        scale = np.ones(len(self.classes), np.float32)
        if settings.lambda_area:
            scale[: len(self.areas)] = np.maximum(self.areas / settings.lambda_area, 1)
        return scale

    def labels(self, found: np.ndarray, settings):
        """Class, segment and lambda factor of every cell."""
        return self.classes[found], found, self.label_scale(settings)[found]


@dataclass
class AMWCProblem:
    """One image's asymmetric multiway cut itself, perturbed by dL/dx and dL/dy (paper A.4)."""

    node_costs: np.ndarray  # float32 (K, H, W)
    edge_costs: np.ndarray  # float32 (D, 2, H, W)
    start: tuple[np.ndarray, np.ndarray]  # (H, W) classes and segments of the forward solution
    class_gradient: np.ndarray  # float32 (K, H, W) dL/dx
    cut_gradient: np.ndarray  # float32 (D, 2, H, W) dL/dy

    def solve(self, point: Point, settings):
        """Classes and segments (H, W) at one point."""
        node_costs, edge_costs = _noisy(self.node_costs, self.edge_costs, point, settings)
        if point.lam:
            lam = np.float32(point.lam)
            node_costs = node_costs + lam * self.class_gradient
            edge_costs = edge_costs + lam * self.cut_gradient
        node_costs, edge_costs = _proximal(node_costs, edge_costs, *self.start, settings)
        solution = solve_amwc(
            node_costs,
            edge_costs,
            settings.distances,
            settings.partitionable,
            method=settings.method,
        )
        return solution.classes, solution.segments

    def labels(self, found, settings):
        """Class, segment and lambda factor of every cell."""
        classes, segments = found
        return classes, segments, np.ones(classes.shape, np.float32)


def _noisy(node_costs, edge_costs, point, settings):
    if point.seed is None:
        return node_costs, edge_costs
    rng = np.random.default_rng(point.seed)
    return tuple(
        costs + np.float32(settings.noise) * rng.standard_normal(costs.shape, np.float32)
        for costs in (node_costs, edge_costs)
    )


def _proximal(node_costs, edge_costs, labels, segments, settings):
    """Costs plus rho/2 (|x - x*|^2 + |y - y*|^2), up to a constant."""
    if not settings.proximal:
        return node_costs, edge_costs
    rho = np.float32(settings.proximal)
    kept = labels[None] == np.arange(len(node_costs))[:, None, None]
    cut = cut_edges(torch.from_numpy(segments), settings.distances).numpy()
    return node_costs - rho * kept, edge_costs + rho * (np.float32(0.5) - cut)


def draw_samples(count: int, settings) -> list[list[tuple[Point | None, Point]]]:
    """N pairs (reference, perturbed) for each of ``count`` images.

    Lambda is uniform on ``lambda_range`` times ``lambda_scale``, another one for every image and
    sample, from ``settings.generator``. A reference of None is the forward solution.
    """
    low, high = settings.lambda_range
    shape = (count, settings.num_lambdas)
    lambdas = torch.rand(shape, generator=settings.generator, dtype=torch.float64)
    lambdas = (low + (high - low) * lambdas) * settings.lambda_scale
    seeds = [[None] * settings.num_lambdas] * count
    if settings.noise:
        seeds = torch.randint(2**62, shape, generator=settings.generator).tolist()

    def pair(lam, seed):
        if settings.estimator == "literal":
            return None, Point(lam)
        return Point(-settings.two_sided * lam, seed), Point(lam, seed)

    return [[pair(*s) for s in zip(*row)] for row in zip(lambdas.tolist(), seeds)]


def estimate(problems, num_classes: int, settings) -> list[tuple[Tensor, Tensor]]:
    """The gradients of all images; solves their problems, all independent, on threads.

    Sets ``settings.flip_rate``, the share of cells where the perturbation changed the class or the
    cut of an edge of the first distance (another label of the same class is no change), and steers
    ``settings.lambda_scale`` towards ``settings.target_flip_rate`` where there is one.

    Args:
        problems: one ``LiftedProblem`` or ``AMWCProblem`` for each image.
        num_classes: K.
        settings: ``SolverSettings``.

    Returns:
        for each image dL/dc_V, float32 (K, H, W), and dL/dc_E, float32 (D, 2, H, W).
    """
    samples = draw_samples(len(problems), settings)
    jobs = {
        (n, point): None for n, row in enumerate(samples) for pair in row for point in pair if point
    }
    with ThreadPoolExecutor(thread_count(settings.num_threads)) as pool:
        solved = pool.map(lambda job: problems[job[0]].solve(job[1], settings), jobs)
        found = dict(zip(jobs, solved))

    gradients, moved, cells = [], 0, 0
    for n, (problem, row) in enumerate(zip(problems, samples)):
        node_gradient = torch.zeros(num_classes, *problem.node_costs.shape[1:])
        edge_gradient = torch.zeros(problem.edge_costs.shape)
        for reference, perturbed in row:
            before = found[n, reference] if reference else problem.start
            after = found[n, perturbed]
            node_change, edge_change = _difference(
                problem.labels(before, settings),
                problem.labels(after, settings),
                num_classes,
                settings.distances,
            )
            width = perturbed.lam - (reference.lam if reference else 0.0)
            node_gradient += node_change / (width * settings.num_lambdas)
            edge_gradient += edge_change / (width * settings.num_lambdas)
            changed = (node_change != 0).any(0) | (edge_change[0] != 0).any(0)
            moved += int(changed.sum())
            cells += changed.numel()
        gradients.append((node_gradient, edge_gradient))
    settings.flip_rate = moved / max(cells, 1)
    if settings.target_flip_rate:
        ratio = np.log(settings.target_flip_rate / max(settings.flip_rate, 1e-9))
        settings.lambda_scale *= float(np.exp(SCALE_STEP * np.clip(ratio, -1, 1)))
    return gradients


def _difference(before, after, num_classes, distances):
    """x_b - x_a and y_b - y_a, divided by the lambda factor of the labels involved."""
    (class_a, segment_a, scale_a), (class_b, segment_b, scale_b) = (
        [torch.from_numpy(np.ascontiguousarray(v)) for v in side] for side in (before, after)
    )
    scale = torch.maximum(scale_a, scale_b)
    x = (_one_hot(class_b, num_classes) - _one_hot(class_a, num_classes)) / scale
    y = cut_edges(segment_b, distances).float() - cut_edges(segment_a, distances).float()
    return x, y / torch.stack([torch.maximum(*edge_ends(scale, d)) for d in distances])


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(classes.long(), num_classes).permute(2, 0, 1).float()
