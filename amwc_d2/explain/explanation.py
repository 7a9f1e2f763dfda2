"""What explains the segmentation of an image, made from a model.

Shape shorthand in this module:

    H, W: the image    h, w: the solver's grid    K: classes    D: distances    P: pieces
"""

import html
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from panopticapi.utils import id2rgb
from PIL import Image
from scipy import ndimage

from amwc_d2.amwc_layer import solve, to_arrays
from amwc_d2.evaluation.segment_metrics import index_map, overlaps
from amwc_d2.explain.corrections import correct
from amwc_d2.explain.page import page_html
from amwc_d2.explain.region_graph import RegionGraph, region_graph
from amwc_d2.refinement import pixel_labels, surrounding_labels
from amwc_d2.solver_cython import Solution, solve_mwc
from amwc_d2.visualization import draw_affinities, draw_class_costs

FREE_CELLS = 2  # on both sides of a border that is solved again exactly
FORCED = np.float32(1e4)  # cost of leaving a label that is given


@dataclass
class Problem:
    """A multiway cut on the grid, and the way from cells to pixels.

    Attributes:
        node_costs: float32 (K, h, w). edge_costs: float32 (D, 2, h, w). distances: D ints.
        stride, image_size, output_size, gamma: see ``refinement.pixel_labels``, for one image.
    """

    node_costs: np.ndarray
    edge_costs: np.ndarray
    distances: tuple
    stride: int
    image_size: tuple
    output_size: tuple
    gamma: float | None

    def enlarge(self, solution):
        """Segments of cells, as in a ``Solution``, as segments of pixels, int64 (H, W)."""
        _, segments = pixel_labels(
            [solution], [self.node_costs], [self.edge_costs], self.distances, self.stride,
            [self.image_size], [self.output_size], gamma=self.gamma,
        )[0]  # fmt: skip
        return segments.numpy()

    def solve_around(self, graph, actions, segments, classes, class_offsets, distance_offsets):
        """Move cells between segments where actions are, to lower the objective.

        The start is a corrected labelling of the pieces. Only cells near the borders of the
        actions' segments are free: were all of them, the larger of two parts that attract each
        other would swallow the smaller but for its seed. The centres of the clicked pieces, and
        all of a carved one, are seeds.

        Args:
            graph: the ``RegionGraph``. actions: see ``corrections``.
            segments: int (P,), corrected. classes: int (S,), of the segments.

        Returns:
            int64 (H, W), segments of pixels.
        """
        start = segments[graph.pieces]
        clicked = [piece for action in actions for piece in action["pieces"]]
        touched = np.isin(start, segments[clicked]) & graph.partitionable[classes][start]
        border = ndimage.minimum_filter(start, 3) != ndimage.maximum_filter(start, 3)
        border &= ndimage.binary_dilation(touched)
        forced = ~ndimage.binary_dilation(border, iterations=FREE_CELLS)
        for piece in clicked:
            inside = ndimage.distance_transform_edt(np.pad(graph.pieces == piece, 1))[1:-1, 1:-1]
            forced[np.unravel_index(inside.argmax(), inside.shape)] = True
        carved = [action["pieces"][0] for action in actions if action["tool"] == "carve"]
        forced |= np.isin(graph.pieces, carved)

        node_costs = self.node_costs + np.float32(class_offsets)[:, None, None]
        edge_costs = self.edge_costs + np.float32(distance_offsets)[:, None, None, None]
        costs = node_costs[classes]  # one label a segment
        np.put_along_axis(
            costs, start[None], np.take_along_axis(costs, start[None], 0) - FORCED * forced, axis=0
        )
        labels = solve_mwc(costs, edge_costs, self.distances, init=start).classes
        return self.enlarge(Solution(classes[labels].astype(np.int32), labels, 0.0))


@dataclass
class Explanation:
    """A region graph with the image it is about; in a notebook, an object that shows itself.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        file_name, image_id: of the image.
        graph: the ``RegionGraph``.
        pixel_pieces: int32 (H, W), the piece of every pixel.
        classes: K dicts ``id`` (the dataset's), ``name``, ``isthing``, ``color`` [R, G, B].
        thing_area, stuff_area: smaller segments become void, in pixels.
        maps: pairs of a title and a picture, uint8 (height, width, 3), to look at.
        truth: None, or ids (H, W) and what :func:`judge_truth` says of them.
        problem: the ``Problem`` on the grid.
    """

    image: np.ndarray
    file_name: str
    image_id: int | str
    graph: RegionGraph
    pixel_pieces: np.ndarray
    classes: list
    thing_area: int = 0
    stuff_area: int = 0
    maps: list = field(default_factory=list)
    truth: tuple | None = None
    problem: Problem | None = None

    def panoptic(self, clicks=None, exact=False):
        """The segmentation, corrected if clicks are given.

        Segments below the area limits become void, unless a click is in them.

        Args:
            clicks: a ``Clicks``, or None.
            exact: solve again for single cells, not whole pieces, at the clicked segments' borders.

        Returns:
            ids, int32 (H, W), 0 = void, and a list of dicts ``id``, contiguous ``category_id``,
            ``isthing``, ``area``.

        Raises:
            ValueError: the clicks do not fit the image, or one cannot be applied.
        """
        actions = [] if clicks is None else clicks.actions(self.pixel_pieces)
        offsets = (clicks.class_offsets, clicks.distance_offsets) if clicks else ()
        classes, segments, _ = correct(self.graph, actions, *offsets)
        clicked = {int(segments[p]) for action in actions for p in action["pieces"]}
        _, first = np.unique(segments, return_index=True)
        class_of_segment = classes[first]
        if exact and actions:
            labels = self.problem.solve_around(
                self.graph, actions, segments, class_of_segment, *offsets
            )
            for action in actions:  # refining may give a pixel at a border to the other side
                x, y = np.transpose(action["points"])
                labels[y, x] = segments[action["pieces"]]
        else:
            labels = segments[self.pixel_pieces]
        areas = np.bincount(labels.ravel(), minlength=len(first))
        ids, segments_info = np.zeros(len(areas), np.int32), []
        for segment, (area, category) in enumerate(zip(areas.tolist(), class_of_segment.tolist())):
            isthing = bool(self.graph.partitionable[category])
            small = area < (self.thing_area if isthing else self.stuff_area)
            if area and (segment in clicked or not small):
                ids[segment] = len(segments_info) + 1
                segments_info.append(
                    {"id": len(segments_info) + 1, "category_id": category, "isthing": isthing,
                     "area": area}
                )  # fmt: skip
        return ids[labels], segments_info

    def save_labels(self, folder, clicks=None, exact=False):
        """Write the (corrected) labels as the page does: ``STEM.png`` and ``STEM.panoptic.json``.

        Args:
            folder: where to; it must exist.
            clicks, exact: see :meth:`panoptic`.

        Returns:
            Path: of the JSON, in COCO-panoptic format with one image.
        """
        ids, segments_info = self.panoptic(clicks, exact)
        name, stem = Path(self.file_name).name, Path(self.file_name).stem
        Image.fromarray(id2rgb(ids)).save(Path(folder) / f"{stem}.png")
        boxes = ndimage.find_objects(ids)
        segments = [
            {
                "id": s["id"],
                "category_id": self.classes[s["category_id"]]["id"],
                "area": s["area"],
                "iscrowd": 0,
                "bbox": [x.start, y.start, x.stop - x.start, y.stop - y.start],
            }
            for s, (y, x) in zip(segments_info, boxes)
        ]
        image = {"id": self.image_id, "file_name": name}
        image |= {"height": ids.shape[0], "width": ids.shape[1]}
        annotation = {"image_id": self.image_id, "file_name": f"{stem}.png"}
        annotation["segments_info"] = segments
        categories = [
            {**c, "isthing": int(c["isthing"]), "supercategory": c["name"]} for c in self.classes
        ]
        saved = {"images": [image], "annotations": [annotation], "categories": categories}
        path = Path(folder) / f"{stem}.panoptic.json"
        path.write_text(json.dumps(saved), encoding="utf-8")
        return path

    def to_html(self):
        """The page as text."""
        return page_html(self)

    def save(self, path):
        """Write the page; returns its path."""
        path = Path(path)
        path.write_text(self.to_html(), encoding="utf-8")
        return path

    def _repr_html_(self):
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 900px; border: 0"></iframe>'


def explain(predictor, image, file_name=None, image_id=0, truth=None):
    """Explain how a model segments an image.

    Args:
        predictor: an ``amwc_d2.Predictor``.
        image: a file, or an array (H, W) or (H, W, C) in RGB order; see ``Predictor``.
        file_name (str): names the page and what is saved from it; by default that of the image.
        image_id (int or str): the image's id in saved labels.
        truth (tuple, optional): ids, int (H, W), 0 = void, and ``segments_info`` with contiguous
            ``category_id``.

    Returns:
        Explanation: ``save(path)`` writes the page; a notebook shows it by itself.
    """
    if file_name is None:
        file_name = "image" if isinstance(image, np.ndarray) else str(image)
    model, metadata = predictor.model, predictor.metadata
    settings = model.solver
    pixels = predictor.read(image)
    image = predictor.read.to_rgb(pixels)
    with torch.no_grad():
        prediction = model.predict([predictor.prepare(pixels)])
    grid = model._grid_sizes(prediction.image_sizes)
    costs = prediction.node_costs, prediction.edge_costs
    solution = solve(*costs, grid, settings)[0]
    costs = [to_arrays(c, grid)[0] for c in costs]
    graph = region_graph(*costs, settings.distances, settings.partitionable, solution)
    problem = Problem(
        *costs,
        settings.distances,
        model.stride,
        prediction.image_sizes[0],
        image.shape[:2],
        model.costs.gamma.item() if model.upsampling == "refine" else None,
    )
    affinities = draw_affinities(costs[1], settings.distances)
    made = Explanation(
        image=image,
        file_name=file_name,
        image_id=image_id,
        graph=graph,
        pixel_pieces=pixel_pieces(graph, solution, problem),
        classes=list_classes(metadata),
        thing_area=model.thing_area,
        stuff_area=model.stuff_area,
        maps=[
            ("cheapest class, pale = undecided", draw_class_costs(costs[0], metadata)),
            *(
                (f"affinity at distance {d}: blue joins, red cuts", drawn)
                for d, drawn in zip(settings.distances, affinities)
            ),
        ],
        problem=problem,
    )
    if truth is not None:
        made.truth = truth[0], judge_truth(*truth, *made.panoptic(), model.thing_ids)
    return made


def pixel_pieces(graph, solution, problem):
    """The piece of every pixel, such that the pieces of a segment make the segment's pixels.

    Args:
        graph: the ``RegionGraph`` of the solution. problem: what was solved.

    Returns:
        int32 (H, W).
    """
    segments = problem.enlarge(solution)
    # A piece is chosen as a segment is; where it is not of the pixel's segment, the first of the
    # four cells around the pixel that is.
    around = surrounding_labels(
        torch.from_numpy(graph.pieces), problem.stride, problem.image_size, problem.output_size
    )
    candidates = [problem.enlarge(solution._replace(segments=graph.pieces)), *around.numpy()]
    chosen = np.select([graph.segments[c] == segments for c in candidates], candidates, -1)
    assert (chosen >= 0).all()
    return chosen.astype(np.int32)


def list_classes(metadata):
    """K dicts ``id`` (the dataset's), ``name``, ``isthing``, ``color`` of a dataset's metadata."""
    things = {k: i for i, k in metadata.thing_dataset_id_to_contiguous_id.items()}
    stuff = {k: i for i, k in metadata.stuff_dataset_id_to_contiguous_id.items()}
    return [
        {"id": {**stuff, **things}[k], "name": name, "isthing": k in things, "color": list(color)}
        for k, (name, color) in enumerate(zip(metadata.stuff_classes, metadata.stuff_colors))
    ]


def judge_truth(ids, segments_info, predicted, predicted_info, thing_ids):
    """Tell for every true segment what became of it.

    *found*: matched (same class, IoU above one half). Otherwise, for things, as
    ``count_splits_and_merges`` defines it: *fused*: a predicted thing holds more than half of it
    and of another true thing; *split*: two predicted things hold more than a quarter of it each.
    Else *missed*.

    Args:
        ids: int (H, W), 0 = void. segments_info: dicts ``id``, contiguous ``category_id``,
            optionally ``iscrowd``.
        predicted, predicted_info: the same of the prediction.
        thing_ids: contiguous ids of the thing classes.

    Returns:
        list of dicts ``id``, ``category_id``, ``state``; crowds are left out.

    Raises:
        ValueError: a map and its list of segments do not fit, see ``index_map``.
    """
    true = index_map(ids, segments_info, "the ground truth")
    pred = index_map(predicted, predicted_info, "the prediction")
    pairs = overlaps(true, pred, len(segments_info), len(predicted_info)).astype(float)
    union = pairs.sum(1)[:, None] + pairs.sum(0) - pairs - pairs[0]
    category = [
        np.array([-1] + [s["category_id"] for s in i]) for i in (segments_info, predicted_info)
    ]
    same = category[0][:, None] == category[1]
    found = ((pairs > 0.5 * union) & same).any(axis=1)
    part = pairs / np.maximum(pairs.sum(1), 1)[:, None]
    part *= np.isin(category[0], list(thing_ids))[:, None] & np.isin(category[1], list(thing_ids))
    fused = ((part > 0.5) & ((part > 0.5).sum(0) >= 2)).any(axis=1)
    split = (part > 0.25).sum(1) >= 2
    states = np.select([found, fused, split], ["found", "fused", "split"], "missed")[1:]
    return [
        {"id": s["id"], "category_id": s["category_id"], "state": str(state)}
        for s, state in zip(segments_info, states)
        if not s.get("iscrowd", 0)
    ]
