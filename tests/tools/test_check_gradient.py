"""The gradient against what can be computed exactly, and tools/experiments/check_gradient.py."""

import itertools
import json

import check_gradient
import numpy as np
import pytest
import torch
from helpers import DISTANCES, make_estimator

from amwc_d2.costs import Costs
from amwc_d2.edges import cut_edges, edge_exists
from amwc_d2.estimators import LiftedProblem, Point, Report
from amwc_d2.losses.pq import match_segments, one_hot_masks
from amwc_d2.solver_cython import solve_amwc

HEIGHT, WIDTH = 2, 3


class Enumeration:
    """A lifted problem on the tiny grid, with all its labellings."""

    def __init__(self, classes, gradient):
        """classes (L,) of the labels, gradient (L, H, W)."""
        self.labels = len(classes)
        z = list(itertools.product(range(len(classes)), repeat=HEIGHT * WIDTH))
        self.z = torch.tensor(z).view(-1, HEIGHT, WIDTH)
        x = torch.nn.functional.one_hot(torch.as_tensor(classes)[self.z], 3)
        self.x = x.permute(0, 3, 1, 2).double()
        self.y = cut_edges(self.z, DISTANCES).double()
        hot = torch.nn.functional.one_hot(self.z, len(classes)).permute(0, 3, 1, 2)
        self.linear = (hot * gradient).sum((1, 2, 3)).double()

    def index(self, z):
        """Where a labelling (H, W) stands among all."""
        return int(np.ravel_multi_index(z.ravel(), (self.labels,) * z.size))

    def costs(self, node, edge):
        return (self.x * node).sum((1, 2, 3)) + (self.y * edge).sum((1, 2, 3, 4))

    def smoothed_loss(self, node, edge, lam):
        """Vlastelica's interpolation of the loss <gradient, z>, piecewise linear in the costs."""
        costs = self.costs(node, edge)
        return ((costs + lam * self.linear).min() - costs.min()) / lam

    def gradient(self, node, edge, lam):
        """Its gradient."""
        costs = self.costs(node, edge)
        end, start = (costs + lam * self.linear).argmin(), costs.argmin()
        return [(v[end] - v[start]).float() / lam for v in (self.x, self.y)]


def tiny_problem(seed, options):
    """A lifted problem whose linear loss wants the truth, and its enumeration."""
    rng = np.random.default_rng(seed)
    node = rng.normal(0, 2, (3, HEIGHT, WIDTH)).astype(np.float32)
    exists = edge_exists(HEIGHT, WIDTH, DISTANCES).numpy()
    edge = (rng.normal(0.5, 2, exists.shape) * exists).astype(np.float32)
    truth, truth_classes = rng.integers(0, 2, (HEIGHT, WIDTH)) + 1, np.array([0, 2, 2])
    solution = solve_amwc(node, edge, DISTANCES, options.solver.partitionable)
    c = match_segments(
        solution.segments, solution.segment_classes, truth, truth_classes, truth >= 0
    )
    classes = np.array([*c.classes, *sorted({0, 1, 2} - set(c.classes.tolist()))])
    gradient = 1 - 2 * one_hot_masks(torch.from_numpy(truth), c.truth, len(c))
    problem = LiftedProblem(node, edge, classes, solution.segments, gradient.numpy(), c.areas)
    full = torch.cat([gradient, torch.zeros(len(classes) - len(c), HEIGHT, WIDTH)])
    enumeration = Enumeration(classes, full) if len(classes) <= 5 else None
    return problem, enumeration


def test_enumerated_gradient_is_that_of_the_smoothed_loss():
    problem, exact = tiny_problem(1, make_estimator())
    node, edge = (torch.from_numpy(v).double() for v in (problem.node_costs, problem.edge_costs))
    gradient = exact.gradient(node, edge, 3.0)
    for i in range(node.numel()):
        step = torch.zeros_like(node)
        step.view(-1)[i] = 1e-4
        ends = [exact.smoothed_loss(node + side * step, edge, 3.0) for side in (1, -1)]
        slope = float(ends[0] - ends[1]) / 2e-4
        assert slope == pytest.approx(gradient[0].flatten()[i].item(), abs=1e-6)


@pytest.mark.parametrize("estimator", ["same_solver", "warm_start"])
def test_estimate_on_tiny_grids_is_the_gradient_of_the_smoothed_loss(estimator):
    """Exactly, wherever the solver found the optimum with and without the perturbation."""
    optimal = count = 0
    for seed, lam in itertools.product(range(40), (1.0, 6.0)):
        options = make_estimator(estimator=estimator, num_samples=1, lambda_range=(lam, lam))
        problem, exact = tiny_problem(seed, options)
        if exact is None:
            continue  # too many labels to enumerate
        count += 1
        node, edge = torch.from_numpy(problem.node_costs), torch.from_numpy(problem.edge_costs)
        costs = exact.costs(node, edge)
        found = [
            exact.index(problem.solve(Point(at), options.solver, options.gradient).astype(np.int64))
            for at in (0.0, lam)
        ]
        if (
            costs[found[0]] > costs.min() + 1e-6
            or (costs + lam * exact.linear)[found[1]] > (costs + lam * exact.linear).min() + 1e-6
        ):
            continue
        optimal += 1
        (estimated,) = options([problem], Report())
        for a, b in zip(estimated, exact.gradient(node, edge, lam)):
            torch.testing.assert_close(a, b)
    assert optimal >= 25, f"the solver found the optimum on {optimal} of {count} problems only"


def test_tool_on_a_random_network(repository, toy_root, tmp_path):
    """All parts run; the null test is exact for every estimator but the literal one."""
    config = repository / "configs/Toy-PanopticSegmentation/amwc_R18_e2e.yaml"
    options = ["--config-file", config, "--num-images", 4, "--batch", 2, "--estimators"]
    options += ["warm_start", "same_solver, noise", "literal", "--json", tmp_path / "g.json"]
    opts = ["--opts", "MODEL.WEIGHTS", "", "MODEL.INS_EMBED_HEAD.DISTANCES", "[1, 4]"]
    check_gradient.main(check_gradient.get_parser().parse_args([str(o) for o in options + opts]))
    results = json.loads((tmp_path / "g.json").read_text())
    assert results["null_max_abs"]["warm_start"] == 0
    assert results["null_max_abs"]["same_solver, noise"] == 0
    assert len(results["directions"]) == len(results["finite_differences"]) == 2 + 2 + 10 + 1
    assert all(-1 <= results["alignment"][name] <= 1 for name in results["alignment"])
    assert set(results["alignment"]) == {"warm_start", "same_solver, noise", "literal"}


def test_missing_weights_are_named(repository, toy_root):
    config = repository / "configs/Toy-PanopticSegmentation/amwc_R18_e2e.yaml"
    command = ["--config-file", str(config), "--opts", "MODEL.WEIGHTS", "nowhere.pth"]
    with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS 'nowhere.pth' is not there"):
        check_gradient.main(check_gradient.get_parser().parse_args(command))


def test_directions_move_costs_by_one():
    """A unit step changes the costs that it touches by 1, root mean square."""
    import network_outputs

    generator = torch.Generator().manual_seed(0)
    output = network_outputs.Output(
        5 * torch.randn(3, 6, 7, generator=generator),
        2 * torch.randn(2, 2, 6, 7, generator=generator),
        torch.zeros(6, 7, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.bool),
    )
    costs = Costs(3, 2)
    directions = check_gradient.Directions(costs, [output], [1, 4])
    assert len(directions.names) == 2 + 2 + 3 + 1 and directions.is_edge.sum() == 4
    logits = output.class_logits[None], output.affinity_logits[None]
    before = costs(*logits)
    for index in range(8):
        after = directions.moved(index, 0.5)(*logits)
        change = torch.cat([(a - b)[a != b].flatten() for a, b in zip(after, before)])
        assert change.square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-3)
