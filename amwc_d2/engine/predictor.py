"""A trained model on files and arrays.

Shape shorthand: H, W an image's height and width; C its channels; K classes; D distances; h, w the
solver's grid.
"""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T

from amwc_d2.config import load_config
from amwc_d2.data.images import ImageReader
from amwc_d2.data.mappers import ResizeShortestEdge, to_tensor
from amwc_d2.data.model_card import FAR, config_of_card, read_card, resize_factor
from amwc_d2.engine.command_line import load_model

logger = logging.getLogger(__name__)


class Predictor:
    """Reads an image of any kind, runs a model on it and gives what the model returns::

        predict = amwc_d2.Predictor("output/cells/amwc_R18_e2e/model_final.pth")
        panoptic_seg, segments_info = predict("image.tif")["panoptic_seg"]

    Images are enlarged by the factor that the training images were, whatever their size; only where
    those had no common factor are they brought to ``INPUT.MIN_SIZE_TEST``.

    Attributes:
        cfg (CfgNode): the model's. model (AMWCPanoptic). metadata (Metadata): class names, colours.
        read (ImageReader): how images are read.
        factor (float or None): by how much images are enlarged; None: to ``MIN_SIZE_TEST``, where
            the training images had no common factor or another size was set.
    """

    def __init__(self, model, opts=(), *, scale=1.0):
        """
        Args:
            model (str, Path or CfgNode): a checkpoint that carries its card (all that our trainer
                writes do), a config file (YAML), or a config; the latter two with MODEL.WEIGHTS.
            opts (sequence): keys and values in turn, such as ``["MODEL.DEVICE", "cuda"]``.
            scale (float): how many times larger the objects are in these images than in those of
                the training; 2 where the magnification is twice as high.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the checkpoint has no card, or ``scale`` is not above 0.
        """
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}.")
        self.cfg = _config(model, opts)
        self.model = load_model(self.cfg).eval()
        self.metadata = MetadataCatalog.get((*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST)[0])
        self.read = ImageReader.from_config(self.cfg)
        self._resize = ResizeShortestEdge(
            self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST
        )
        card = self.model.card or {}
        low, middle, high = card.get("scale") or (0, 1, float("inf"))
        trained_size = (
            CfgNode.load_cfg(card.get("config", "")).get("INPUT", {}).get("MIN_SIZE_TEST")
        )
        common = high < FAR * low and trained_size == self.cfg.INPUT.MIN_SIZE_TEST
        self.factor = middle / scale if common else None
        self._scale, self._warned = scale, False

    def prepare(self, image):
        """What the model takes of an image that was read.

        Args:
            image (ndarray): (H, W, C), from ``read``.

        Returns:
            dict: ``image`` (C, H', W'), ``height`` H and ``width`` W.
        """
        height, width = image.shape[:2]
        usual = resize_factor(self._resize, (height, width))
        factor = self.factor or usual / self._scale
        size = (max(1, round(side * factor)) for side in (height, width))
        resized = T.ResizeTransform(height, width, *size).apply_image(image)
        if not self._warned and not 1 / FAR < factor / usual < FAR:
            self._warned = True
            logger.warning(
                "An image of %dx%d pixels is enlarged %.2f times, as those of the training were "
                "(INPUT.MIN_SIZE_TEST would have made it %.2f). If its objects are larger or "
                "smaller in pixels than theirs, say so with scale.", height, width, factor, usual,
            )  # fmt: skip
        return {
            "image": to_tensor(resized), "height": height, "width": width, "scale": self._scale
        }  # fmt: skip

    @torch.no_grad()
    def __call__(self, image):
        """Segment one image.

        Args:
            image (str, Path or ndarray): a file, or an array (H, W) or (H, W, C) in RGB order, of
                any type that ``INPUT.SCALING`` knows.

        Returns:
            dict: see ``AMWCPanoptic.forward``; ``panoptic_seg`` has the image's size.

        Raises:
            FileNotFoundError, ValueError: see :class:`amwc_d2.data.images.ImageReader`.
        """
        return self.model([self.prepare(self.read(image))])[0]

    @torch.no_grad()
    def predict_costs(self, image, grid=None):
        """What the solver is given for an image.

        Args:
            image: as above.
            grid (tuple, optional): (h, w), the part of the padded grid that is image.

        Returns:
            node costs (K, h, w) and edge costs (D, 2, h, w), on the CPU.
        """
        prediction = self.model.predict([self.prepare(self.read(image))])
        height, width = grid or (
            -(-side // self.model.stride) for side in prediction.image_sizes[0]
        )
        costs = prediction.node_costs, prediction.edge_costs
        return tuple(cost[0, ..., :height, :width] for cost in costs)


def _config(model, opts):
    if isinstance(model, CfgNode):
        cfg = model.clone()
        cfg.defrost()
        cfg.merge_from_list(list(opts))
        return cfg
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected a checkpoint or a config file.")
    if path.suffix in (".yaml", ".yml"):
        return load_config(path, opts)
    card = read_card(path)
    if card is None:
        raise ValueError(
            f"{path} carries no card (classes and config), so it is no checkpoint of our trainer, "
            "or an old one. Give the config instead, with MODEL.WEIGHTS among opts."
        )
    cfg = config_of_card(card)
    cfg.MODEL.WEIGHTS = str(path)
    cfg.merge_from_list(list(opts))
    return cfg
