"""A trained model on files and arrays.

Shape shorthand: H, W an image's height and width; K classes; D distances; h, w the solver's grid.
"""

import torch
from detectron2.data import MetadataCatalog

from amwc_d2.data.mappers import InferenceMapper
from amwc_d2.engine.command_line import load_model


class Predictor:
    """Reads an image of any kind, runs the model on it and gives what the model returns.

    Attributes:
        cfg (CfgNode): the model's. model (AMWCPanoptic). metadata (Metadata): class names, colours.
        read (ImageReader): how images are read.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): the model's, with MODEL.WEIGHTS.
        """
        self.cfg = cfg
        self.model = load_model(cfg).eval()
        self.metadata = MetadataCatalog.get((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)[0])
        self._mapper = InferenceMapper(cfg)
        self.read = self._mapper.read

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
        return self.model([self._mapper.prepare(self.read(image))])[0]

    @torch.no_grad()
    def predict_costs(self, image, grid=None):
        """What the solver is given for an image.

        Args:
            image: as above.
            grid (tuple, optional): (h, w), the part of the padded grid that is image.

        Returns:
            node costs (K, h, w) and edge costs (D, 2, h, w), on the CPU.
        """
        prediction = self.model.predict([self._mapper.prepare(self.read(image))])
        height, width = grid or (
            -(-side // self.model.stride) for side in prediction.image_sizes[0]
        )
        costs = prediction.node_costs, prediction.edge_costs
        return tuple(cost[0, ..., :height, :width] for cost in costs)
