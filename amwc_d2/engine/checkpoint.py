"""Loading weights: Detectron2's checkpointer, and a log of what a checkpoint gave."""

import logging
from collections import Counter

from detectron2.checkpoint import DetectionCheckpointer

logger = logging.getLogger(__name__)


class AMWCCheckpointer(DetectionCheckpointer):
    """Says for each part of the model what was taken from the checkpoint and what starts anew.

    Takes whatever fits by name and shape: our own checkpoints, Panoptic-DeepLab's of Detectron2's
    zoo (backbone, semantic head and the affinity head's decoder bear the same names), ImageNet
    backbones.
    """

    def _load_model(self, checkpoint):
        model = getattr(self.model, "module", self.model)  # without DistributedDataParallel
        # Older checkpoints do not count the batches that batch norm has seen.
        names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
        incompatible = super()._load_model(checkpoint)
        new = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        new = {name.removeprefix("module.") for name in new}
        total = Counter(_part(name) for name in names)
        taken = Counter(_part(name) for name in names if name not in new)
        for part, count in total.items():
            logger.info(
                "%s: %s",
                part,
                "all new" if not taken[part] else f"{taken[part]} of {count} tensors taken",
            )
        unused = sorted({_part(name) for name in incompatible.unexpected_keys})
        if unused:
            logger.info("not used: %s", ", ".join(unused))
        return incompatible


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to, such as ``sem_seg_head.decoder``."""
    head, _, rest = name.partition(".")
    return f"{head}.{rest.partition('.')[0]}" if head.endswith("_head") else head
