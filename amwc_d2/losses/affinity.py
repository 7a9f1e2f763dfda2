"""Stage 1's affinity loss: weighted top-k binary cross-entropy for every distance (paper 4.2).

Shape shorthand in this module:

    N: images    D: distances    2: directions    H, W: the grid (stride 4)
"""

from torch import Tensor
from torch.nn import functional as F

from amwc_d2.edges import cut_edges, edge_weights


def affinity_targets(segments: Tensor, node_weights: Tensor, distances) -> tuple[Tensor, Tensor]:
    """Targets and weights of all edges from the ground truth.

    Args:
        segments: (N, H, W) integer ground-truth segment of every cell.
        node_weights: (N, H, W) float; 0 = void or crowd, which takes no part.

    Returns:
        target: float (N, D, 2, H, W), 1 = both ends in one segment.
        weight: float (N, D, 2, H, W): 0 if an end is outside or has weight 0, otherwise the
            larger weight of the two ends ("at least one end point belongs to a thing").
    """
    target = (~cut_edges(segments, distances)).float()
    return target, edge_weights(node_weights, distances)


def affinity_loss(logits: Tensor, target: Tensor, weight: Tensor, top_k: float) -> Tensor:
    """Mean weighted binary cross-entropy over the hardest edges of each classifier output.

    As in Panoptic-DeepLab's semantic loss, weights count before the selection and edges without
    weight stay in the pool as zeros.

    Args:
        logits, target, weight: (N, D, 2, H, W).
        top_k: share in (0, 1] of the edges that count.

    Returns:
        (D,) sums over the two directions; connected to ``logits`` even if all weights are zero.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    loss = loss.permute(1, 2, 0, 3, 4).flatten(2)  # (D, 2, N H W)
    count = max(1, int(top_k * loss.shape[-1]))
    if count < loss.shape[-1]:
        loss = loss.topk(count, dim=-1, sorted=False).values
    return loss.mean(dim=-1).sum(dim=-1)
