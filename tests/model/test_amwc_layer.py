"""The layer: Algorithm 1 by hand, null test, sign, label space, determinism."""

import numpy as np
import pytest
import torch
from helpers import DISTANCES, make_estimator, scene

from amwc_d2.amwc_layer import AMWCLayer, MaskFunction, solve
from amwc_d2.edges import cut_edges
from amwc_d2.estimators import ESTIMATORS, LiftedProblem, Report
from amwc_d2.losses.pq import match_segments, one_hot_masks

EXACT = ["same_solver", "warm_start"]
VARIANTS = [  # every estimator whose reference is its own solver
    {"estimator": estimator, **options}
    for estimator in EXACT
    for options in (
        {},
        {"two_sided": 1.0},
        {"noise": 0.5},
        {"proximal": 0.5},
        {"lambda_area": 10.0},
        {"noise": 0.5, "two_sided": 0.2, "proximal": 0.2, "lambda_area": 30.0},
    )
]


def backward(options, gradient_scale=1.0, seed=0, sizes=None):
    """Loss = gradient_scale * sum(masks * (1 - 2 truth)): wants every mask on its truth."""
    node, edge, truth, truth_classes = scene(seed)
    node.requires_grad_()
    edge.requires_grad_()
    sizes = sizes or [truth.shape[1:]] * len(truth)
    solutions = solve(node, edge, sizes, options.solver)
    channels, masks, targets = [], [], []
    for s, t, (h, w) in zip(solutions, truth, sizes):
        t = t[:h, :w]
        channels.append(match_segments(s.segments, s.segment_classes, t, truth_classes, t >= 0))
    count = max(map(len, channels))
    for s, t, c, (h, w) in zip(solutions, truth, channels, sizes):
        z = torch.full(t.shape, -1)
        z[:h, :w] = torch.from_numpy(s.segments)
        masks.append(one_hot_masks(z, c.predicted, count))
        targets.append(one_hot_masks(torch.from_numpy(t), c.truth, count))
    masks, targets = torch.stack(masks), torch.stack(targets)
    report = Report()
    out = MaskFunction.apply(node, edge, masks, channels, solutions, options, report)
    assert torch.equal(out, masks)
    (gradient_scale * (out * (1 - 2 * targets)).sum()).backward()
    return node, edge, solutions, truth, report


@pytest.mark.parametrize("options", VARIANTS)
def test_no_perturbation_gives_exactly_zero(options):
    node, edge, *_ = backward(make_estimator(**options), gradient_scale=0.0)
    assert (node.grad == 0).all() and (edge.grad == 0).all()


@pytest.mark.parametrize("variant", [*VARIANTS, {"estimator": "literal"}])
def test_descent_lowers_the_true_class_and_joins_true_segments(variant):
    options = make_estimator(**{"lambda_range": (4.0, 8.0), **variant})
    node, edge, solutions, truth, _ = backward(options)
    truth_class = np.array([0, 1, 2, 2])[truth]
    wrong = np.stack([s.classes for s in solutions]) != truth_class
    assert wrong.any(), "the scene must leave something to repair"
    at_truth = node.grad.gather(1, torch.from_numpy(truth_class)[:, None])[:, 0]
    assert (at_truth[torch.from_numpy(wrong)] >= 0).all()
    assert at_truth.sum() > 0, "x_p - x is +1 at the true class: descent lowers its cost"
    torch.testing.assert_close(node.grad.sum(1), torch.zeros_like(at_truth), atol=1e-6, rtol=0)
    wrongly_cut = cut_edges(torch.tensor(np.stack([s.segments for s in solutions])), DISTANCES)
    wrongly_cut &= ~cut_edges(torch.from_numpy(truth), DISTANCES)
    assert edge.grad[wrongly_cut].sum() < 0, "y_p - y is -1 there: descent raises the affinity"


def test_single_pixel_example():
    """c = (.2, 0, .5), true class 0, lambda 1: the gradient is (1, -1, 0); 0 if lambda < 0.1."""
    for lam, expected in ((1.0, [1.0, -1.0, 0.0]), (0.05, [0.0, 0.0, 0.0])):
        options = make_estimator(num_samples=1, lambda_range=(lam, lam))
        node = torch.tensor([0.2, 0.0, 0.5]).view(1, 3, 1, 1).requires_grad_()
        edge = torch.zeros(1, 2, 2, 1, 1)
        solutions = solve(node, edge, [(1, 1)], options.solver)
        truth = np.zeros((1, 1), int)
        c = match_segments(
            solutions[0].segments, solutions[0].segment_classes, truth, np.array([0]), truth >= 0
        )
        assert c.classes.tolist() == [1, 0] and c.truth.tolist() == [-1, 0]
        masks = one_hot_masks(torch.from_numpy(solutions[0].segments).long(), c.predicted, 2)
        out = MaskFunction.apply(node, edge, masks[None], [c], solutions, options, Report())
        (out[0, 0].sum() - out[0, 1].sum()).backward()  # dL/dz = (1, -1)
        torch.testing.assert_close(node.grad.flatten(), torch.tensor(expected))


def test_literal_estimator_is_biased_where_ours_is_not():
    """Its reference comes from another solver, so a zero perturbation need not give zero."""
    seen = 0.0
    for seed in range(12):
        node, edge, *_ = backward(make_estimator(estimator="literal"), 0.0, seed)
        seen = max(seen, edge.grad.abs().max().item(), node.grad.abs().max().item())
    assert seen > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_same_seed_same_gradient_for_any_number_of_threads(estimator):
    results = []
    for threads in (1, 2, 5):
        generator = torch.Generator().manual_seed(3)
        options = make_estimator(
            estimator=estimator, num_threads=threads, generator=generator, lambda_range=(1, 9)
        )
        node, edge, *_ = backward(options)
        results.append((node.grad, edge.grad))
    for node, edge in results[1:]:
        assert torch.equal(node, results[0][0]) and torch.equal(edge, results[0][1])


def test_lambdas_differ_between_images():
    options = make_estimator(lambda_range=(10.0, 20.0), num_samples=4, lambda_scale=2.0)
    lambdas = np.array([[p.lam for _, p in row] for row in options.draw_samples(2)])
    assert lambdas.shape == (2, 4) and len(np.unique(lambdas)) == 8
    assert lambdas.min() >= 20 and lambdas.max() <= 40


def test_padding_takes_no_part():
    """Costs outside an image's own grid change nothing and get no gradient."""
    inside = 0.0
    for seed in range(4):
        options = make_estimator(lambda_range=(5.0, 5.0))
        node, edge, *_ = backward(options, seed=seed, sizes=[(8, 10), (6, 7)])
        assert (node.grad[1, :, 6:] == 0).all() and (node.grad[1, :, :, 7:] == 0).all()
        assert (edge.grad[1, ..., 6:, :] == 0).all() and (edge.grad[1, ..., 7:] == 0).all()
        inside += node.grad[1].abs().sum().item()
    assert inside > 0


def test_flip_rate_is_steered_to_its_target():
    """The scale rises while too little moves, falls while too much does, and then stays."""
    for scale, first in ((0.05, 0.03), (2.0, 0.1)):
        options = make_estimator(
            lambda_range=(4.0, 8.0),
            lambda_scale=scale,
            target_flip_rate=0.06,
            generator=torch.Generator().manual_seed(0),
        )
        rates = [backward(options)[-1].flip_rate for _ in range(60)]
        assert rates[0] < first if scale < 1 else rates[0] > first
        assert np.mean(rates[-20:]) == pytest.approx(0.06, rel=0.5)


def test_a_segments_lambda_grows_with_its_area():
    """A segment of A > 1 times lambda_area cells is perturbed by A lambda, and divided by it."""
    node, edge, truth, truth_classes = scene()
    (solution,) = solve(node[:1], edge[:1], [(8, 10)], make_estimator().solver)
    c = match_segments(
        solution.segments, solution.segment_classes, truth[0], truth_classes, truth[0] >= 0
    )
    gradient = np.ones((len(c), 8, 10), np.float32)
    problem = LiftedProblem(
        node[0].numpy(), edge[0].numpy(), c.classes, solution.segments, gradient, c.areas
    )
    options = make_estimator(lambda_area=12.0).gradient
    np.testing.assert_allclose(problem.label_scale(options), np.maximum(c.areas / 12, 1))
    assert c.areas.min() < 12 < c.areas.max()
    _, _, scale = problem.labels(solution.segments, options)
    assert scale[4, 2] == pytest.approx(max(c.areas[solution.segments[4, 2]] / 12, 1))

    plain = make_estimator(lambda_range=(6.0, 6.0), generator=torch.Generator())
    scaled = make_estimator(lambda_range=(3.0, 3.0), lambda_area=20.0, generator=torch.Generator())
    problem.areas = np.full(len(c), 40)  # all twice as large: the same as twice lambda
    for a, b in zip(plain([problem], Report())[0], scaled([problem], Report())[0]):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("area", [0.0, 10.0])
@pytest.mark.parametrize("estimator", EXACT)
def test_the_gradient_points_away_from_smaller_costs(estimator, area):
    """x(c) minimises <c, x>, so <gradient, c> >= 0: plain descent shrinks the costs."""
    options = make_estimator(estimator=estimator, lambda_area=area, lambda_range=(4.0, 8.0))
    node, edge, *_ = backward(options)
    assert (node.grad * node).sum() + (edge.grad * edge).sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"estimator": "exact"}, "estimator must be one of .* got 'exact'"),
        ({"lambda_range": (0.0, 5.0)}, "lambda_range must be"),
        ({"lambda_range": (6.0, 5.0)}, "lambda_range must be"),
        ({"two_sided": 2.0}, r"two_sided must be a share of lambda in \[0, 1\].* got 2.0"),
        ({"num_samples": 0}, "num_samples must be >= 1, got 0"),
        ({"target_flip_rate": 2.0}, r"target_flip_rate must be a share in \[0, 1\)"),
        ({"noise": -1.0}, "noise must be >= 0, got -1.0"),
        ({"estimator": "literal", "noise": 1.0}, "neither two_sided nor noise nor proximal"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_estimator(**wrong)


def test_layer_learns_with_a_loss_of_its_own():
    """x, y, z of the solver; a squared loss on x and y reaches the true labelling by descent."""
    node, edge, truth, truth_classes = scene()
    node, edge = node.requires_grad_(), edge.requires_grad_()
    x_true = torch.nn.functional.one_hot(torch.tensor(truth_classes[truth]), 3)
    x_true = x_true.permute(0, 3, 1, 2).float()
    y_true = cut_edges(torch.tensor(truth), DISTANCES).float()
    generator = torch.Generator().manual_seed(0)
    layer = AMWCLayer(
        DISTANCES, [False, False, True], lambda_range=(5.0, 20.0), generator=generator
    )
    optimizer = torch.optim.Adam([node, edge], lr=0.2)
    losses, moved = [], 0
    for _ in range(40):
        report = Report()
        x, y, z = layer(node, edge, report=report)
        assert torch.equal(cut_edges(z, DISTANCES).float(), y.detach())
        assert (x.sum(1) == 1).all() and x.requires_grad and y.requires_grad
        loss = ((x - x_true) ** 2).sum() + ((y - y_true) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        moved += report.moved
        assert report.forward_seconds > 0 and report.backward_seconds > 0
    assert losses[-1] < 0.1 * losses[0] and moved > 0


def test_layer_takes_padded_batches_and_names_wrong_arguments():
    node, edge, *_ = scene()
    layer = AMWCLayer(DISTANCES, [False, False, True])
    x, y, z = layer(node.double().requires_grad_(), edge, grid_sizes=[(8, 10), (6, 7)])
    assert (z[1, 6:] == -1).all() and (z[1, :, 7:] == -1).all() and z[1, :6, :7].min() == 0
    assert x[1, :, 6:].abs().sum() == y[1, ..., 7:].abs().sum() == 0
    x.sum().backward()
    with pytest.raises(ValueError, match=r"node_costs: expected shape \(N, 2, H, W\)"):
        AMWCLayer(DISTANCES, [False, True])(node, edge)
    with pytest.raises(ValueError, match=r"edge_costs: expected shape \(1, 2, 8, 10\)"):
        AMWCLayer([1], [False, False, True])(node, edge)
    with pytest.raises(ValueError, match=r"num_samples must be >= 1, got 0"):
        AMWCLayer(DISTANCES, [False, False, True], num_samples=0)
