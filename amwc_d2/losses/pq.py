"""A smooth surrogate of panoptic quality (paper equation 6) and the matching it needs.

A *channel* is one panoptic label of one image: a predicted segment with the ground truth matched
to it, a predicted segment without one, or a missed ground-truth segment. Predicted and true masks
of an image live in the same channels, so the loss compares them channel by channel.

Shape shorthand in this module:

    N: images    J: channels (padded to the largest image)    K: classes    H, W: the grid
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from amwc_d2.edges import VOID

SURROGATES = ("paper", "authors", "symmetric")


@dataclass
class Channels:
    """The channels of one image.

    Attributes:
        classes: int64 (J,), class of each channel.
        predicted: int64 (J,), the predicted segment, -1 = a missed object.
        truth: int64 (J,), the ground-truth segment, -1 = unmatched prediction.
        ignored: bool (J,), prediction that lies mostly on void or crowd: neither right nor wrong.
        areas: (J,), area of the true segment where there is one, else of the predicted one.
        overlaps: (J,), area that the predicted and the true segment share.
    """

    classes: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    overlaps: np.ndarray

    def __len__(self):
        return len(self.classes)


def match_segments(segments, segment_classes, truth, truth_classes, valid) -> Channels:
    """Match predicted to true segments of the same class, maximising the sum of IoU (paper 3.3).

    Crowd counts as void here. panopticapi is stricter: it leaves crowd pixels in the union, and
    excuses a prediction there only if its class is the crowd's.

    Args:
        segments: int (H, W), predicted segment of every cell or pixel, from 0.
        segment_classes: int (P,), class of each predicted segment; some may have no pixel.
        truth: int (H, W), true segment, -1 where there is none.
        truth_classes: int (S,), class of each true segment.
        valid: bool (H, W), False on void and crowd.

    Returns:
        Channels: first the predicted segments in order, then the missed ones. Pairs that do not
        overlap stay unmatched; true segments without a valid cell do not appear.
    """
    num_predicted, num_truth = len(segment_classes), len(truth_classes)
    predicted_class = np.asarray(segment_classes, np.int64)

    area_all = np.bincount(segments.ravel(), minlength=num_predicted)
    inside = valid & (truth != VOID)
    pair = segments[inside] * num_truth + truth[inside]
    overlap = np.bincount(pair, minlength=num_predicted * num_truth)
    overlap = overlap.reshape(num_predicted, num_truth)
    area = np.bincount(segments[valid], minlength=num_predicted)
    truth_area = overlap.sum(axis=0)
    union = area[:, None] + truth_area[None, :] - overlap
    iou = overlap / np.maximum(union, 1)
    iou[predicted_class[:, None] != np.asarray(truth_classes)[None, :]] = 0

    matched = np.full(num_predicted, -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    overlapping = iou[rows, columns] > 0
    matched[rows[overlapping]] = columns[overlapping]
    missed = np.setdiff1d(np.flatnonzero(truth_area), matched)

    nothing = np.full(len(missed), -1, dtype=np.int64)
    return Channels(
        classes=np.concatenate([predicted_class, np.asarray(truth_classes, np.int64)[missed]]),
        predicted=np.concatenate([np.arange(num_predicted), nothing]),
        truth=np.concatenate([matched, missed]),
        ignored=np.concatenate(
            [(matched < 0) & (area_all - area > 0.5 * area_all), np.zeros(len(missed), bool)]
        ),
        areas=np.concatenate(
            [np.where(matched < 0, area_all, np.append(truth_area, 0)[matched]), truth_area[missed]]
        ),
        overlaps=np.concatenate(
            [
                np.where(matched < 0, 0, overlap[np.arange(num_predicted), matched]),
                np.zeros(len(missed), np.int64),
            ]
        ),
    )


def one_hot_masks(labels: Tensor, channel_labels, num_channels: int) -> Tensor:
    """Masks (J, H, W), float32: channel j is where ``labels`` equals ``channel_labels[j]``.

    A channel with label -1 is empty, as are those up to ``num_channels``.
    """
    masks = torch.zeros((num_channels, *labels.shape), device=labels.device)
    wanted = torch.as_tensor(channel_labels, device=labels.device)
    count = len(wanted)
    masks[:count] = (labels[None] == wanted[:, None, None]) & (wanted >= 0)[:, None, None]
    return masks


def soft_threshold(u: Tensor) -> Tensor:
    """h(u) = u^4 / (u^4 + (1-u)^4): a smooth step at IoU 0.5 (paper 3.3)."""
    return u**4 / (u**4 + (1 - u) ** 4)


def sum_over_processes(values: Tensor) -> Tensor:
    """Add ``values`` up over the processes of a distributed run; the gradient is the local one."""
    if not dist.is_available() or not dist.is_initialized():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return values + (total - values.detach())


def pq_surrogate_loss(
    prediction: Tensor,
    truth: Tensor,
    weight: Tensor,
    channel_class: Tensor,
    area_threshold: Tensor,
    *,
    surrogate: str = "symmetric",
    miss_weight: float = 0.0,
    ignored: Tensor | None = None,
    overlap: Tensor | None = None,
) -> Tensor:
    """1 - mean over classes of the smooth panoptic quality; sums run over the batch first.

    In a distributed run they run over the batches of all processes, and every process gets the
    loss of the joint batch and its gradient with respect to its own masks.

    With u = IoU, h = soft_threshold(u) and s = sigmoid(0.1 (area - threshold)), per class:

    * numerator: sum over matched channels of h s u (every surrogate);
    * ``paper`` (equation 6): denominator sum_matched h s + (sum_FP s + |FN|) / 2, so a matched pair
      with a low IoU counts nowhere;
    * ``authors``: each matched channel adds (1 - h) / 2, a soft miss;
    * ``symmetric``: it adds (1 - h)(1 + s) / 2, a soft miss and a soft false positive.

    Args:
        prediction: float (N, J, H, W), predicted masks: share of the cell in [0, 1]; the gradient
            flows to these.
        truth: float (N, J, H, W), true masks in the same channels: share of the cell in [0, 1].
        weight: float (N, H, W), share of the cell that is neither void nor crowd nor padding.
        channel_class: int64 (N, J), class of each channel, -1 = padding.
        area_threshold: float (K,), the small-segment threshold of each class, in cells.
        surrogate: one of ``SURROGATES``.
        miss_weight: adds ``miss_weight * u`` of missed objects to the numerator, worth nothing
            where u = 0 but with a gradient there (equation 6 gives missed objects none).
        ignored: bool (N, J), channels that count as nothing.
        overlap: float (N, J), cells that each pair of masks shares, where both are shares of cells,
            which do not tell. None: the product of the masks; in either case that gives the
            gradient.

    Returns:
        scalar; 0 times the prediction if no class is present, so that gradients stay connected.
    """
    present = channel_class >= 0
    if ignored is not None:
        present = present & ~ignored
    truth = torch.minimum(truth, weight[:, None])
    intersection = (prediction * truth).sum((2, 3))
    if overlap is not None:
        intersection = overlap + intersection - intersection.detach()
    union = (prediction * weight[:, None]).sum((2, 3)) + truth.sum((2, 3)) - intersection
    u = intersection / union.clamp(min=1)
    h = soft_threshold(u)

    area = prediction.sum((2, 3))  # void cells too: the rejection at inference counts them
    num_classes = len(area_threshold)
    classes = channel_class.clamp(min=0)
    s = torch.sigmoid(0.1 * (area - area_threshold[classes]))

    has_prediction = (prediction.detach().flatten(2).amax(2) > 0) & present
    has_truth = (truth.flatten(2).amax(2) > 0) & present
    matched, false_positive = has_prediction & has_truth, has_prediction & ~has_truth
    missed = has_truth & ~has_prediction

    numerator = matched * (h * s * u) + missed * (miss_weight * u)
    denominator = matched * (h * s) + 0.5 * (false_positive * s + missed)
    if surrogate == "authors":
        denominator = denominator + matched * 0.5 * (1 - h)
    elif surrogate == "symmetric":
        denominator = denominator + matched * 0.5 * (1 - h) * (1 + s)

    def by_class(values):
        return values.new_zeros(num_classes).index_add(
            0, classes.flatten(), (values * present).flatten()
        )

    count = by_class((has_prediction | has_truth).to(u.dtype))
    sums = torch.stack([by_class(numerator), by_class(denominator), count])
    numerator, denominator, count = sum_over_processes(sums)
    if not (count > 0).any():
        return prediction.sum() * 0
    return 1 - (numerator / denominator.clamp(min=1e-6))[count > 0].mean()
