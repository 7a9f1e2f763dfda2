"""Stage 2's losses: perfect and poor solutions, sums by weight, void, learning by descent."""

import numpy as np
import pytest
import torch
from helpers import DISTANCES, make_estimator, scene

from amwc_d2.amwc_layer import solve
from amwc_d2.costs import without_scale
from amwc_d2.edges import cut_edges, edge_exists, edge_weights
from amwc_d2.estimators import Report
from amwc_d2.losses.end_to_end import EndToEndLoss, Truth
from amwc_d2.losses.labels import class_loss, cut_loss, fenchel_young_loss
from amwc_d2.losses.pq import match_segments, one_hot_masks, pq_surrogate_loss

SIZES = [(8, 10), (8, 10)]
KEYS = {"pq_weight": "loss_pq", "separate_weight": "loss_separate"}
KEYS["fenchel_young_weight"] = "loss_fenchel_young"


def problem(seed=0):
    """Leaf costs and the truth of ``test_amwc_layer.scene``."""
    node, edge, segments, classes = scene(seed)
    truth = Truth(
        torch.tensor(segments), [torch.tensor(classes)] * 2, [torch.zeros(4, dtype=torch.bool)] * 2
    )
    return node.requires_grad_(), edge.requires_grad_(), truth


def only(weight, value=1.0, **kwargs):
    """The criterion with one of its losses, named by its weight."""
    weights = dict.fromkeys(KEYS, 0.0) | {weight: value}
    estimator = kwargs.pop("estimator", make_estimator(lambda_range=(100.0, 200.0)))
    return EndToEndLoss(estimator, thing_area=0, stuff_area=0, **weights, **kwargs)


def perfect_costs(truth):
    classes = truth.classes[0][truth.segments]
    node = -9.0 * torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()
    cut = cut_edges(truth.segments, DISTANCES)
    edge = torch.where(cut, -9.0, 9.0) * edge_exists(8, 10, DISTANCES)
    return node.requires_grad_(), edge.requires_grad_()


@pytest.mark.parametrize("weight", KEYS)
def test_perfect_costs_lose_nothing_and_get_no_gradient(weight):
    *_, truth = problem()
    node, edge = perfect_costs(truth)
    losses, _ = only(weight)(node, edge, SIZES, truth)
    assert list(losses) == [KEYS[weight]]
    assert losses[KEYS[weight]].item() == pytest.approx(0, abs=2e-2)  # sigma of small segments
    losses[KEYS[weight]].backward()
    assert (node.grad == 0).all() and (edge.grad == 0).all()


@pytest.mark.parametrize("weight", KEYS)
def test_descent_learns_a_scene(weight):
    """SurCo's test: the costs of two images as the only parameters."""
    node, edge, truth = problem()
    criterion = only(
        weight,
        1.0 if weight == "fenchel_young_weight" else 10.0,
        estimator=make_estimator(
            lambda_range=(20.0, 60.0), generator=torch.Generator().manual_seed(0)
        ),
    )
    optimizer = torch.optim.Adam([node, edge], lr=0.2)
    history = []
    for _ in range(40):
        losses, _ = criterion(node, edge, SIZES, truth)
        optimizer.zero_grad()
        losses[KEYS[weight]].backward()
        optimizer.step()
        history.append(losses[KEYS[weight]].item())
    assert history[0] > 0
    assert min(history) < 0.2 * history[0]


def test_full_resolution_is_the_quality_of_the_pixels():
    """Truth finer than the grid: the loss is that of the labels enlarged to it, cell by cell."""
    generator = torch.Generator().manual_seed(0)
    node = torch.randn(1, 3, 8, 10, generator=generator)
    edge = torch.randn(1, len(DISTANCES), 2, 8, 10, generator=generator)
    segments = torch.zeros(1, 24, 30, dtype=torch.int64)
    segments[:, 4:13, 5:17], segments[:, 11:20, 16:28], segments[:, :, :2] = 1, 2, -1
    truth = Truth(segments, [torch.tensor([0, 2, 2])], [torch.tensor([False, False, True])])
    estimator = make_estimator()
    criterion = EndToEndLoss(estimator, thing_area=-1e6, stuff_area=-1e6)  # all segments are large
    losses, _ = criterion(node, edge, [(8, 10)], truth)

    solution = solve(node, edge, [(8, 10)], estimator.solver)[0]
    labels = solution.segments.repeat(3, 0).repeat(3, 1)
    valid = truth.valid([(24, 30)])
    found = match_segments(
        labels,
        solution.segment_classes,
        segments[0].numpy(),
        truth.classes[0].numpy(),
        valid[0].numpy(),
    )
    masks = [
        one_hot_masks(z, channels, len(found))[None]
        for z, channels in ((torch.from_numpy(labels), found.predicted), (segments[0], found.truth))
    ]
    expected = pq_surrogate_loss(
        *masks,
        valid.float(),
        torch.from_numpy(found.classes)[None],
        torch.full((3,), -1e6),
        miss_weight=0.1,
        ignored=torch.from_numpy(found.ignored)[None],
    )
    assert losses["loss_pq"].item() == pytest.approx(expected.item(), abs=1e-6)
    on_grid = EndToEndLoss(estimator, thing_area=-1e6, stuff_area=-1e6, full_resolution=False)
    assert on_grid(node, edge, [(8, 10)], truth)[0]["loss_pq"].item() != expected.item()


def test_losses_add_up_by_weight():
    node, edge, truth = problem()

    def gradient(**weights):
        estimator = make_estimator(
            lambda_range=(20.0, 20.0), generator=torch.Generator().manual_seed(1)
        )
        criterion = EndToEndLoss(estimator, thing_area=0, stuff_area=0, **weights)
        losses, report = criterion(node, edge, SIZES, truth)
        assert report.segments > 1 and report.forward_seconds > 0
        return losses, torch.autograd.grad(sum(losses.values()), (node, edge))

    weights = {"pq_weight": 10.0, "separate_weight": 3.0, "fenchel_young_weight": 2.0}
    both, total = gradient(**weights)
    single = [gradient(**(dict.fromkeys(weights, 0.0) | {k: v})) for k, v in weights.items()]
    for losses, _ in single:
        for key, value in losses.items():
            assert value.item() == both[key].item()
    for i, part in enumerate(total):
        torch.testing.assert_close(part, sum(gradients[i] for _, gradients in single))


def test_nothing_is_solved_for_no_loss():
    node, edge, truth = problem()
    criterion = only("pq_weight", 0.0)
    assert criterion(node * float("nan"), edge, SIZES, truth) == ({}, Report())


@pytest.mark.parametrize("weight", KEYS)
def test_void_crowd_and_padding_get_no_gradient(weight):
    node, edge, truth = problem()
    truth.segments[0, :3] = -1
    truth.crowd[1] = torch.tensor([False, False, True, False])
    crowd = truth.segments[1] == 2
    sizes = [(8, 10), (7, 9)]
    losses, _ = only(weight)(node, edge, sizes, truth)
    losses[KEYS[weight]].backward()
    assert (node.grad[0, :, :3] == 0).all() and (edge.grad[0, :, :, :3] == 0).all()
    assert (node.grad[1][:, crowd] == 0).all() and (edge.grad[1][..., crowd] == 0).all()
    assert (node.grad[1, :, 7:] == 0).all() and (node.grad[1, :, :, 9:] == 0).all()
    assert node.grad.abs().sum() > 0


def test_fenchel_young_gradient_is_the_difference_of_labellings():
    node, edge, truth = problem()
    losses, _ = only("fenchel_young_weight")(node, edge, SIZES, truth)
    losses["loss_fenchel_young"].backward()
    x = torch.stack(
        [torch.from_numpy(s.classes) for s in solve(node, edge, SIZES, make_estimator().solver)]
    )
    x, x_true = (
        torch.nn.functional.one_hot(c.long(), 3).permute(0, 3, 1, 2)
        for c in (x, truth.classes[0][truth.segments])
    )
    torch.testing.assert_close(node.grad * 160, (x_true - x).float())
    assert losses["loss_fenchel_young"].item() >= 0


def test_classes_and_cuts_by_hand():
    """Equation 7: 1 of 4 cells is wrong, |x - x_g|_1 = 2. Equation 8: 1 hit, 1 miss, 1 false."""
    x_true = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).view(1, 2, 1, 4)
    x = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 1]]).view(1, 2, 1, 4)
    assert class_loss(x, x_true, torch.ones(1, 1, 4)).item() == 2 / 4
    assert class_loss(x, x_true, torch.tensor([[[1.0, 0, 1, 1]]])).item() == 0
    y_true = torch.zeros(1, 1, 2, 1, 4)
    y = y_true.clone()
    y_true[..., 0, 0, :2] = 1
    y[..., 0, 0, 1:3] = 1
    y.requires_grad_()
    loss = cut_loss(y, y_true, torch.ones_like(y))
    assert loss.item() == 0.5
    loss.backward()
    gradient = y.grad[0, 0, 0, 0]  # (D / 2 - hit' D) / D^2 with D = 2: -3/8 and +1/8
    torch.testing.assert_close(gradient, torch.tensor([-3 / 8, -3 / 8, 1 / 8, 1 / 8]))


def test_weights_of_stage_one_count_in_the_separate_losses():
    node, edge, truth = problem()
    plain = only("separate_weight")(node, edge, SIZES, truth)[0]["loss_separate"].item()
    truth.class_weight = truth.affinity_weight = torch.ones(truth.segments.shape)
    assert only("separate_weight")(node, edge, SIZES, truth)[0]["loss_separate"].item() == plain
    truth.affinity_weight = 1.0 + 3 * (truth.segments >= 2)
    assert only("separate_weight")(node, edge, SIZES, truth)[0]["loss_separate"].item() != plain
    weights = edge_weights(torch.tensor([[[1.0, 4, 0, 1, 1]]]), (1,))
    assert weights[0, 0, 0].tolist() == [[4, 0, 0, 1, 0]]


def test_normalised_costs_are_the_same_but_do_not_shrink():
    node, edge, truth = problem()
    for a, b in zip(without_scale(node, edge), (node, edge)):
        torch.testing.assert_close(a, b)
    for normalize in (False, True):
        criterion = only("fenchel_young_weight", normalize_costs=normalize)
        losses, _ = criterion(node, edge, SIZES, truth)
        g_v, g_e = torch.autograd.grad(losses["loss_fenchel_young"], (node, edge))
        along = (g_v * (node - node.mean(1, keepdim=True))).sum() + (g_e * edge).sum()
        if normalize:
            assert along.item() == pytest.approx(0, abs=1e-5)
            torch.testing.assert_close(g_v.sum(1), torch.zeros_like(g_v[:, 0]), atol=1e-6, rtol=0)
        else:
            assert along > 0.01


def test_same_seed_same_gradient_with_noise_for_any_number_of_threads():
    results = []
    for threads in (1, 3):
        node, edge, truth = problem()
        estimator = make_estimator(
            noise=0.5, num_threads=threads, generator=torch.Generator().manual_seed(3)
        )
        criterion = EndToEndLoss(
            estimator,
            thing_area=0,
            stuff_area=0,
            separate_weight=1.0,
            fenchel_young_weight=1.0,
        )
        losses, _ = criterion(node, edge, SIZES, truth)
        results.append(torch.autograd.grad(sum(losses.values()), (node, edge)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_wrong_weights_are_named():
    with pytest.raises(ValueError, match=r"separate_weight must be >= 0, got -1"):
        only("separate_weight", -1)
    with pytest.raises(ValueError, match="surrogate must be one of"):
        only("pq_weight", surrogate="dice")


def test_fenchel_young_loss_counts_cells_with_weight():
    node, edge = torch.ones(1, 2, 1, 4), torch.zeros(1, 1, 2, 1, 4)
    x_true = torch.zeros(1, 2, 1, 4)
    x_true[:, 0] = 1
    x = x_true.flip(1)
    node[:, 0] = 3
    weight = torch.tensor([[[1.0, 1, 0, 0]]])
    y = torch.zeros_like(edge)
    value = fenchel_young_loss(node, edge, x, y, x_true, y, weight, y)
    assert value.item() == 2.0
    assert np.isfinite(fenchel_young_loss(node, edge, x, y, x_true, y, weight * 0, y).item())
