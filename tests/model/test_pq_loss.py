"""The PQ surrogate: worked examples, gradients, matching."""

import numpy as np
import pytest
import torch

from amwc_d2.losses.pq import (
    match_segments,
    one_hot_masks,
    pq_surrogate_loss,
    soft_threshold,
)


def loss_of(prediction, truth, classes=(0,), **kwargs):
    if not isinstance(prediction, torch.Tensor):
        prediction = torch.from_numpy(np.stack(prediction))
    prediction, truth = prediction[None, :, None], torch.from_numpy(np.stack(truth))[None, :, None]
    num_classes = max(classes) + 1
    weight = kwargs.pop("weight", torch.ones(1, 1, prediction.shape[-1]))
    return pq_surrogate_loss(
        prediction,
        truth,
        weight.double(),
        torch.tensor([classes]),
        kwargs.pop("thresholds", torch.full((num_classes,), -1e4, dtype=torch.float64)),
        **kwargs,
    )


def mask(*cells, size=10):
    m = np.zeros(size)
    m[list(cells)] = 1
    return m


TRUTH, PREDICTION = mask(*range(6)), mask(*range(2, 8))  # I = 4, U = 8, u = 0.5, h = 0.5


@pytest.mark.parametrize(
    ("surrogate", "expected"), [("paper", 0.5), ("authors", 1 / 3), ("symmetric", 0.25)]
)
def test_ten_pixel_example(surrogate, expected):
    """With one matched pair of IoU 1/2, h and sigma cancel in equation 6: PQ = IoU."""
    loss = loss_of([PREDICTION], [TRUTH], surrogate=surrogate)
    assert loss.item() == pytest.approx(1 - expected, abs=1e-9)


def test_gradient_of_the_ten_pixel_example():
    """Equation 6: d(1 - PQ)/dz = -1/U on true pixels and +I/U^2 elsewhere."""
    z = torch.tensor(PREDICTION)[None].requires_grad_()
    loss_of(z, [TRUTH], surrogate="paper").backward()
    torch.testing.assert_close(z.grad[0, :6], torch.full((6,), -1 / 8).double())
    torch.testing.assert_close(z.grad[0, 6:], torch.full((4,), 4 / 64).double())


@pytest.mark.parametrize("surrogate", ["paper", "authors", "symmetric"])
def test_gradcheck(surrogate):
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    g = (torch.rand(2, 3, 4, 5, generator=generator) > 0.5).double()
    classes = torch.tensor([[0, 1, 1], [1, 0, -1]])
    weight = (torch.rand(2, 4, 5, generator=generator) > 0.2).double()
    thresholds = torch.tensor([5.0, 12.0]).double()
    assert torch.autograd.gradcheck(
        lambda p: pq_surrogate_loss(p, g, weight, classes, thresholds, surrogate=surrogate), z
    )


def test_low_iou_pair_is_free_in_equation_6_only():
    """Science 4.5: an IoU of 0.3 alone gives 0.3 in equation 6, about 0 in the others."""
    prediction, truth = mask(*range(7, 20), size=40), mask(*range(10), size=40)  # I 3, U 20
    u = 3 / 20
    assert loss_of([prediction], [truth], surrogate="paper").item() == pytest.approx(1 - u)
    assert loss_of([prediction], [truth], surrogate="symmetric").item() > 0.99


def test_a_missed_object_has_a_gradient_only_with_miss_weight():
    def gradient(miss_weight):
        z = torch.zeros(2, 10, dtype=torch.float64)
        z[0, :4] = 1
        z.requires_grad_()
        loss_of(z, [mask(0, 1, 2, 3), mask(6, 7)], (0, 0), miss_weight=miss_weight).backward()
        return z.grad[1]

    assert gradient(0.0).abs().max() == 0
    with_way_back = gradient(0.1)
    assert (with_way_back[6:8] < 0).all(), "descent must raise the mask on the missed object"
    assert with_way_back[:6].abs().max() == 0


def test_void_pixels_do_not_count_and_get_no_gradient():
    weight = torch.ones(1, 1, 10)
    weight[..., 6:] = 0
    z = torch.tensor(PREDICTION)[None].requires_grad_()
    loss = loss_of(z, [TRUTH], surrogate="paper", weight=weight)
    assert loss.item() == pytest.approx(1 - 4 / 6)
    loss.backward()
    assert (z.grad[0, 6:] == 0).all()


def test_sums_run_over_the_batch_before_dividing():
    perfect, missed = mask(*range(5)), np.zeros(10)
    one = torch.as_tensor(np.stack([perfect, missed]))[:, None, None]
    truth = torch.as_tensor(np.stack([perfect, perfect]))[:, None, None]
    loss = pq_surrogate_loss(
        one,
        truth,
        torch.ones(2, 1, 10),
        torch.zeros(2, 1).long(),
        torch.tensor([-1e4]),
    )
    assert loss.item() == pytest.approx(1 - 1 / 1.5, abs=1e-6)


def test_small_segments_count_less():
    thresholds = torch.tensor([100.0])
    small = loss_of(
        [PREDICTION, np.zeros(10)], [np.zeros(10), TRUTH], (0, 0), thresholds=thresholds
    )
    alone = pq_surrogate_loss(
        torch.zeros(1, 1, 1, 10),
        torch.as_tensor(TRUTH)[None, None, None],
        torch.ones(1, 1, 10),
        torch.zeros(1, 1).long(),
        thresholds,
    )
    assert small.item() == alone.item() == 1.0  # nothing is found, rejected or not
    assert soft_threshold(torch.tensor(0.5)).item() == 0.5


def test_no_class_at_all_keeps_the_gradient_connected():
    z = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = pq_surrogate_loss(
        z, z.detach(), torch.ones(1, 2, 2), torch.full((1, 1), -1), torch.tensor([0.0])
    )
    loss.backward()
    assert loss.item() == 0 and (z.grad == 0).all()


def test_matching_by_class_and_overlap():
    segments = np.array([[0, 0, 0, 1, 1, 2, 2, 3]])
    classes = np.array([0, 1, 1, 1])
    truth = np.array([[0, 0, 0, 1, 1, 1, 2, -1]])
    truth_classes = np.array([0, 1, 0])
    c = match_segments(segments, classes, truth, truth_classes, truth >= 0)
    # segment 1 matches truth 1 (IoU 2/3); truth 2 has another class than segment 2: missed
    assert c.predicted.tolist() == [0, 1, 2, 3, -1]
    assert c.truth.tolist() == [0, 1, -1, -1, 2]
    assert c.classes.tolist() == [0, 1, 1, 1, 0]
    assert c.ignored.tolist() == [False, False, False, True, False]  # segment 3 lies on void
    assert c.overlaps.tolist() == [3, 2, 0, 0, 0]
    assert len(c) == 5


def test_overlap_of_shares():
    """Two halves of one cell that do not meet: the product of the shares would be a quarter."""
    half = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    arguments = (half.detach(), torch.ones(1, 1, 1), torch.zeros(1, 1).long(), torch.tensor([-1e4]))
    apart = pq_surrogate_loss(half, *arguments, overlap=torch.zeros(1, 1))
    product = pq_surrogate_loss(half, *arguments)
    assert apart.item() == 1 and product.item() < 1
    whole = pq_surrogate_loss(half, *arguments, overlap=torch.full((1, 1), 0.5))
    whole.backward()
    assert whole.item() < product.item() and half.grad.item() < 0


def test_matching_maximises_the_sum_of_iou():
    """The greedy choice (segment 0 with truth 0) would leave less in all."""
    segments = np.array([[0] * 10 + [1] * 4])
    truth = np.array([[0] * 5 + [1] * 4 + [0] * 5])
    c = match_segments(segments, np.array([0, 0]), truth, np.array([0, 0]), truth >= 0)
    assert c.truth.tolist() == [1, 0]


def test_one_hot_masks():
    labels = torch.tensor([[0, 0, 2]])
    masks = one_hot_masks(labels, np.array([0, -1, 2]), 4)
    assert masks.tolist() == [[[1, 1, 0]], [[0, 0, 0]], [[0, 0, 1]], [[0, 0, 0]]]
