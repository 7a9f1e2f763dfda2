"""From the solver's labels on the grid to panoptic results at the size of the image.

Shape shorthand in this module:

    K: classes    D: distances    2: directions    S: segments
    h, w: the grid of one image (stride 4, padding cropped)    H, W: the output size
"""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def segment_scores(
    classes: Tensor, segments: Tensor, node_costs: Tensor, edge_costs: Tensor, distances
) -> Tensor:
    """Certainty of every segment: minus equation 11, squashed to (0, 1); larger = more certain.

    Equation 11 reads, for a segment p of class l: mean of c_V(., l) over p, plus the mean c_E of
    the edges that leave p, minus the mean c_E of the edges inside p; a mean over nothing is 0.
    The squashing (1 + t / (1 + |t|)) / 2 keeps the order and does not saturate.

    Args:
        classes, segments: int64 (h, w); segments from 0 without gaps.
        node_costs: (K, h, w). edge_costs: (D, 2, h, w), at the anchor.

    Returns:
        float64 (S,).
    """
    count = int(segments.max()) + 1

    def sums(index, values=None):
        weights = None if values is None else values.flatten().double()
        return torch.bincount(index.flatten(), weights, minlength=count)

    def mean(total, number):
        return torch.where(number > 0, total / number.clamp(min=1), 0.0)

    # Sum and number of the edges that each cell anchors; the few that are cut are picked out.
    edge_sum = torch.zeros(segments.shape, dtype=torch.float64)
    edge_number = torch.zeros_like(segments)
    cuts = []
    for d, of_distance in zip(distances, edge_costs):
        for dim, costs in ((1, of_distance[0]), (0, of_distance[1])):
            d = min(d, segments.shape[dim])
            length = segments.shape[dim] - d
            anchor, other = segments.narrow(dim, 0, length), segments.narrow(dim, d, length)
            costs = costs.narrow(dim, 0, length)
            edge_sum.narrow(dim, 0, length).add_(costs)
            edge_number.narrow(dim, 0, length).add_(1)
            cut = anchor != other
            cuts.append((anchor[cut], other[cut], costs[cut]))
    anchor, other, cut_costs = map(torch.cat, zip(*cuts))
    cut_sum, cut_number = sums(anchor, cut_costs), sums(anchor)

    node_mean = mean(sums(segments, node_costs.gather(0, classes[None])), sums(segments))
    inside_mean = mean(sums(segments, edge_sum) - cut_sum, sums(segments, edge_number) - cut_number)
    leaving_mean = mean(cut_sum + sums(other, cut_costs), cut_number + sums(other))
    certainty = inside_mean - leaving_mean - node_mean
    return 0.5 * (1 + certainty / (1 + certainty.abs()))


def panoptic_result(
    segments: Tensor, segment_class, segment_score, thing_ids, thing_area: int, stuff_area: int
):
    """Drop small segments and list the others.

    Args:
        segments: int64 (H, W), segment of every pixel, from 0.
        segment_class, segment_score: class and score of each of the S segments.
        thing_ids: set of contiguous thing classes.
        thing_area, stuff_area: segments with fewer pixels become void.

    Returns:
        panoptic_seg: int32 (H, W); 0 = void, otherwise the ``id`` of a segment.
        segments_info: list of dicts ``id, category_id, isthing, area, score``.
    """
    areas = torch.bincount(segments.flatten(), minlength=len(segment_class)).tolist()
    new_id = torch.zeros(len(segment_class), dtype=torch.int32)
    segments_info = []
    for index, (area, category, score) in enumerate(zip(areas, segment_class, segment_score)):
        category = int(category)
        isthing = category in thing_ids
        if area == 0 or area < (thing_area if isthing else stuff_area):
            continue
        new_id[index] = len(segments_info) + 1
        segments_info.append(
            {
                "id": len(segments_info) + 1,
                "category_id": category,
                "isthing": isthing,
                "area": area,
                "score": float(score),
            }
        )
    return new_id.to(segments.device)[segments], segments_info


def panoptic_to_instances(panoptic_seg: Tensor, segments_info) -> Instances:
    """The thing segments as Detectron2 ``Instances`` with masks, boxes, classes and scores.

    Args:
        panoptic_seg, segments_info: as from ``panoptic_result``, so that ids are 1, 2, 3 ...
    """
    things = [segment for segment in segments_info if segment["isthing"]]
    device, (height, width) = panoptic_seg.device, panoptic_seg.shape
    ids = torch.tensor([s["id"] for s in things], dtype=torch.int64, device=device)
    count = len(things) + 1  # 0: everything else
    number = torch.zeros(len(segments_info) + 1, dtype=torch.int64, device=device)
    number[ids] = torch.arange(1, count, device=device)
    number = number[panoptic_seg.long()]

    masks = torch.zeros(count, height * width, dtype=torch.bool, device=device)
    masks.scatter_(0, number.view(1, -1), True)
    x0, x1 = _extent(number, torch.arange(width, device=device), count)
    y0, y1 = _extent(number, torch.arange(height, device=device)[:, None], count)
    instances = Instances((height, width))
    instances.pred_masks = masks[1:].view(-1, height, width)
    instances.pred_boxes = Boxes(torch.stack([x0, y0, x1, y1], dim=1)[1:].float())
    instances.pred_classes = torch.tensor(
        [s["category_id"] for s in things], dtype=torch.int64, device=device
    )
    instances.scores = torch.tensor([s["score"] for s in things], device=device)
    return instances


def _extent(number: Tensor, coordinate: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first coordinate at which each number stands, and one more than the last."""
    length = coordinate.numel()
    occurs = torch.zeros(count, length, dtype=torch.uint8, device=number.device)
    occurs[number, coordinate] = 1
    return occurs.argmax(dim=1), length - occurs.flip(1).argmax(dim=1)
