"""Weights from elsewhere: torchvision's ResNet, Panoptic-DeepLab's zoo."""

import logging
import pickle

import pytest
import torch
import torchvision
from convert_weights import convert_resnet
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from helpers import load

from amwc_d2.engine.checkpoint import AMWCCheckpointer

TOY = "Toy-PanopticSegmentation/amwc_R18.yaml"


@pytest.mark.parametrize("depth", [18, 50])
def test_converted_torchvision_resnet_computes_the_same(depth, tmp_path):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)  # tell the batch norms apart
    torch.save({"model": convert_resnet(theirs.state_dict())}, tmp_path / "ours.pth")

    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH",
                         depth, "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.NORM", "BN",
                         "MODEL.RESNETS.OUT_FEATURES", ["res2", "res5"]])  # fmt: skip
    if depth == 18:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    ours = torch.nn.Module()
    ours.backbone = build_backbone(cfg).eval()
    AMWCCheckpointer(ours).load(str(tmp_path / "ours.pth"))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ours.backbone(image)
        x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image)))))
        torch.testing.assert_close(found["res2"], x, rtol=1e-4, atol=1e-4)
        x = theirs.layer4(theirs.layer3(theirs.layer2(x)))
        torch.testing.assert_close(found["res5"], x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def test_another_network_is_refused():
    with pytest.raises(ValueError, match=r"'encoder.weight' is no tensor of a torchvision"):
        convert_resnet({"encoder.weight": torch.zeros(1)})


def test_panoptic_deeplab_warm_start(repository, toy_root, tmp_path, caplog):
    """A file as in Detectron2's zoo: pickled NumPy arrays of the original architecture."""
    cfg = load(repository, TOY)
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.MODEL.INS_EMBED_HEAD.NAME = "PanopticDeepLabInsEmbedHead"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4  # another dataset's
    theirs = build_model(cfg)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    with open(tmp_path / "zoo.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "Detectron2 Model Zoo"}, file)

    ours = build_model(load(repository, TOY))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="amwc_d2.engine.checkpoint"):
        AMWCCheckpointer(ours).load(str(tmp_path / "zoo.pkl"))
    after = ours.state_dict()
    for name, tensor in after.items():
        given = weights.get(name)
        taken = given is not None and given.shape == tuple(tensor.shape)
        expected = torch.from_numpy(given) if taken else before[name]
        assert torch.equal(tensor, expected), name

    log = {
        message.split(": ")[0]: message.split(": ")[1]
        for record in caplog.records
        if record.name == "amwc_d2.engine.checkpoint" and (message := record.getMessage())
    }
    counted = [name for name in after if not name.endswith("num_batches_tracked")]
    counts = {part: sum(n.startswith(part + ".") for n in counted) for part in log}
    for part in ("backbone", "sem_seg_head.decoder", "sem_seg_head.head", "ins_embed_head.decoder"):
        assert log[part] == f"{counts[part]} of {counts[part]} tensors taken"
    for part in ("sem_seg_head.predictor", "ins_embed_head.reduce", "costs"):
        assert log[part] == "all new"
    assert "ins_embed_head.center_head" in log["not used"]
