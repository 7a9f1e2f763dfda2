"""From the network's logits to the costs of the multiway cut.

Signs (docs/method.md): a class cost is minus the class logit, low = good; an edge cost is the
affinity logit, positive = attractive = the logit of "same segment".

Shape shorthand in this module:

    N: images    K: classes    D: distances    2: directions    H, W: the grid (stride 4)
"""

import torch
from torch import Tensor, nn

GAMMA = 0.15  # chosen on images that decided nothing else: docs/benchmarks/refinement.md


class Costs(nn.Module):
    """Scales, offsets and dropout between logits and solver.

    ``c_V = -class_scale * logit + class_offset[k]`` and
    ``c_E = edge_scale[d] * logit + edge_offset[d]``. They start as 1 and 0 and stay so unless they
    are trained or calibrated. ``gamma``, calibrated with them, is no cost, but the weight of the
    edges where the solver's labels are refined (``solver_cython.refine_labels``).
    """

    def __init__(self, num_classes: int, num_distances: int, dropout: float = 0.0):
        """
        Args:
            num_classes, num_distances: K and D.
            dropout: share in [0, 1) of costs set to 0 by ``drop``.

        Raises:
            ValueError: the dropout is out of its range.
        """
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.dropout = dropout
        self.class_scale = nn.Parameter(torch.ones(()))
        self.class_offset = nn.Parameter(torch.zeros(num_classes))
        self.edge_scale = nn.Parameter(torch.ones(num_distances))
        self.edge_offset = nn.Parameter(torch.zeros(num_distances))
        self.register_buffer("gamma", torch.tensor(GAMMA))

    def forward(self, class_logits: Tensor, affinity_logits: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            class_logits: (N, K, H, W).
            affinity_logits: (N, D, 2, H, W), at the anchor.

        Returns:
            node costs (N, K, H, W) and edge costs (N, D, 2, H, W), float32.
        """
        node_costs = self.class_offset[:, None, None] - self.class_scale * class_logits.float()
        scale = self.edge_scale[:, None, None, None]
        edge_costs = scale * affinity_logits.float() + self.edge_offset[:, None, None, None]
        return node_costs, edge_costs

    def drop(
        self, node_costs: Tensor, edge_costs: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cost dropout (paper A.2): zero whole pixels and single edges, without rescaling.

        A dropped cost gets no gradient. The masks are drawn on the CPU, so that a seed gives the
        same masks on every device.
        """
        if self.dropout == 0:
            return node_costs, edge_costs

        def keep(shape, like):
            return (torch.rand(shape, generator=generator) >= self.dropout).to(like.device)

        n, _, height, width = node_costs.shape
        node_costs = node_costs * keep((n, 1, height, width), node_costs)
        return node_costs, edge_costs * keep(edge_costs.shape, edge_costs)


def without_scale(node_costs: Tensor, edge_costs: Tensor) -> tuple[Tensor, Tensor]:
    """The same costs, whose gradient has no part along an image's costs.

    Scaling all costs of an image changes no solution, yet every gradient through the solver points
    towards smaller costs (``estimators``), and with them towards a smaller margin. Multiplying by
    ``norm / norm``, one of them constant, projects that part out (after Sahoo et al. 2023). The
    norm is over the class costs, their mean over the classes taken off, and the edge costs.

    Args:
        node_costs: (N, K, H, W). edge_costs: (N, D, 2, H, W).
    """
    mean = node_costs.mean(dim=1, keepdim=True)
    centred = node_costs - mean
    norm = (centred.square().sum((1, 2, 3)) + edge_costs.square().sum((1, 2, 3, 4))).sqrt()
    norm = norm.clamp(min=1e-12)
    one = norm.detach() / norm
    return mean + centred * one[:, None, None, None], edge_costs * one[:, None, None, None, None]


def check_finite(node_costs: Tensor, edge_costs: Tensor) -> None:
    """Raise a FloatingPointError that names the head whose output is not finite."""
    for costs, head in ((node_costs, "sem_seg_head"), (edge_costs, "ins_embed_head (affinities)")):
        bad = ~torch.isfinite(costs)
        if bad.any():
            raise FloatingPointError(
                f"{int(bad.sum())} of {costs.numel()} outputs of {head} are NaN or infinite, so "
                "there is no multiway cut to solve. The training has diverged: lower "
                "SOLVER.BASE_LR, or turn SOLVER.CLIP_GRADIENTS on."
            )
