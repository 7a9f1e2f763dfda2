"""Pictures of what goes in, what comes out, and what the solver saw.

All functions return RGB images, uint8 (height, width, 3), and change none of their inputs.

Shape shorthand: H, W the image; h, w the solver's grid; K classes; D edge distances. Node costs
(K, h, w): low = likely class. Edge costs (D, 2, h, w): positive = attractive, anchored left / top.
"""

import colorsys

import cv2
import numpy as np
import torch
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib import colormaps

from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.edges import cut_edges, edge_exists

TILE_WIDTH = 640  # pixels of one picture in a panel, at most
TILE_HEIGHT = 1280
TITLE_HEIGHT = 28
CUT_COLOR = (255, 40, 40)


def draw_panoptic(image, panoptic_seg, segments_info, metadata, alpha=0.6, labels=True):
    """Overlay segments on the image: stuff in its class's colour, each thing in one of its own.

    Args:
        image (ndarray): uint8 (H, W, 3), RGB.
        panoptic_seg (Tensor or ndarray): int (H, W), 0 = void.
        segments_info (list[dict]): ``id``, contiguous ``category_id``, optionally ``score`` and
            ``iscrowd``. Whether a segment is a thing is the metadata's to say.
        metadata (Metadata): of the dataset, for names and colours.
        alpha (float): opacity, 0..1.
        labels (bool): write the classes' names, and the scores of things, where there is room.

    Returns:
        ndarray: uint8, ``scale`` times the image's size, where ``scale`` makes it about
        ``TILE_WIDTH`` wide.
    """
    ids = torch.as_tensor(panoptic_seg).cpu().numpy()
    scale = _tile_scale(*image.shape[:2])
    visualizer = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE)
    thing_ids = set(metadata.thing_dataset_id_to_contiguous_id.values())
    things = [s for s in segments_info if s["category_id"] in thing_ids]
    for segment in segments_info:
        if segment["category_id"] not in thing_ids:
            visualizer.draw_binary_mask(
                (ids == segment["id"]).astype(np.uint8),
                color=_unit(metadata.stuff_colors[segment["category_id"]]),
                text=metadata.stuff_classes[segment["category_id"]] if labels else None,
                alpha=alpha,
                area_threshold=0,
            )
    if things:
        visualizer.overlay_instances(
            masks=[ids == s["id"] for s in things],
            labels=[_label(s, metadata, ids) for s in things] if labels else None,
            assigned_colors=[
                _instance_color(metadata.thing_colors[s["category_id"]], index)
                for index, s in enumerate(things)
            ],
            alpha=alpha,
        )
    return visualizer.get_output().get_image()


def draw_ground_truth(image, sample, metadata, labels=True):
    """Overlay the ground truth of a Detectron2 dataset dict; see :func:`draw_panoptic`."""
    ids = read_panoptic_png(sample["pan_seg_file_name"])
    return draw_panoptic(image, ids, sample["segments_info"], metadata, labels=labels)


def draw_cuts(image, segments):
    """Draw the cut: a line wherever two neighbouring cells of the grid lie in two segments.

    Args:
        image (ndarray): uint8 (H, W, 3), RGB.
        segments (Tensor or ndarray): int (h, w), the solver's segments.

    Returns:
        ndarray: uint8, every grid cell a square, the lines (edges with y = 1 at distance 1) on its
        right and lower rim.
    """
    segments = torch.as_tensor(segments).cpu()
    height, width = segments.shape
    cell = max(2, round(_tile_scale(height, width)))
    drawn = cv2.resize(image, (width * cell, height * cell), interpolation=cv2.INTER_LINEAR)
    cells = drawn.reshape(height, cell, width, cell, 3)
    line = max(1, cell // 6)
    right, below = cut_edges(segments, [1])[0].numpy()
    rows, columns = np.nonzero(right)
    cells[rows, :, columns, -line:] = CUT_COLOR
    rows, columns = np.nonzero(below)
    cells[rows, -line:, columns] = CUT_COLOR
    return drawn


def draw_class_costs(node_costs, metadata):
    """Draw the cheapest class of every cell, the paler the smaller its lead over the second.

    Args:
        node_costs (Tensor): (K, h, w).
        metadata (Metadata): of the dataset, for the colours.

    Returns:
        ndarray: uint8 (h, w, 3).
    """
    costs = torch.as_tensor(node_costs).detach().cpu().float()
    lead = torch.ones_like(costs[0])  # 0: a tie; towards 1: certain
    if len(costs) > 1:
        best, second = costs.topk(2, dim=0, largest=False).values
        lead = 1 - torch.exp(best - second)
    colors = np.asarray(metadata.stuff_colors, np.float32)[costs.argmin(dim=0).numpy()]
    return (255 + (colors - 255) * (0.2 + 0.8 * lead.numpy()[..., None])).astype(np.uint8)


def draw_affinities(edge_costs, distances):
    """Draw the edge costs of every distance: blue attracts, red repels, white is undecided.

    Args:
        edge_costs (Tensor): (D, 2, h, w).
        distances (list[int]): D distances in cells.

    Returns:
        list[ndarray]: D images, uint8 (h, w, 3); both directions' mean, of the edges that exist.
    """
    costs = torch.as_tensor(edge_costs).detach().cpu().float()
    exists = edge_exists(*costs.shape[-2:], distances)
    mean = (costs * exists).sum(dim=1) / exists.sum(dim=1).clamp(min=1)
    probability = torch.sigmoid(mean).numpy()
    return [(colormaps["RdBu"](p)[..., :3] * 255).astype(np.uint8) for p in probability]


def draw_panel(image, prediction, metadata, ground_truth=None, costs=None, distances=()):
    """Put the pictures of one image side by side under their titles.

    Args:
        image (ndarray): uint8 (H, W, 3), RGB.
        prediction (dict): the model's output for the image.
        metadata (Metadata): of the dataset, for names and colours.
        ground_truth (dict, optional): the dataset dict of the image.
        costs (tuple, optional): node costs (K, h, w) and edge costs (D, 2, h, w) of the image.
        distances (list[int]): the D distances; needed with ``costs``.

    Returns:
        ndarray: uint8, two tiles a row: the image, the ground truth if there is one, the
        prediction, the cuts, and with ``costs`` the classes' and every distance's costs.
    """
    solved = prediction["amwc"]
    tiles = [("image", image)]
    if ground_truth is not None:
        tiles.append(("ground truth", draw_ground_truth(image, ground_truth, metadata)))
    overlay = draw_panoptic(image, *prediction["panoptic_seg"], metadata)
    tiles.append(("panoptic prediction", overlay))
    title = f"cuts: {solved['num_segments']} segments, objective {solved['objective']:.1f}"
    tiles.append((title, draw_cuts(image, solved["segments"])))
    if costs is not None:
        node_costs, edge_costs = costs
        tiles.append(("cheapest class, pale = undecided", draw_class_costs(node_costs, metadata)))
        for distance, drawn in zip(distances, draw_affinities(edge_costs, distances)):
            tiles.append((f"affinity at distance {distance}: blue joins, red cuts", drawn))
    scale = _tile_scale(*image.shape[:2])
    return _arrange(tiles, *(max(1, round(scale * side)) for side in image.shape[:2]))


def _tile_scale(height, width):
    """How much a picture is enlarged to fill a tile; its shorter side keeps one pixel."""
    return max(min(TILE_WIDTH / width, TILE_HEIGHT / height), 1 / min(height, width))


def _arrange(tiles, height, width, columns=2):
    """Lay out [(title, image)], each brought to ``height`` x ``width``, in rows."""
    framed = []
    for title, drawn in tiles:
        interpolation = cv2.INTER_NEAREST if drawn.shape[1] < width else cv2.INTER_AREA
        tile = np.full((height + TITLE_HEIGHT, max(width, TILE_WIDTH) + 8, 3), 255, np.uint8)
        tile[TITLE_HEIGHT:, 4 : 4 + width] = cv2.resize(
            drawn, (width, height), interpolation=interpolation
        )
        font, black = cv2.FONT_HERSHEY_SIMPLEX, (0, 0, 0)
        cv2.putText(tile, title, (6, TITLE_HEIGHT - 9), font, 0.5, black, 1, cv2.LINE_AA)
        framed.append(tile)
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    rows = [np.hstack(framed[k : k + columns]) for k in range(0, len(framed), columns)]
    return np.vstack(rows)


def _label(segment, metadata, ids):
    """Name a thing that covers at least 1 % of the image; smaller ones stay without a word."""
    if (ids == segment["id"]).mean() < 0.01:
        return ""
    name = metadata.thing_classes[segment["category_id"]]
    if segment.get("iscrowd", 0):
        return f"{name} crowd"
    return f"{name} {segment['score']:.2f}" if "score" in segment else name


def _instance_color(class_color, index):
    """A colour (r, g, b) in 0..1 for the index-th thing: its class's, with a hue of its own."""
    own = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.9, 1.0)
    return tuple(0.4 * a + 0.6 * b for a, b in zip(_unit(class_color), own))


def _unit(color):
    return tuple(channel / 255 for channel in color)
