"""Affinity targets, loss and head."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from amwc_d2.affinity_head import AMWCAffinityHead
from amwc_d2.data.images import ImageReader
from amwc_d2.data.mappers import AMWCDatasetMapper
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.edges import VOID, edge_exists
from amwc_d2.losses.affinity import affinity_loss, affinity_targets

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4)}


def make_head(**kwargs):
    args = {
        "project_channels": [8, 8],
        "aspp_dilations": [1, 2, 3],
        "aspp_dropout": 0.0,
        "decoder_channels": [16, 16, 16],
        "common_stride": 4,
        "norm": "BN",
        "train_size": None,
        "head_channels": 16,
        "num_classes": 3,
        "distances": [1, 3, 4],
        **kwargs,
    }
    return AMWCAffinityHead(SHAPES, **args)


def test_head_shapes_borders_and_stop_gradient():
    head = make_head().train()
    features = {
        f: torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride) for f, s in SHAPES.items()
    }
    logits = torch.randn(2, 3, 16, 24, requires_grad=True)
    affinities = head(features, logits)
    assert affinities.shape == (2, 3, 2, 16, 24)
    missing = ~edge_exists(16, 24, [1, 3, 4])
    assert (affinities[:, missing] == 0).all()
    affinities.square().sum().backward()
    assert logits.grad is None, "affinities must not train the class scores (paper 3.1)"
    unused = [n for n, p in head.named_parameters() if p.grad is None]
    assert not unused, unused


def test_head_sees_the_class_scores():
    head = make_head().eval()
    features = {
        f: torch.randn(1, s.channels, 64 // s.stride, 64 // s.stride) for f, s in SHAPES.items()
    }
    torch.nn.init.normal_(head.classifiers[0].predictor.weight)
    a = head(features, torch.zeros(1, 3, 16, 16))
    b = head(features, torch.ones(1, 3, 16, 16))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("distances", [[], [0, 1], [4, 1], [1, 1]])
def test_bad_distances_are_named(distances):
    with pytest.raises(ValueError, match="DISTANCES must be strictly increasing"):
        make_head(distances=distances)


def test_bad_head_channels_are_named():
    with pytest.raises(ValueError, match="HEAD_CHANNELS must be divisible by 8, got 12"):
        make_head(head_channels=12)


def generator():
    return AMWCTargetGenerator(
        ignore_label=255, thing_ids=[1], small_instance_area=5, small_instance_weight=3.0
    )


PANOPTIC = torch.tensor([[7, 7, 7, 7, 0], [9, 9, 9, 7, 0], [9, 9, 9, 5, 6]]).numpy()
SEGMENTS = [
    {"id": 7, "category_id": 0, "iscrowd": 0},
    {"id": 9, "category_id": 1, "iscrowd": 0},  # thing of 6 pixels: large
    {"id": 5, "category_id": 1, "iscrowd": 0},  # thing of 1 pixel: small
    {"id": 6, "category_id": 1, "iscrowd": 1},
    {"id": 4, "category_id": 0, "iscrowd": 0},  # cropped away
]


def test_targets_of_a_small_scene():
    t = generator()(PANOPTIC, SEGMENTS)
    assert t["segments"].tolist() == [
        [0, 0, 0, 0, VOID],
        [1, 1, 1, 0, VOID],
        [1, 1, 1, 2, 3],
    ]
    assert t["sem_seg"].tolist() == [[0, 0, 0, 0, 255], [1, 1, 1, 0, 255], [1, 1, 1, 1, 1]]
    assert t["affinity_weights"].tolist() == [
        [1, 1, 1, 1, 0],  # stuff 1, void 0
        [4, 4, 4, 1, 0],  # thing 4
        [4, 4, 4, 12, 0],  # small thing 4 x 3, crowd 0
    ]
    assert t["sem_seg_weights"][2].tolist() == [1, 1, 1, 3, 3]
    assert t["segment_crowd"].tolist() == [False, False, False, True, False]


def test_unlisted_id_is_named():
    with pytest.raises(ValueError, match=r"ids \[9\] that its segments_info does not list"):
        generator()(PANOPTIC, [s for s in SEGMENTS if s["id"] != 9])


def test_mapper_names_the_file(monkeypatch, tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / "pan.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    mapper = AMWCDatasetMapper(
        augmentations=[], image_reader=ImageReader(), panoptic_target_generator=generator()
    )
    record = {
        "file_name": str(tmp_path / "image.png"),
        "pan_seg_file_name": str(tmp_path / "pan.png"),
        "segments_info": [],
    }
    with pytest.raises(ValueError, match=r"pan\.png.*does not list"):
        mapper(record)


def test_edge_targets_and_weights():
    t = generator()(PANOPTIC, SEGMENTS)
    target, weight = affinity_targets(t["segments"][None], t["affinity_weights"][None], [1, 2])
    assert weight.shape == target.shape == (1, 2, 2, 3, 5)
    # (1, 2) thing - (1, 3) stuff: cut, weight of the thing end
    assert target[0, 0, 0, 1, 2] == 0 and weight[0, 0, 0, 1, 2] == 4
    # (0, 3) stuff - (0, 4) void; (2, 3) small thing - (2, 4) crowd: no part
    assert weight[0, 0, 0, 0, 3] == 0 and weight[0, 0, 0, 2, 3] == 0
    # (2, 2) - (2, 3): two things of one class
    assert target[0, 0, 0, 2, 2] == 0 and weight[0, 0, 0, 2, 2] == 12
    # distance 2, vertical: (0, 0) stuff - (2, 0) thing; no edge from row 1 on
    assert target[0, 1, 1, 0, 0] == 0 and weight[0, 1, 1, 0, 0] == 4
    assert (weight[0, 1, 1, 1:] == 0).all()


def test_loss_takes_the_hardest_edges_and_stays_connected():
    logits = torch.zeros(1, 1, 2, 4, 5, requires_grad=True)
    target = torch.zeros_like(logits)
    weight = torch.zeros_like(logits)
    weight[0, 0, 0, 0, 0], weight[0, 0, 1, 0, :2] = 2.0, 1.0
    loss = affinity_loss(logits, target, weight, top_k=0.1)  # 2 of 20 edges a direction
    ln2 = torch.log(torch.tensor(2.0))
    torch.testing.assert_close(loss, (2 * ln2 / 2 + 2 * ln2 / 2)[None])
    (affinity_loss(logits, target, 0 * weight, 0.1).sum()).backward()
    assert (logits.grad == 0).all()
