"""What stage 2 trains: some layers of the network, and none of its batch norm (paper 4.2)."""

from torch import nn

TRAINED_LAYERS = ("classifiers", "heads", "decoders", "all")


def freeze_all_but(trained_layers: str, sem_seg_head, ins_embed_head, backbone) -> None:
    """Set ``requires_grad`` of all parameters; those of batch norm are frozen in any case.

    Args:
        trained_layers: "classifiers" (the class predictor and the last two layers of every
            affinity classifier, paper 4.2), "heads" (all after the decoders), "decoders" (those
            too) or "all".
        sem_seg_head, ins_embed_head, backbone: the parts of an ``AMWCPanoptic``.
    """
    trained = [sem_seg_head.predictor]
    trained += [m for c in ins_embed_head.classifiers for m in (c.conv2, c.predictor)]
    if trained_layers in ("heads", "decoders"):
        trained += [sem_seg_head.head, ins_embed_head.reduce]
        trained += [c.conv1 for c in ins_embed_head.classifiers]
    if trained_layers == "decoders":
        trained += [sem_seg_head.decoder, ins_embed_head.decoder]
    network = [backbone, sem_seg_head, ins_embed_head]
    if trained_layers == "all":
        trained = network
    for part in network:
        part.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    for part in network:
        for module in part.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
