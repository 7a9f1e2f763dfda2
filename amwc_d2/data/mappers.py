"""From a dataset dict to what the model takes: read, resized, and in training with its targets.

Shape shorthand: H, W an image's height and width after augmentation; C channels.
"""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from panopticapi.utils import rgb2id

from amwc_d2.data.images import ImageReader
from amwc_d2.data.panoptic_format import check_image_size, read_panoptic_colors


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, for pictures of any shape: the shorter side keeps at least one pixel."""

    def get_transform(self, image):
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            size = max(1, transform.new_h), max(1, transform.new_w)
            return T.ResizeTransform(transform.h, transform.w, *size, transform.interp)
        return transform


def to_tensor(image):
    """An image (H, W, C) as a tensor (C, H, W) of the same type."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


class AMWCDatasetMapper:
    """Reads an image and its labels for training, augments both and makes the targets.

    Samples leave out ``segments_info``, which the targets replace: sending it from a data worker
    to the training process takes longer than making them.
    """

    @configurable
    def __init__(self, *, augmentations, image_reader, panoptic_target_generator):
        """
        Args:
            augmentations: Detectron2's, applied to image and labels alike.
            image_reader (ImageReader): how images are read.
            panoptic_target_generator: (ids (H, W), segments_info) -> dict of targets.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.read = image_reader
        self.generate_targets = panoptic_target_generator

    @classmethod
    def from_config(cls, cfg, *, augmentations, panoptic_target_generator):
        return {
            "augmentations": augmentations,
            "image_reader": ImageReader.from_config(cfg),
            "panoptic_target_generator": panoptic_target_generator,
        }

    def __call__(self, dataset_dict):
        """
        Args:
            dataset_dict (dict): of the DatasetCatalog; not changed.

        Returns:
            dict: it without labels, with ``image`` (C, H, W), the targets, and ``height`` and
            ``width`` of the file's image.

        Raises:
            ValueError: the image or its labels are wrong; it names the files.
        """
        image = self.read(dataset_dict["file_name"])
        labels = read_panoptic_colors(dataset_dict["pan_seg_file_name"])
        check_image_size(dataset_dict, image, labels)
        pair = T.AugInput(image, sem_seg=labels)
        self.augmentations(pair)
        try:
            targets = self.generate_targets(rgb2id(pair.sem_seg), dataset_dict["segments_info"])
        except ValueError as error:
            raise ValueError(
                f"{dataset_dict['pan_seg_file_name']} (image {dataset_dict['file_name']}): {error}"
            ) from error
        left_out = ("pan_seg_file_name", "segments_info")
        sample = {k: v for k, v in dataset_dict.items() if k not in left_out}
        sample.update(height=image.shape[0], width=image.shape[1])
        return {**sample, "image": to_tensor(pair.image), **targets}


class InferenceMapper:
    """Reads and resizes an image as ``INPUT.{MIN,MAX}_SIZE_TEST`` say, without its labels."""

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): the model's.
        """
        self.read = ImageReader.from_config(cfg)
        self.resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, dataset_dict):
        """
        Args:
            dataset_dict (dict): of the DatasetCatalog; not changed.

        Returns:
            dict: it without class maps, with ``image`` (C, H, W), and ``height`` and ``width`` of
            the file's image.

        Raises:
            ValueError: the image is wrong; it names the file.
        """
        image = self.read(dataset_dict["file_name"])
        check_image_size(dataset_dict, image)
        sample = {k: v for k, v in dataset_dict.items() if k != "sem_seg_file_name"}
        return {**sample, **self.prepare(image)}

    def prepare(self, image):
        """What the model takes of an image (H, W, C) that was read: a dict as above."""
        resized = self.resize.get_transform(image).apply_image(image)
        height, width = image.shape[:2]
        return {"image": to_tensor(resized), "height": height, "width": width}
