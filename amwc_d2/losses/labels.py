"""Losses on the solver's classes and cuts, beside the PQ surrogate on its panoptic labels.

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid, padded

Throughout, x is the one-hot class, float (N, K, H, W), and y the cut indicator, float
(N, D, 2, H, W), 1 = cut; ``_true`` is the ground truth. Weights are 0 where a cell is void, crowd
or padding, and for edges with such an end.
"""

from torch import Tensor


def fenchel_young_loss(
    node_costs: Tensor,
    edge_costs: Tensor,
    x: Tensor,
    y: Tensor,
    x_true: Tensor,
    y_true: Tensor,
    cell_weight: Tensor,
    edge_weight: Tensor,
) -> Tensor:
    """How much the true labelling costs beyond the solver's own (Blondel et al. 2020).

    ``<c, (x, y)_true> - <c, (x, y)>``, a mean over cells. Its gradient is the difference of the two
    labellings, so that it needs no backward solve, and descent makes the truth the cheaper one.
    Where (x, y) solve noisy costs, this is the perturbed loss of Berthet et al. 2020.

    Args:
        node_costs, edge_costs: like x and y; the gradient flows to these.
        x, y: the solver's labelling, constants. x_true, y_true: the ground truth's.
        cell_weight: (N, H, W). edge_weight: like y.

    Returns:
        scalar; >= 0 if the solver found the optimum and all weights are 1.
    """
    excess = (node_costs * (x_true - x) * cell_weight[:, None]).sum()
    excess = excess + (edge_costs * (y_true - y) * edge_weight).sum()
    return excess / (cell_weight > 0).sum().clamp(min=1)


def class_loss(x: Tensor, x_true: Tensor, cell_weight: Tensor) -> Tensor:
    """Weighted share of wrong classes (paper equation 7), linear in x.

    ``|x - x_true|`` of 0/1 labels is written as ``x (1 - x_true) + (1 - x) x_true``, which has the
    same value and a gradient at right labels too, so that the perturbation can hold them.
    """
    wrong = (x * (1 - x_true) + (1 - x) * x_true) * cell_weight[:, None]
    return wrong.sum() / cell_weight.sum().clamp(min=1)


def cut_loss(y: Tensor, y_true: Tensor, edge_weight: Tensor) -> Tensor:
    """1 - F1 score of the cuts of each distance (paper equation 8), their mean over distances.

    Sums run over both directions and the batch. A distance without any cut counts 0.
    """
    dims = (0, 2, 3, 4)
    hit = (y * y_true * edge_weight).sum(dims)
    wrong = ((y * (1 - y_true) + (1 - y) * y_true) * edge_weight).sum(dims)
    return (0.5 * wrong / (hit + 0.5 * wrong).clamp(min=1e-6)).mean()
