"""The layer: Algorithm 1 by hand, null test, sign, label space, determinism."""

import numpy as np
import pytest
import torch

from amwc_d2.amwc_layer import ESTIMATORS, AMWCLayer, SolverSettings, solve
from amwc_d2.edges import cut_edges, edge_exists
from amwc_d2.pq_loss import match_segments, one_hot_masks

DISTANCES = (1, 2)
EXACT = ["same_solver", "warm_start"]


def settings(**kwargs):
    args = {"distances": DISTANCES, "partitionable": np.array([False, False, True])} | kwargs
    return SolverSettings(**args)


def scene(seed=0, n=2, height=8, width=10):
    """Costs around a scene with two things of one class on stuff, and its segments."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, height, width), int)
    truth[:, :, : width // 3] = 1
    truth[:, 2:6, 4:7] = 2
    truth[:, 2:6, 7:9] = 3
    truth_classes = np.array([0, 1, 2, 2])
    classes = truth_classes[truth]
    node = -3.0 * (classes[:, None] == np.arange(3)[None, :, None, None])
    node = torch.tensor(node + rng.normal(0, 2.5, node.shape), dtype=torch.float32)
    cut = cut_edges(torch.tensor(truth), DISTANCES)
    edge = torch.where(cut, -2.0, 2.0) + torch.tensor(rng.normal(0, 2, cut.shape))
    edge = (edge * edge_exists(height, width, DISTANCES)).float()
    return node, edge, truth, truth_classes


def backward(options, gradient_scale=1.0, seed=0, sizes=None):
    """Loss = gradient_scale * sum(masks * (1 - 2 truth)): wants every mask on its truth."""
    node, edge, truth, truth_classes = scene(seed)
    node.requires_grad_()
    edge.requires_grad_()
    sizes = sizes or [truth.shape[1:]] * len(truth)
    solutions = solve(node, edge, sizes, options)
    channels, masks, targets = [], [], []
    for s, t, (h, w) in zip(solutions, truth, sizes):
        t = t[:h, :w]
        channels.append(match_segments(s.classes, s.segments, t, truth_classes, t >= 0))
    count = max(map(len, channels))
    for s, t, c, (h, w) in zip(solutions, truth, channels, sizes):
        z = torch.full(t.shape, -1)
        z[:h, :w] = torch.from_numpy(s.segments)
        masks.append(one_hot_masks(z, c.predicted, count))
        targets.append(one_hot_masks(torch.from_numpy(t), c.truth, count))
    masks, targets = torch.stack(masks), torch.stack(targets)
    out = AMWCLayer.apply(node, edge, masks, channels, solutions, options)
    assert torch.equal(out, masks)
    (gradient_scale * (out * (1 - 2 * targets)).sum()).backward()
    return node, edge, solutions, channels, truth


@pytest.mark.parametrize("estimator", EXACT)
def test_no_perturbation_gives_exactly_zero(estimator):
    node, edge, *_ = backward(settings(estimator=estimator), gradient_scale=0.0)
    assert (node.grad == 0).all() and (edge.grad == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_descent_lowers_the_true_class_and_joins_true_segments(estimator):
    options = settings(estimator=estimator, lambda_range=(4.0, 8.0))
    node, edge, solutions, _, truth = backward(options)
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
        options = settings(num_lambdas=1, lambda_range=(lam, lam))
        node = torch.tensor([0.2, 0.0, 0.5]).view(1, 3, 1, 1).requires_grad_()
        edge = torch.zeros(1, 2, 2, 1, 1)
        solutions = solve(node, edge, [(1, 1)], options)
        truth = np.zeros((1, 1), int)
        c = match_segments(
            solutions[0].classes, solutions[0].segments, truth, np.array([0]), truth >= 0
        )
        assert c.classes.tolist() == [1, 0] and c.truth.tolist() == [-1, 0]
        masks = one_hot_masks(torch.from_numpy(solutions[0].segments).long(), c.predicted, 2)
        out = AMWCLayer.apply(node, edge, masks[None], [c], solutions, options)
        (out[0, 0].sum() - out[0, 1].sum()).backward()  # dL/dz = (1, -1)
        torch.testing.assert_close(node.grad.flatten(), torch.tensor(expected))


def test_literal_estimator_is_biased_where_ours_is_not():
    """Its reference comes from another solver, so a zero perturbation need not give zero."""
    seen = 0.0
    for seed in range(12):
        node, edge, *_ = backward(settings(estimator="literal"), 0.0, seed)
        seen = max(seen, edge.grad.abs().max().item(), node.grad.abs().max().item())
    assert seen > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_same_seed_same_gradient_for_any_number_of_threads(estimator):
    results = []
    for threads in (1, 2, 5):
        generator = torch.Generator().manual_seed(3)
        options = settings(
            estimator=estimator, num_threads=threads, generator=generator, lambda_range=(1, 9)
        )
        node, edge, *_ = backward(options)
        results.append((node.grad, edge.grad))
    for node, edge in results[1:]:
        assert torch.equal(node, results[0][0]) and torch.equal(edge, results[0][1])


def test_lambdas_differ_between_images(monkeypatch):
    import amwc_d2.amwc_layer as layer

    seen = []
    original = layer._perturbed
    monkeypatch.setattr(
        layer, "_perturbed", lambda p, lams, s: (seen.append(lams), original(p, lams, s))[1]
    )
    backward(settings(lambda_range=(10.0, 20.0), num_lambdas=4))
    (lambdas,) = seen
    assert lambdas.shape == (2, 4) and len(np.unique(lambdas)) == 8
    assert lambdas.min() >= 10 and lambdas.max() <= 20


def test_padding_takes_no_part():
    """Costs outside an image's own grid change nothing and get no gradient."""
    inside = 0.0
    for seed in range(4):
        options = settings(lambda_range=(5.0, 5.0))
        node, edge, *_ = backward(options, seed=seed, sizes=[(8, 10), (6, 7)])
        assert (node.grad[1, :, 6:] == 0).all() and (node.grad[1, :, :, 7:] == 0).all()
        assert (edge.grad[1, ..., 6:, :] == 0).all() and (edge.grad[1, ..., 7:] == 0).all()
        inside += node.grad[1].abs().sum().item()
    assert inside > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"estimator": "exact"}, "ESTIMATOR must be one of .* got 'exact'"),
        ({"lambda_range": (0.0, 5.0)}, "LAMBDA_RANGE must be"),
        ({"lambda_range": (6.0, 5.0)}, "LAMBDA_RANGE must be"),
        ({"num_lambdas": 0}, "NUM_LAMBDAS must be >= 1, got 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        settings(**wrong)
