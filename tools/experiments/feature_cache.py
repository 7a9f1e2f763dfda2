"""Stage 2 on cached features: where only late layers train, the rest runs once.

With ``MODEL.AMWC.TRAINED_LAYERS`` "classifiers" or "heads" the backbone and both decoders are
frozen, batch norm included, so that what the decoders make of an image never changes. This keeps
it for some random crops and flips of every training image; a step then costs the heads, the solver
and the backward pass, and differs from a step of ``Trainer`` only in where the crops come from.

Shape shorthand in this module:

    C: decoder channels    H, W: one image's padded grid
"""

import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from detectron2.projects.deeplab import DeepLabV3PlusHead
from detectron2.structures import ImageList
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor
from tqdm import tqdm

from amwc_d2 import Trainer
from amwc_d2.data.mappers import AMWCDatasetMapper
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.engine.trainer import build_train_augmentations, precision
from amwc_d2.evaluation.oracle import OracleMapper, OracleModel
from amwc_d2.panoptic_seg import Prediction

CACHED_LAYERS = ("classifiers", "heads")  # values of TRAINED_LAYERS that leave the decoders alone


@dataclass
class Features:
    """One image, decoded.

    Attributes:
        semantic, affinity: (C, H, W), outputs of the two decoders.
        image_size: (height, width) of the network's input, without padding.
        sample: the mapper's dict without the image: targets, or the size of the output.
    """

    semantic: Tensor
    affinity: Tensor
    image_size: tuple[int, int]
    sample: dict


@torch.no_grad()
def decode(model, sample: dict, dtype=torch.float32) -> Features:
    """Run backbone and decoders on one image of a mapper."""
    images = model.preprocess([sample])
    features = model.backbone(images.tensor)
    semantic, affinity = (
        DeepLabV3PlusHead.layers(head, features)[0].to(dtype).cpu()
        for head in (model.sem_seg_head, model.ins_embed_head)
    )
    rest = {key: value for key, value in sample.items() if key != "image"}
    return Features(semantic, affinity, tuple(images.image_sizes[0]), rest)


def cache_training(cfg, model, samples: list[dict], copies: int, seed: int) -> list[Features]:
    """``copies`` random crops and flips of every sample, in half precision."""
    seed_all_rng(seed)
    mapper = AMWCDatasetMapper(
        cfg,
        augmentations=build_train_augmentations(cfg),
        panoptic_target_generator=AMWCTargetGenerator.from_config(cfg),
    )
    model.eval()
    return [
        decode(model, mapper(sample), torch.float16)
        for sample in tqdm(samples * copies, desc="features", leave=False)
    ]


def cache_inference(cfg, model, samples: list[dict]) -> list[Features]:
    """The samples as at inference, with their ground truth for the oracles."""
    mapper = OracleMapper(cfg)
    model.eval()
    samples = [{k: v for k, v in s.items() if k != "sem_seg_file_name"} for s in samples]
    return [decode(model, mapper(s)) for s in tqdm(samples, desc="features", leave=False)]


def logits(model, batch: list[Features]) -> tuple[Tensor, Tensor]:
    """Class logits (N, K, H, W) and affinity logits (N, D, 2, H, W); all images of one size."""
    semantic, affinity = (
        torch.stack([getattr(f, part) for f in batch]).float().to(model.device)
        for part in ("semantic", "affinity")
    )
    class_logits = model.sem_seg_head.predictor(model.sem_seg_head.head(semantic))
    head = model.ins_embed_head
    shared = head.reduce(torch.cat([affinity, class_logits.detach()], dim=1))
    affinity_logits = [classifier(shared) for classifier in head.classifiers]
    return class_logits.float(), torch.stack(affinity_logits, dim=1).float()


def losses(model, batch: list[Features]) -> dict[str, Tensor]:
    """Stage 2's losses of a batch; needs an ``EventStorage``."""
    images = ImageList(torch.empty(0), [f.image_size for f in batch])
    return model.end_to_end_loss([f.sample for f in batch], images, *logits(model, batch))


@torch.no_grad()
def surrogate(model, features: list[Features], batch_size: int) -> float:
    """The mean weighted loss of stage 2 on fixed images, without cost dropout."""
    dropout, model.costs.dropout = model.costs.dropout, 0.0
    values = []
    with EventStorage():
        for start in range(0, len(features), batch_size):
            batch = losses(model, features[start : start + batch_size])
            values.append(sum(v.item() for v in batch.values()))
    model.costs.dropout = dropout
    return float(np.mean(values))


def train(cfg, model, features: list[Features], watched: list[Features], points: int = 12) -> dict:
    """Train stage 2 for ``SOLVER.MAX_ITER`` steps with ``SEED``.

    Args:
        cfg: of stage 2, with one of ``CACHED_LAYERS``.
        model: at the start, on its device; trained in place.
        features: the training crops, all of one padded size.
        watched: fixed crops on which the loss is measured ``points`` times.

    Returns:
        figures: ``curve`` (pairs of step and loss on ``watched``), ``flip_rate`` (mean), ``memory``
        (resident memory in MiB at those points) and ``seconds`` a step (``step``,
        ``solver_forward``, ``solver_backward``, means).

    Raises:
        ValueError: the layers that train are not in ``CACHED_LAYERS``.
    """
    if cfg.MODEL.AMWC.TRAINED_LAYERS not in CACHED_LAYERS:
        raise ValueError(
            f"MODEL.AMWC.TRAINED_LAYERS is '{cfg.MODEL.AMWC.TRAINED_LAYERS}', which trains layers "
            f"whose outputs are cached; expected one of {CACHED_LAYERS}. Use tools/train_net.py."
        )
    seed_all_rng(cfg.SEED)
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    order = torch.Generator().manual_seed(cfg.SEED)
    queue: list[int] = []
    figures = {"curve": [], "memory": [], "flip_rate": []}
    seconds = {"step": [], "solver_forward": [], "solver_backward": []}
    steps, batch_size = cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH
    period = max(1, steps // points)
    model.train()

    def watch(step):
        figures["curve"].append([step, surrogate(model, watched, batch_size)])
        figures["memory"].append(psutil.Process().memory_info().rss / 2**20)

    with EventStorage() as storage:
        for step in tqdm(range(steps), desc="stage 2", leave=False):
            if step % period == 0:
                watch(step)
            start = time.perf_counter()
            if len(queue) < batch_size:
                queue += torch.randperm(len(features), generator=order).tolist()
            batch, queue = queue[:batch_size], queue[batch_size:]
            with precision(cfg):
                total = sum(losses(model, [features[i] for i in batch]).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            scheduler.step()
            seconds["step"].append(time.perf_counter() - start)
            latest = {key: value for key, (value, _) in storage.latest().items()}
            for part in ("solver_forward", "solver_backward"):
                seconds[part].append(latest.get(f"time/{part}", 0.0))
            figures["flip_rate"].append(latest.get("amwc/flip_rate", 0.0))
        watch(steps)
    figures["flip_rate"] = float(np.mean(figures["flip_rate"]))
    return {**figures, "seconds": {part: float(np.mean(v)) for part, v in seconds.items()}}


@torch.no_grad()
def evaluate(model, features: list[Features], evaluator, oracle: str = "") -> dict:
    """What ``evaluator`` (Detectron2's) makes of the model's results on inference features.

    ``oracle``: which costs the truth replaces (``TEST.ORACLE``).
    """
    model.eval()
    oracle_model = OracleModel(model, oracle)
    evaluator.reset()
    for f in tqdm(features, desc="evaluation", leave=False):
        class_logits, affinity_logits = logits(model, [f])
        costs = [c.cpu() for c in model.costs(class_logits, affinity_logits)]
        prediction = Prediction([f.image_size], class_logits, *costs)
        if oracle:
            prediction = oracle_model.with_truth([f.sample], prediction)
        results = model.label([f.sample], prediction)
        evaluator.process([f.sample], results)
    return evaluator.evaluate()
