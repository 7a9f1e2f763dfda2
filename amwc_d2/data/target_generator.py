"""Training targets from panoptic ground truth: classes, segments and their weights.

Shape shorthand in this module:

    H, W: the augmented image    S: ground-truth segments listed for the image
"""

import numpy as np
import torch
from detectron2.data import MetadataCatalog

from amwc_d2.edges import VOID


class AMWCTargetGenerator:
    """Turns a panoptic id map and its ``segments_info`` into training targets.

    Called by ``AMWCDatasetMapper`` after augmentation, so ids may be cropped away.
    """

    def __init__(
        self,
        *,
        ignore_label: int,
        thing_ids,
        thing_edge_weight: float = 4.0,
        small_instance_area: int = 4096,
        small_instance_weight: float = 3.0,
        ignore_crowd_in_semantic: bool = False,
    ):
        """
        Args:
            ignore_label: class of void pixels in ``sem_seg``.
            thing_ids: contiguous ids of the thing classes.
            thing_edge_weight: weight of edges with an end on a thing (paper 4.2: 4).
            small_instance_area: things below this many pixels are small.
            small_instance_weight: extra weight of small things (paper 4.2: 3).
            ignore_crowd_in_semantic: make the pixels of crowd regions void in ``sem_seg``.
        """
        self.ignore_label = ignore_label
        self.thing_ids = frozenset(thing_ids)
        self.thing_edge_weight = thing_edge_weight
        self.small_instance_area = small_instance_area
        self.small_instance_weight = small_instance_weight
        self.ignore_crowd_in_semantic = ignore_crowd_in_semantic

    @classmethod
    def from_config(cls, cfg):
        meta = MetadataCatalog.get((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])
        return cls(
            ignore_label=meta.ignore_label,
            thing_ids=meta.thing_dataset_id_to_contiguous_id.values(),
            thing_edge_weight=cfg.INPUT.THING_EDGE_WEIGHT,
            small_instance_area=cfg.INPUT.SMALL_INSTANCE_AREA,
            small_instance_weight=cfg.INPUT.SMALL_INSTANCE_WEIGHT,
            ignore_crowd_in_semantic=cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC,
        )

    def __call__(self, panoptic, segments_info) -> dict[str, torch.Tensor]:
        """
        Args:
            panoptic: int array (H, W) of panoptic ids; 0 is void.
            segments_info: list of dicts with ``id``, contiguous ``category_id``, ``iscrowd``.

        Returns:
            ``sem_seg`` int64 (H, W), class or ignore_label;
            ``sem_seg_weights`` float32 (H, W), the class loss weight;
            ``segments`` int64 (H, W), index into ``segment_classes``, -1 = void;
            ``segment_classes`` int64 (S,); ``segment_crowd`` bool (S,);
            ``affinity_weights`` float32 (H, W), the weight of edges that end here, 0 = none.

        Raises:
            ValueError: an id in the map that ``segments_info`` does not list.
        """
        # Maps are runs of equal ids: sorting their ids takes a tenth of sorting the pixels.
        flat = panoptic.ravel()
        starts = np.append(0, 1 + np.flatnonzero(flat[1:] != flat[:-1]))
        lengths = np.diff(starts, append=flat.size)
        ids, id_of_run = np.unique(flat[starts], return_inverse=True)
        index_of = {seg["id"]: index for index, seg in enumerate(segments_info)}
        unknown = [int(i) for i in ids if i != 0 and int(i) not in index_of]
        if unknown:
            raise ValueError(
                f"the panoptic map holds ids {unknown[:5]} that its segments_info does not list "
                f"(it lists {sorted(index_of)[:5]}...). Every id but 0 needs an entry: mend the "
                "JSON, or paint the pixels 0 (void)."
            )
        count = len(segments_info)
        classes = np.array([seg["category_id"] for seg in segments_info], dtype=np.int64)
        crowd = np.array([bool(seg["iscrowd"]) for seg in segments_info], dtype=bool)
        thing = np.array([int(c) in self.thing_ids for c in classes], dtype=bool)

        segment_of_run = np.array([index_of.get(int(i), VOID) for i in ids], np.int64)[id_of_run]
        area = np.bincount(segment_of_run + 1, weights=lengths, minlength=count + 1)[1:]
        small = thing & (area < self.small_instance_area)

        def paint(value_of_segment):
            values = np.repeat(value_of_segment[segment_of_run], lengths)
            return torch.from_numpy(values.reshape(panoptic.shape))

        # One value a segment, the last one (index -1) for void.
        label = np.append(classes, self.ignore_label)
        if self.ignore_crowd_in_semantic:
            label[:-1][crowd] = self.ignore_label
        class_weight = np.append(np.where(small, self.small_instance_weight, 1.0), 1.0)
        edge_weight = np.where(thing, self.thing_edge_weight, 1.0) * class_weight[:-1]
        edge_weight = np.append(np.where(crowd, 0.0, edge_weight), 0.0)
        return {
            "sem_seg": paint(label),
            "sem_seg_weights": paint(class_weight.astype(np.float32)),
            "segments": paint(np.append(np.arange(count), VOID)),
            "segment_classes": torch.from_numpy(classes),
            "segment_crowd": torch.from_numpy(crowd),
            "affinity_weights": paint(edge_weight.astype(np.float32)),
        }
