"""From labels of the grid's cells to labels of pixels, and back.

Shape shorthand in this module:

    K: classes    D: distances    2: directions    N: images
    h, w: the grid of one image (stride 4, padding cropped)    H, W: the output size
"""

import torch
from torch import Tensor

from amwc_d2.solver_cython import refine_labels_batch

# How labels of cells become labels of pixels: "refine" chooses between the segments around a pixel
# by their interpolated costs (``solver_cython.refine_labels``), "nearest" takes the nearest cell's
# (the paper's way).
UPSAMPLING = ("refine", "nearest")


def pixel_labels(
    solutions,
    node_costs,
    edge_costs,
    distances,
    stride: int,
    image_sizes,
    output_sizes,
    *,
    gamma: float | None,
    num_threads: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Classes and segments at the output size, for a batch of solutions on the grid.

    Args:
        solutions: N ``Solution`` of the costs, labels (h, w).
        node_costs, edge_costs: N float32 arrays (K, h, w) and (D, 2, h, w).
        distances: the D edge distances. stride: 4.
        image_sizes: N pairs (height, width) of the network's input before padding.
        output_sizes: N pairs (H, W).
        gamma: weight of the edges in ``refine_labels``; None: nearest cell.
        num_threads: 0 = automatic.

    Returns:
        N pairs of int64 (H, W).
    """
    if gamma is None:
        return [
            tuple(
                upsample_labels(torch.from_numpy(labels).long(), stride, image_size, output_size)
                for labels in (solution.classes, solution.segments)
            )
            for solution, image_size, output_size in zip(solutions, image_sizes, output_sizes)
        ]
    refined = refine_labels_batch(
        solutions,
        node_costs,
        edge_costs,
        distances,
        stride=stride,
        image_sizes=image_sizes,
        output_sizes=output_sizes,
        gamma=gamma,
        num_threads=num_threads,
    )
    return [tuple(torch.from_numpy(labels).long() for labels in pair) for pair in refined]


def upsample_labels(labels: Tensor, stride: int, image_size, output_size) -> Tensor:
    """Nearest upsampling of grid labels to the output, in one step.

    Args:
        labels: (..., h, w), one cell for stride x stride pixels of the network's input.
        stride: 4.
        image_size: (height, width) of the input before padding.
        output_size: (H, W).

    Returns:
        (..., H, W), the label of the cell that holds each output pixel's centre.
    """
    index = []
    for cells, size, out in zip(labels.shape[-2:], image_size, output_size):
        centre = (torch.arange(out, device=labels.device) + 0.5) * (size / out)
        index.append((centre / stride).long().clamp(max=cells - 1))
    return labels[..., index[0][:, None], index[1]]


def surrounding_labels(labels: Tensor, stride: int, image_size, output_size) -> Tensor:
    """The labels of the four cells around every pixel, between which refining chooses.

    Args:
        labels, stride, image_size, output_size: as in ``upsample_labels``; labels (h, w).

    Returns:
        (4, H, W).
    """
    taps = []
    for cells, size, out in zip(labels.shape, image_size, output_size):
        centre = (torch.arange(out, device=labels.device, dtype=torch.float64) + 0.5) * (size / out)
        first = (centre / stride - 0.5).clamp(0, cells - 1).long()
        taps.append((first, (first + 1).clamp(max=cells - 1)))
    return torch.stack([labels[y[:, None], x] for y in taps[0] for x in taps[1]])


def sample_cells(labels: Tensor, stride: int, image_size) -> Tensor:
    """Labels at the centres of the grid's cells: ``upsample_labels`` the other way round.

    Args:
        labels: (..., H, W), such as ground truth, at any size.
        stride: pixels of the network's input in a cell.
        image_size: (height, width) of the input before padding.

    Returns:
        (..., h, w); a cell whose centre lies beyond the image takes the last pixel's label.
    """
    index = []
    for length, size in zip(labels.shape[-2:], image_size):
        centre = (torch.arange(-(-size // stride), device=labels.device) + 0.5) * stride
        index.append((centre * (length / size)).long().clamp(max=length - 1))
    return labels[..., index[0][:, None], index[1]]
