"""The affinity head (paper 3.1, A.6): do the two ends of an edge belong to one segment?

Shape shorthand in this module:

    N: images    C: decoder channels    K: classes    D: distances    H, W: the grid (stride 4)
"""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.projects.deeplab import DeepLabV3PlusHead
from detectron2.projects.panoptic_deeplab.panoptic_seg import (
    INS_EMBED_BRANCHES_REGISTRY,
    PanopticDeepLabInsEmbedHead,
)
from torch import Tensor, nn
from torch.nn import functional as F

from amwc_d2.edges import centre_to_anchor, edge_differences


def _conv(in_channels, out_channels, norm, kernel_size=3, groups=1):
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        groups=groups,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_xavier_fill(conv)
    return conv


class EdgeClassifier(nn.Module):
    """Affinity logits of the edges of one distance (paper figure 6).

    ``forward`` takes the shared features (N, C, H, W) and returns (N, 2, H, W), stored at the
    edge's anchor; zero where there is no edge. Distance 1 sees the features themselves, a longer
    one their differences over the edge, through grouped convolutions (one group a direction) up
    to a joint last layer.
    """

    def __init__(self, channels: int, distance: int, norm):
        super().__init__()
        self.distance = distance
        if distance == 1:
            widths, groups = (channels, channels // 4, channels // 8), 1
        else:
            widths, groups = (2 * channels, channels // 2, channels // 4), 2
        self.conv1 = _conv(widths[0], widths[1], norm, groups=groups)
        self.conv2 = _conv(widths[1], widths[2], norm, groups=groups)
        self.predictor = Conv2d(widths[2], 2, kernel_size=1)
        nn.init.normal_(self.predictor.weight, 0, 0.001)
        nn.init.constant_(self.predictor.bias, 0)

    def forward(self, features: Tensor) -> Tensor:
        if self.distance > 1:
            features = edge_differences(features, self.distance)
        logits = self.predictor(self.conv2(self.conv1(features)))
        return centre_to_anchor(logits, self.distance)


@INS_EMBED_BRANCHES_REGISTRY.register()
class AMWCAffinityHead(DeepLabV3PlusHead):
    """Panoptic-DeepLab's decoder, the class logits beside it, and one classifier per distance."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        decoder_channels: list[int],
        norm,
        head_channels: int,
        num_classes: int,
        distances: list[int],
        **kwargs,
    ):
        """
        Args:
            input_shape, decoder_channels, norm, kwargs: as in ``DeepLabV3PlusHead``.
            head_channels: channels that the classifiers share; divisible by 8.
            num_classes: K, the channels of the class logits that ``forward`` takes.
            distances: D distances >= 1, strictly increasing, in cells of the grid.

        Raises:
            ValueError: distances or head_channels are not as above.
        """
        super().__init__(input_shape, decoder_channels=decoder_channels, norm=norm, **kwargs)
        distances = list(distances)
        if not distances or distances[0] < 1 or sorted(set(distances)) != distances:
            raise ValueError(
                "MODEL.INS_EMBED_HEAD.DISTANCES must be strictly increasing integers >= 1, "
                f"such as [1, 4, 16]; got {distances}"
            )
        if head_channels % 8:
            raise ValueError(
                f"MODEL.INS_EMBED_HEAD.HEAD_CHANNELS must be divisible by 8, got {head_channels}"
            )
        self.distances = distances
        self.reduce = nn.Sequential(
            _conv(decoder_channels[0] + num_classes, head_channels, norm),
            _conv(head_channels, head_channels, norm),
        )
        self.classifiers = nn.ModuleList(EdgeClassifier(head_channels, d, norm) for d in distances)

    @classmethod
    def from_config(cls, cfg, input_shape):
        args = PanopticDeepLabInsEmbedHead.from_config(cfg, input_shape)
        del args["center_loss_weight"], args["offset_loss_weight"]
        # num_classes of the base class would add a predictor of its own; ours is another one.
        args["num_classes"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        args["distances"] = cfg.MODEL.INS_EMBED_HEAD.DISTANCES
        return args

    def forward(self, features: dict[str, Tensor], class_logits: Tensor) -> Tensor:
        """
        Args:
            features: the backbone's feature maps.
            class_logits: (N, K, H, W). No gradient flows back into them (paper 3.1).

        Returns:
            (N, D, 2, H, W) affinity logits at the anchor: positive = same segment.
        """
        decoded = super().layers(features)
        shared = self.reduce(torch.cat([decoded, class_logits.detach()], dim=1))
        return torch.stack([classifier(shared) for classifier in self.classifiers], dim=1)
