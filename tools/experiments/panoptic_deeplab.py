#!/usr/bin/env python3
"""Detectron2's Panoptic-DeepLab at the cost of one of our recipes: the peer to be ahead of.

    tools/experiments/panoptic_deeplab.py --config-file \\
        configs/DSB2018-PanopticSegmentation/amwc_R18.yaml OUTPUT_DIR output/dsb2018/peer

Everything that a recipe of stage 1 says holds for the peer too: backbone, decoders and their
widths, images, augmentation, batch, steps, learning rates and the images held back. Where
Detectron2's own code would put it at a disadvantage it is helped: offsets are rescaled with the
output, things below MODEL.AMWC.THING_AREA are rejected as ours are, 1,000 instances may be found
instead of 200, and the threshold and the kernel of its centres are tuned on the held-back images.

Writes OUTPUT_DIR/model_final.pth, tuned.json and inference/results.json.
"""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import default_argument_parser, default_setup
from detectron2.engine.hooks import EvalHook
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.projects.panoptic_deeplab.panoptic_seg import PanopticDeepLab
from detectron2.projects.panoptic_deeplab.post_processing import get_panoptic_segmentation
from detectron2.projects.panoptic_deeplab.target_generator import PanopticDeepLabTargetGenerator
from detectron2.utils.logger import setup_logger
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from amwc_d2 import Trainer
from amwc_d2.config import load_config, use_available_device, use_bfloat16
from amwc_d2.data.mappers import AMWCDatasetMapper
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.engine.calibration import Calibration, inference_inputs, read_truth
from amwc_d2.engine.trainer import build_train_augmentations, training_samples
from amwc_d2.evaluation import segment_metrics
from amwc_d2.post_processing import panoptic_to_instances

logger = logging.getLogger("amwc_d2.panoptic_deeplab")
THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
KERNELS = (3, 5, 7, 11, 15)


@META_ARCH_REGISTRY.register()
class PeerPanopticDeepLab(PanopticDeepLab):
    """``PanopticDeepLab`` whose results are like ``AMWCPanoptic``'s, by ``predict`` and ``label``.

    Trains as Detectron2's does, the network in bfloat16 where ours is.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self.bfloat16 = use_bfloat16(cfg)
        for module, name in ((self.backbone, "forward"), (self.sem_seg_head, "layers"),
                             (self.ins_embed_head, "layers")):  # fmt: skip
            setattr(module, name, self._in_precision(getattr(module, name)))
        crop = cfg.INPUT.CROP
        self.divisors = tuple(crop.SIZE) if crop.ENABLED else (32, 32)
        self.ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self.things = set(self.meta.thing_dataset_id_to_contiguous_id.values())
        self.thing_area = cfg.MODEL.AMWC.THING_AREA

    def _in_precision(self, function):
        def run(*args):
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.training and self.bfloat16
            ):
                result = function(*args)
            return tree_map(Tensor.float, result)

        return run

    def _padding(self, image):
        """What the ASPP pooling needs at the right and the bottom, for ``F.pad``."""
        height, width = (-side % d for side, d in zip(image.shape[-2:], self.divisors))
        return 0, width, 0, height

    def forward(self, batched_inputs):
        """In training; height and width are padded separately, as ours are, and not judged."""
        padded = []
        for x in batched_inputs:
            mean, extra = self.pixel_mean.cpu(), self._padding(x["image"])
            maps = {
                k: F.pad(v, extra, value=self.ignore_label if k == "sem_seg" else 0)
                for k, v in x.items()
                if isinstance(v, Tensor) and k != "image"
            }
            padded.append({**x, **maps, "image": F.pad(x["image"] - mean, extra) + mean})
        return super().forward(padded)

    def predict(self, batched_inputs):
        """Per image: the size of the input and class logits, centres and offsets at that size."""
        padded = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std
                  for x in batched_inputs]  # fmt: skip
        (image,) = padded  # TEST.IMS_PER_BATCH 1
        height, width = image.shape[-2:]
        image = F.pad(image, self._padding(image))
        features = self.backbone(image[None])
        sem_seg, _ = self.sem_seg_head(features)
        center, offset, _, _ = self.ins_embed_head(features)
        return [((height, width), sem_seg[0], center[0], offset[0])]

    def label(self, batched_inputs, predictions, threshold=None, kernel=None):
        """Panoptic results as of ``AMWCPanoptic``, at the images' own sizes."""
        results = []
        for x, (size, *maps) in zip(batched_inputs, predictions):
            height, width = x.get("height", size[0]), x.get("width", size[1])
            sem_seg, center, offset = (
                sem_seg_postprocess(m.float(), size, height, width) for m in maps
            )
            scale = offset.new_tensor([height / size[0], width / size[1]])
            ids, _ = get_panoptic_segmentation(
                sem_seg.argmax(dim=0, keepdim=True),
                center,
                offset * scale[:, None, None],
                thing_ids=self.things,
                label_divisor=self.meta.label_divisor,
                stuff_area=self.stuff_area,
                void_label=-1,
                threshold=self.threshold if threshold is None else threshold,
                nms_kernel=kernel or self.nms_kernel,
                top_k=min(self.top_k, height * width),
            )
            panoptic_seg, info = self._segments(ids[0], sem_seg, center[0])
            results.append(
                {
                    "panoptic_seg": (panoptic_seg, info),
                    "instances": panoptic_to_instances(panoptic_seg, info),
                    "sem_seg": sem_seg,
                }
            )
        return results

    def _segments(self, ids, sem_seg, center):
        """From ids by ``label_divisor`` to ids from 1 and their ``segments_info``."""
        panoptic_seg, info = torch.zeros_like(ids, dtype=torch.int32), []
        probability = sem_seg.softmax(dim=0)
        for value in ids.unique().tolist():
            category, mask = value // self.meta.label_divisor, ids == value
            isthing, area = category in self.things, int(mask.sum())
            if value < 0 or (isthing and area < self.thing_area):
                continue
            # The score is Detectron2's: class probability times that of the centre.
            y, x = (int(i.float().mean()) for i in mask.nonzero(as_tuple=True))
            score = float(probability[category][mask].mean() * center[y, x]) if isthing else 1.0
            panoptic_seg[mask] = len(info) + 1
            info.append({"id": len(info) + 1, "category_id": category, "isthing": isthing,
                         "area": area, "score": score})  # fmt: skip
        return panoptic_seg, info


class PeerTrainer(Trainer):
    """Our trainer with the peer's targets; evaluation waits for ``finish``."""

    @classmethod
    def build_train_mapper(cls, cfg):
        generator = PanopticDeepLabTargetGenerator(
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            thing_ids=AMWCTargetGenerator.from_config(cfg).thing_ids,
            sigma=cfg.INPUT.GAUSSIAN_SIGMA,
            ignore_stuff_in_offset=cfg.INPUT.IGNORE_STUFF_IN_OFFSET,
            small_instance_area=cfg.INPUT.SMALL_INSTANCE_AREA,
            small_instance_weight=cfg.INPUT.SMALL_INSTANCE_WEIGHT,
            ignore_crowd_in_semantic=cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC,
        )
        return AMWCDatasetMapper(
            cfg,
            augmentations=build_train_augmentations(cfg),
            panoptic_target_generator=generator,
        )

    def build_hooks(self):
        return [h for h in super().build_hooks() if not isinstance(h, (EvalHook, Calibration))]


def peer_config(config_file, opts=()):
    """The config of a recipe of stage 1, turned into that of its peer; not frozen."""
    cfg = load_config(config_file)
    cfg.MODEL.META_ARCHITECTURE = "PeerPanopticDeepLab"
    cfg.MODEL.INS_EMBED_HEAD.NAME = "PanopticDeepLabInsEmbedHead"
    cfg.MODEL.PANOPTIC_DEEPLAB.STUFF_AREA = cfg.MODEL.AMWC.STUFF_AREA
    cfg.MODEL.PANOPTIC_DEEPLAB.TOP_K_INSTANCE = 1000
    cfg.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV = (
        cfg.MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV
    )
    cfg.TEST.IMS_PER_BATCH = 1
    cfg.merge_from_list(list(opts))
    return cfg


@torch.no_grad()
def tune(cfg, model, samples) -> dict:
    """Choose threshold and kernel of the centres by PQ on ``samples``; set them in the model.

    Returns:
        ``threshold``, ``kernel`` and ``PQ``, all PQ by "threshold,kernel".
    """
    model.eval()
    generator = AMWCTargetGenerator.from_config(cfg)
    images = [
        ([inputs], model.predict([inputs]), *read_truth(generator, sample))
        for sample, inputs in zip(samples, inference_inputs(cfg, samples))
    ]
    scores = {}
    for threshold, kernel in itertools.product(THRESHOLDS, KERNELS):
        records = []
        for inputs, prediction, true, info in images:
            (result,) = model.label(inputs, prediction, threshold, kernel)
            ids, pred_info = result["panoptic_seg"]
            pred = ids.cpu().numpy().astype(np.int64)
            records.append(segment_metrics.match_segments(true, pred, info, pred_info))
        classes = range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        scores[threshold, kernel] = segment_metrics.panoptic_quality(
            np.concatenate(records), classes
        )
    model.threshold, model.nms_kernel = max(scores, key=scores.get)
    return {
        "threshold": model.threshold,
        "kernel": model.nms_kernel,
        "PQ": {f"{t},{k}": value for (t, k), value in scores.items()},
    }


def main(args):
    cfg = peer_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, name="amwc_d2")
    use_available_device(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)
    trainer = PeerTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return finish(cfg, trainer.model)


def finish(cfg, model):
    """Tune on the images held back, write what was chosen, evaluate."""
    _, held = training_samples(cfg)
    tuned = tune(cfg, model, held)
    logger.info("centres: threshold %g, kernel %d", tuned["threshold"], tuned["kernel"])
    (Path(cfg.OUTPUT_DIR) / "tuned.json").write_text(json.dumps(tuned, indent=1) + "\n")
    return PeerTrainer.test(cfg, model)


if __name__ == "__main__":
    main(default_argument_parser(epilog=__doc__).parse_args())
