"""Geometry of the grid edges: which pairs of cells an edge joins, for every distance.

The grid is the network's output at stride 4. For each distance d there are horizontal edges
(direction 0, joining (y, x) and (y, x+d)) and vertical ones (direction 1, joining (y, x) and
(y+d, x)). Costs, targets and the solver store an edge at its *anchor*, the left or top end; the
head's features are stored at the edge's *centre* (paper equations 9 and 10), so that the
horizontal and the vertical edge of one place see each other.

Shape shorthand in this module:

    N: images          D: distances          2: directions (horizontal, vertical)
    C: channels        H, W: the grid
"""

import torch
from torch import Tensor
from torch.nn import functional as F

VOID = -1  # label of cells and pixels that belong to no segment


def _shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """out[..., y, x] = x[..., y + dy, x + dx], zero where that lies outside. Any sign."""
    height, width = x.shape[-2:]
    dy = max(-height, min(height, dy))
    dx = max(-width, min(width, dx))
    inside = x[..., max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    return F.pad(inside, (max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))


def at_cell_centres(pixels: Tensor, stride: int) -> Tensor:
    """Values (..., stride H, stride W) at the centres of a grid's cells, (..., H, W)."""
    centres = slice(stride // 2, None, stride)
    return pixels[..., centres, centres]


def edge_exists(height: int, width: int, distances, device=None) -> Tensor:
    """Bool (D, 2, H, W), at the anchor: is the edge's other end inside the grid?"""
    y = torch.arange(height, device=device)[:, None].expand(height, width)
    x = torch.arange(width, device=device)[None, :].expand(height, width)
    return torch.stack([torch.stack([x + d < width, y + d < height]) for d in distances])


def edge_differences(features: Tensor, distance: int) -> Tensor:
    """Differences of node features over the edges of one distance (paper equations 9 and 10).

    Args:
        features: (N, C, H, W).
        distance: d >= 1; odd ones too.

    Returns:
        (N, 2C, H, W), stored at the edge's centre: the first C channels are
        f(y, x + floor(d/2)) - f(y, x - ceil(d/2)), the others the same along y; zero where an end
        lies outside the grid.
    """
    after, before = distance // 2, -(-distance // 2)

    def along(dim, padding):
        edges = features.shape[dim] - distance
        if edges <= 0:
            return torch.zeros_like(features)
        ends = features.narrow(dim, distance, edges), features.narrow(dim, 0, edges)
        return F.pad(ends[0] - ends[1], padding)

    return torch.cat([along(-1, (before, after)), along(-2, (0, 0, before, after))], dim=1)


def centre_to_anchor(values: Tensor, distance: int) -> Tensor:
    """Move per-edge values from the edge's centre to its anchor.

    Args:
        values: (N, 2, H, W), stored at the centre (x_anchor + ceil(d/2)).
        distance: d.

    Returns:
        (N, 2, H, W), stored at the anchor; entries without an edge are zero.
    """
    height, width = values.shape[-2:]
    before = -(-distance // 2)
    horizontal = _shift(values[:, 0], 0, before)
    vertical = _shift(values[:, 1], before, 0)
    exists = edge_exists(height, width, [distance], values.device)[0]
    return torch.stack([horizontal, vertical], dim=1) * exists


def edge_ends(nodes: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """Values at the anchor and at the other end of every edge of one distance.

    Args:
        nodes: (..., H, W).

    Returns:
        two tensors (..., 2, H, W); the second is zero where there is no edge.
    """
    anchor = torch.stack([nodes, nodes], dim=-3)
    other = torch.stack([_shift(nodes, 0, distance), _shift(nodes, distance, 0)], dim=-3)
    return anchor, other


def cut_edges(segments: Tensor, distances) -> Tensor:
    """The cut indicator y: does an edge join two different segments?

    Args:
        segments: (..., H, W) integer segment of every cell.

    Returns:
        bool (..., D, 2, H, W), at the anchor; False where there is no edge.
    """
    height, width = segments.shape[-2:]
    exists = edge_exists(height, width, distances, segments.device)
    cuts = []
    for d in distances:
        anchor, other = edge_ends(segments, d)
        cuts.append(anchor != other)
    return torch.stack(cuts, dim=-4) & exists


def edge_weights(cell_weight: Tensor, distances) -> Tensor:
    """Weights of edges, float (N, D, 2, H, W), from those of cells, (N, H, W).

    The larger weight of both ends; 0 if either is 0 or lies outside.
    """
    weights = []
    for d in distances:
        anchor, other = edge_ends(cell_weight, d)
        weights.append(torch.maximum(anchor, other) * (anchor * other > 0))
    return torch.stack(weights, dim=1)
