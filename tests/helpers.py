"""What several test modules share: configs, batches and small scenes."""

import os
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model

from amwc_d2.config import load_config
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.data.toy_scenes import CATEGORIES, draw_scene
from amwc_d2.edges import cut_edges, edge_exists
from amwc_d2.estimators import Estimator, GradientConfig, SolverConfig

DATASETS = Path(os.environ["DETECTRON2_DATASETS"])  # the throw-away folder of conftest.py
DISTANCES = (1, 2)


def load(repository, name, *options, keep_weights=False):
    weights = [] if keep_weights else ["MODEL.WEIGHTS", ""]
    return load_config(repository / "configs" / name, [*weights, "MODEL.DEVICE", "cpu", *options])


def random_weights(cfg, path):
    """Save an untrained model of a config as a checkpoint; returns its path."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return path


def toy_batch(sizes, cfg=None):
    """Toy scenes cut to the given sizes, with targets of the class numbers 0 to 9."""
    contiguous = {c["id"]: k for k, c in enumerate(CATEGORIES)}
    generator = AMWCTargetGenerator(ignore_label=255, thing_ids=range(5, 10))
    batch = []
    for seed, (height, width) in enumerate(sizes):
        image, ids, segments = draw_scene(np.random.default_rng(seed))
        image, ids = image[:height, :width], ids[:height, :width]
        segments = [{**s, "category_id": contiguous[s["category_id"]]} for s in segments]
        record = {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))}
        batch.append({**record, **generator(np.ascontiguousarray(ids), segments)})
    return batch


def make_estimator(generator=None, lambda_scale=1.0, num_threads=0, **gradient):
    """An estimator for the problems of ``scene``."""
    solver = SolverConfig(DISTANCES, np.array([False, False, True]), num_threads=num_threads)
    return Estimator(solver, GradientConfig(**gradient), generator, lambda_scale)


def scene(seed=0, n=2, height=8, width=10):
    """Costs around a scene with two things of one class on stuff, and its segments."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, height, width), int)
    truth[:, :, : width // 3] = 1
    truth[:, 2:6, 4:7] = 2
    truth[:, 2:6, 7:9] = 3
    truth_classes = np.array([0, 1, 2, 2])
    classes = truth_classes[truth]
    node = -3.0 * (classes[:, None] == np.arange(3)[None, :, None, None])
    node = torch.tensor(node + rng.normal(0, 2.5, node.shape), dtype=torch.float32)
    cut = cut_edges(torch.tensor(truth), DISTANCES)
    edge = torch.where(cut, -2.0, 2.0) + torch.tensor(rng.normal(0, 2, cut.shape))
    edge = (edge * edge_exists(height, width, DISTANCES)).float()
    return node, edge, truth, truth_classes
