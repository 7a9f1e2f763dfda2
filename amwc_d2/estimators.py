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

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amwc_d2.edges import cut_edges, edge_ends
from amwc_d2.solver_cython import METHODS, solve_amwc, solve_mwc, thread_count

ESTIMATORS = ("same_solver", "warm_start", "literal")
SCALE_STEP = 0.1  # largest relative change of the lambda scale in one step, as a logarithm


@dataclass(frozen=True)
class SolverConfig:
    """What is solved, and how.

    Attributes:
        distances: the D edge distances.
        partitionable: K bools, True for thing classes.
        method: of ``solve_amwc``.
        num_threads: 0 = as many as the process may use.
    """

    distances: tuple[int, ...]
    partitionable: tuple[bool, ...]
    method: str = "fast"
    num_threads: int = 0

    def __post_init__(self):
        """
        Raises:
            ValueError: begins with the name of the wrong attribute.
        """
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {tuple(METHODS)}, got '{self.method}'")
        if self.num_threads < 0:
            raise ValueError(f"num_threads must be >= 0 (0 = automatic), got {self.num_threads}")
        # NumPy's numbers and arrays become Python's, so that configs compare and hash.
        object.__setattr__(self, "distances", tuple(int(d) for d in self.distances))
        object.__setattr__(self, "partitionable", tuple(bool(p) for p in self.partitionable))


@dataclass(frozen=True)
class GradientConfig:
    """How the solver is differentiated; the formulas are in the module's head.

    Attributes:
        estimator: the reference and the start of the perturbed solution.
            ``same_solver``: the lifted problem solved afresh without and with the perturbation;
            ``warm_start``: both solved by local moves from the forward solution;
            ``literal``: Algorithm 1 as printed: the forward solution against a fresh solution at
            lambda, two different heuristics, whose disagreement does not vanish without a
            perturbation.
        num_samples: N of equation 4.
        lambda_range: lambda is uniform on it, drawn for every image and sample.
        lambda_area: 0, or the largest segment, in cells, for which ``lambda_range`` is meant: the
            lambda of a larger one is larger in proportion, as its PQ gradient per cell is smaller.
        two_sided: kappa in [0, 1]: the reference is solved at minus kappa times lambda. 0 is the
            one-sided difference, 1 the central one.
        noise: standard deviation of Gaussian noise on all costs, shared by both sides.
        proximal: rho >= 0, the pull of both sides towards the forward solution.
        target_flip_rate: 0, or the share of cells that the perturbation should move: every
            backward pass steers the estimator's ``lambda_scale`` towards it.
    """

    estimator: str = "warm_start"
    num_samples: int = 5
    lambda_range: tuple[float, float] = (1.0, 5000.0)
    lambda_area: float = 0.0
    two_sided: float = 0.0
    noise: float = 0.0
    proximal: float = 0.0
    target_flip_rate: float = 0.0

    def __post_init__(self):
        """
        Raises:
            ValueError: begins with the name of the wrong attribute.
        """
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {ESTIMATORS}, got '{self.estimator}'")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be >= 1, got {self.num_samples}")
        low, high = self.lambda_range
        if not 0 < low <= high:
            raise ValueError(
                f"lambda_range must be (low, high) with 0 < low <= high, got {low, high}"
            )
        if not 0 <= self.target_flip_rate < 1:
            raise ValueError(
                "target_flip_rate must be a share in [0, 1), such as 0.01, got "
                f"{self.target_flip_rate}"
            )
        if not 0 <= self.two_sided <= 1:
            raise ValueError(
                "two_sided must be a share of lambda in [0, 1], 0 for one-sided differences, got "
                f"{self.two_sided}"
            )
        for name in ("noise", "proximal", "lambda_area"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.estimator == "literal" and (self.two_sided or self.noise or self.proximal):
            raise ValueError(
                "estimator 'literal' is Algorithm 1 as printed: it takes neither two_sided nor "
                "noise nor proximal. Use 'same_solver' or 'warm_start' with these."
            )


@dataclass
class Report:
    """What one step's solves took and did; the backward pass adds its part when it runs.

    Attributes:
        segments: mean number of segments per image of the forward solutions.
        forward_seconds, backward_seconds: wall time of the solves.
        moved, cells: cells where a perturbation changed the class or the cut of an edge of the
            first distance (another label of the same class is no change), of all cells.
        lambda_scale: factor of ``lambda_range`` in that backward pass.
        on_backward: called with this report after each backward pass.
    """

    segments: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    moved: int = 0
    cells: int = 0
    lambda_scale: float = 1.0
    on_backward: Callable[["Report"], None] | None = None

    @property
    def flip_rate(self) -> float:
        """Share of cells that the perturbations moved."""
        return self.moved / max(self.cells, 1)


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

    def solve(self, point: Point, solver: SolverConfig, gradient: GradientConfig) -> np.ndarray:
        """Labels (H, W) at one point."""
        node_costs, edge_costs = _noisy(self.node_costs, self.edge_costs, point, gradient.noise)
        lifted = node_costs[self.classes]  # a copy
        if point.lam:
            scale = np.float32(point.lam) * self.label_scale(gradient)[: len(self.gradient)]
            lifted[: len(self.gradient)] += scale[:, None, None] * self.gradient
        lifted, edge_costs = _proximal(
            lifted, edge_costs, self.start, self.start, solver.distances, gradient.proximal
        )
        warm = gradient.estimator == "warm_start"
        solution = solve_mwc(
            lifted, edge_costs, solver.distances, init=self.start if warm else None
        )
        return solution.classes

    def label_scale(self, gradient: GradientConfig) -> np.ndarray:
        """Float32 (L,): factor of lambda for each label, >= 1."""
        scale = np.ones(len(self.classes), np.float32)
        if gradient.lambda_area:
            scale[: len(self.areas)] = np.maximum(self.areas / gradient.lambda_area, 1)
        return scale

    def labels(self, found: np.ndarray, gradient: GradientConfig):
        """Class, segment and lambda factor of every cell."""
        return self.classes[found], found, self.label_scale(gradient)[found]


@dataclass
class AMWCProblem:
    """One image's asymmetric multiway cut itself, perturbed by dL/dx and dL/dy (paper A.4)."""

    node_costs: np.ndarray  # float32 (K, H, W)
    edge_costs: np.ndarray  # float32 (D, 2, H, W)
    start: tuple[np.ndarray, np.ndarray]  # (H, W) classes and segments of the forward solution
    class_gradient: np.ndarray  # float32 (K, H, W) dL/dx
    cut_gradient: np.ndarray  # float32 (D, 2, H, W) dL/dy

    def solve(self, point: Point, solver: SolverConfig, gradient: GradientConfig):
        """Classes and segments (H, W) at one point."""
        node_costs, edge_costs = _noisy(self.node_costs, self.edge_costs, point, gradient.noise)
        if point.lam:
            lam = np.float32(point.lam)
            node_costs = node_costs + lam * self.class_gradient
            edge_costs = edge_costs + lam * self.cut_gradient
        node_costs, edge_costs = _proximal(
            node_costs, edge_costs, *self.start, solver.distances, gradient.proximal
        )
        solution = solve_amwc(
            node_costs,
            edge_costs,
            solver.distances,
            solver.partitionable,
            method=solver.method,
        )
        return solution.classes, solution.segments

    def labels(self, found, gradient: GradientConfig):
        """Class, segment and lambda factor of every cell."""
        classes, segments = found
        return classes, segments, np.ones(classes.shape, np.float32)


def _noisy(node_costs, edge_costs, point, noise):
    if point.seed is None:
        return node_costs, edge_costs
    rng = np.random.default_rng(point.seed)
    return tuple(
        costs + np.float32(noise) * rng.standard_normal(costs.shape, np.float32)
        for costs in (node_costs, edge_costs)
    )


def _proximal(node_costs, edge_costs, labels, segments, distances, proximal):
    """Costs plus rho/2 (|x - x*|^2 + |y - y*|^2), up to a constant."""
    if not proximal:
        return node_costs, edge_costs
    rho = np.float32(proximal)
    kept = labels[None] == np.arange(len(node_costs))[:, None, None]
    cut = cut_edges(torch.from_numpy(segments), distances).numpy()
    return node_costs - rho * kept, edge_costs + rho * (np.float32(0.5) - cut)


class Estimator:
    """Estimates gradients through the solver; owns the random state and the scale of lambda.

    Attributes:
        solver: what is solved.
        gradient: how it is differentiated.
        generator: draws lambda and noise; the global one if None.
        lambda_scale: factor of ``gradient.lambda_range``, steered towards
            ``gradient.target_flip_rate`` by at most a tenth per backward pass where there is one;
            not kept in checkpoints, it settles again.
    """

    def __init__(
        self,
        solver: SolverConfig,
        gradient: GradientConfig = GradientConfig(),
        generator: torch.Generator | None = None,
        lambda_scale: float = 1.0,
    ):
        self.solver = solver
        self.gradient = gradient
        self.generator = generator
        self.lambda_scale = lambda_scale

    def draw_samples(self, count: int) -> list[list[tuple[Point | None, Point]]]:
        """N pairs (reference, perturbed) for each of ``count`` images.

        Lambda is uniform on ``lambda_range`` times ``lambda_scale``, another one for every image
        and sample. A reference of None is the forward solution.
        """
        config = self.gradient
        low, high = config.lambda_range
        shape = (count, config.num_samples)
        lambdas = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        lambdas = (low + (high - low) * lambdas) * self.lambda_scale
        seeds = [[None] * config.num_samples] * count
        if config.noise:
            seeds = torch.randint(2**62, shape, generator=self.generator).tolist()

        def pair(lam, seed):
            if config.estimator == "literal":
                return None, Point(lam)
            return Point(-config.two_sided * lam, seed), Point(lam, seed)

        return [[pair(*s) for s in zip(*row)] for row in zip(lambdas.tolist(), seeds)]

    def __call__(self, problems, report: Report) -> list[tuple[Tensor, Tensor]]:
        """The gradients of all images; solves their problems, all independent, on threads.

        Args:
            problems: one ``LiftedProblem`` or ``AMWCProblem`` for each image.
            report: its ``moved``, ``cells`` and ``backward_seconds`` grow, and its
                ``lambda_scale`` is set.

        Returns:
            for each image dL/dc_V, float32 (K, H, W), and dL/dc_E, float32 (D, 2, H, W).
        """
        started = time.perf_counter()
        samples = self.draw_samples(len(problems))
        jobs = {
            (n, point): None
            for n, row in enumerate(samples)
            for pair in row
            for point in pair
            if point
        }
        with ThreadPoolExecutor(thread_count(self.solver.num_threads)) as pool:
            solved = pool.map(
                lambda job: problems[job[0]].solve(job[1], self.solver, self.gradient), jobs
            )
            found = dict(zip(jobs, solved))

        gradients, moved, cells = [], 0, 0
        for n, (problem, row) in enumerate(zip(problems, samples)):
            node_gradient = torch.zeros(problem.node_costs.shape)
            edge_gradient = torch.zeros(problem.edge_costs.shape)
            for reference, perturbed in row:
                before = found[n, reference] if reference else problem.start
                after = found[n, perturbed]
                node_change, edge_change = _difference(
                    problem.labels(before, self.gradient),
                    problem.labels(after, self.gradient),
                    len(node_gradient),
                    self.solver.distances,
                )
                width = perturbed.lam - (reference.lam if reference else 0.0)
                node_gradient += node_change / (width * self.gradient.num_samples)
                edge_gradient += edge_change / (width * self.gradient.num_samples)
                changed = (node_change != 0).any(0) | (edge_change[0] != 0).any(0)
                moved += int(changed.sum())
                cells += changed.numel()
            gradients.append((node_gradient, edge_gradient))
        report.moved += moved
        report.cells += cells
        report.lambda_scale = self.lambda_scale
        self._steer(moved / max(cells, 1))
        report.backward_seconds += time.perf_counter() - started
        return gradients

    def _steer(self, flip_rate: float) -> None:
        if self.gradient.target_flip_rate:
            ratio = np.log(self.gradient.target_flip_rate / max(flip_rate, 1e-9))
            self.lambda_scale *= float(np.exp(SCALE_STEP * np.clip(ratio, -1, 1)))


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
