"""From the solver's labels to results: scores, enlarging, sampling."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks

from amwc_d2.post_processing import (
    panoptic_to_instances,
    segment_scores,
)
from amwc_d2.refinement import sample_cells, upsample_labels


def equation_11(mask, k, node, edge, distances):
    """Uncertainty of the segment ``mask`` of class k, term by term."""
    h, w = mask.shape
    leaving, inside = [], []
    for d, costs in zip(distances, edge):
        for y, x in np.ndindex(h, w):
            for direction, (v, u) in enumerate(((y, x + d), (y + d, x))):
                if v < h and u < w and (mask[y, x] or mask[v, u]):
                    same = mask[y, x] == mask[v, u]
                    (inside if same else leaving).append(costs[direction, y, x])
    terms = [np.mean(values) if values else 0.0 for values in (leaving, inside)]
    return node[k][mask].mean() + terms[0] - terms[1]


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (1, 1)])
def test_scores_are_equation_11(shape):
    """Any segments, of one cell too; distances beyond the grid have no edges."""
    rng = np.random.default_rng(0)
    distances = [1, 3, 9]
    _, segments = np.unique(rng.integers(0, 6, shape), return_inverse=True)
    segments = segments.reshape(shape)
    class_of = rng.integers(0, 3, segments.max() + 1)
    node = rng.normal(size=(3, *shape)).astype(np.float32)
    edge = rng.normal(size=(3, 2, *shape)).astype(np.float32)
    tensors = (torch.from_numpy(a) for a in (class_of[segments], segments, node, edge))
    scores = segment_scores(*tensors, distances)
    assert scores.dtype == torch.float64
    for i, score in enumerate(scores.tolist()):
        t = -equation_11(segments == i, class_of[i], node, edge, distances)
        assert score == pytest.approx(0.5 * (1 + t / (1 + abs(t))), abs=1e-6)


@pytest.mark.parametrize("output", [(37, 50), (25, 31), (80, 113)])
def test_sampling_undoes_enlarging(output):
    """Each cell finds its own label again, wherever the output has a pixel in its middle."""
    image_size = (37, 50)  # 10 x 13 cells, of which the last are cut off
    labels = torch.arange(10 * 13).reshape(10, 13)
    enlarged = upsample_labels(labels, 4, image_size, output)
    assert enlarged.shape == output
    found = sample_cells(enlarged, 4, image_size)
    assert torch.equal(found, labels)


@pytest.mark.parametrize("things", [(2, 3, 5), (1,), ()])
def test_instances_are_the_things(things):
    """Void, stuff and things in several pieces; masks, boxes and order."""
    panoptic = torch.randint(0, 6, (9, 14), generator=torch.Generator().manual_seed(0)).int()
    panoptic[:, :4], panoptic[7:] = 0, 4
    info = [
        {"id": i, "category_id": 7 * i, "isthing": i in things, "score": i / 10}
        for i in range(1, 6)
    ]
    found = panoptic_to_instances(panoptic, info)
    assert found.pred_masks.shape == (len(things), 9, 14)
    for mask, i in zip(found.pred_masks, things):
        assert torch.equal(mask, panoptic == i)
    boxes = BitMasks(found.pred_masks).get_bounding_boxes()
    assert torch.equal(found.pred_boxes.tensor, boxes.tensor)
    assert found.pred_classes.tolist() == [7 * i for i in things]
    assert found.scores.tolist() == pytest.approx([i / 10 for i in things])
