#!/usr/bin/env python3
"""Does the gradient through the solver point where the loss falls?

Two figures for every estimator, on what a trained network makes of training images:

* the null test: the largest entry of the gradient when nothing perturbs the costs; must be 0.
* the alignment: the cosine between the estimate and central finite differences of the loss with
  the solver in the loop, along global directions of the costs: an offset and a scale for each edge
  distance, an offset for each class, the scale of all class costs. A step along any of them moves
  the costs concerned by the same amount, root mean square, so that no direction weighs more than
  another by its units. The differences are noisy themselves: "finite differences" in the table is
  their cosine with those at half the step, about the most that an estimator can reach.

    tools/experiments/check_gradient.py --json gradient.json --opts MODEL.WEIGHTS model_final.pth
"""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from network_outputs import collate, network_outputs, pick_images
from tabulate import tabulate
from tqdm import tqdm

from amwc_d2.config import load_config
from amwc_d2.costs import Costs
from amwc_d2.engine.command_line import commit, load_model, model_parser
from amwc_d2.estimators import Estimator

logger = logging.getLogger("amwc_d2.check_gradient")
TOY = "configs/Toy-PanopticSegmentation/amwc_R18_e2e.yaml"

# Name in the table -> changes to the config's ``GradientConfig``.
ESTIMATORS = {
    "same_solver": {"estimator": "same_solver", "two_sided": 0.0},
    "same_solver, noise": {"estimator": "same_solver", "two_sided": 0.0, "noise": 0.25},
    "same_solver, proximal": {"estimator": "same_solver", "two_sided": 0.0, "proximal": 0.05},
    "warm_start": {"estimator": "warm_start"},
    "warm_start, noise": {"estimator": "warm_start", "noise": 0.25},
    "warm_start, proximal": {"estimator": "warm_start", "proximal": 0.05},
    "warm_start, lambda by area": {"estimator": "warm_start", "lambda_area": 200.0},
    "literal": {"estimator": "literal", "two_sided": 0.0},
    **{
        f"warm_start, {sides}, lambda {low:g} to {10 * low:g}": {
            "estimator": "warm_start",
            "two_sided": two_sided,
            "lambda_range": (low, 10 * low),
        }
        for low in (20.0, 100.0, 200.0, 500.0, 1000.0)
        for sides, two_sided in (("one-sided", 0.0), ("two-sided 0.2", 0.2), ("central", 1.0))
    },
    "warm_start, two-sided 0.2, lambda 1000 to 10000 by area 200": {
        "estimator": "warm_start",
        "two_sided": 0.2,
        "lambda_range": (1000.0, 10000.0),
        "lambda_area": 200.0,
    },
}


def get_parser():
    parser = model_parser(__doc__, config_file=TOY)
    parser.add_argument("--num-images", type=int, default=240, help="training images (default 240)")
    parser.add_argument("--batch", type=int, help="images that share one loss (default: a step's)")
    parser.add_argument("--step", type=float, default=0.2, help="of the differences (default 0.2)")
    parser.add_argument(
        "--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), metavar="NAME"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    return parser


class Directions:
    """The global directions: the parameters of ``Costs`` in units of equal cost change.

    Coordinates are in nats: a step of 1 changes the costs that it touches by 1, root mean square.
    """

    def __init__(self, costs: Costs, outputs, distances):
        self.costs = costs
        edges = sum(o.affinity_logits.square().sum((1, 2, 3)) for o in outputs)
        edge_rms = (edges / sum(2 * o.segments.numel() for o in outputs)).sqrt()
        classes = sum(o.class_logits.square().sum() for o in outputs)
        class_rms = (classes / sum(o.class_logits.numel() for o in outputs)).sqrt()
        self.units = {
            "edge_offset": torch.ones(len(distances)),
            "edge_scale": 1 / edge_rms,
            "class_offset": torch.ones(len(costs.class_offset)),
            "class_scale": 1 / class_rms.view(1),
        }
        labels = {"edge_offset": distances, "edge_scale": distances}
        self.names = [
            " ".join([part.replace("_", " "), str(labels.get(part, range(len(unit)))[i])])
            for part, unit in self.units.items()
            for i in range(len(unit))
        ]
        self.is_edge = np.array([name.startswith("edge") for name in self.names])

    def moved(self, index: int, step: float) -> Costs:
        """The costs after ``step`` nats along one direction."""
        moved = Costs(len(self.costs.class_offset), len(self.costs.edge_offset))
        moved.load_state_dict(self.costs.state_dict())
        part, i = [(p, i) for p, unit in self.units.items() for i in range(len(unit))][index]
        with torch.no_grad():
            getattr(moved, part).view(-1)[i] += step * self.units[part][i]
        return moved

    def project(self) -> np.ndarray:
        """The derivative along every direction, from the gradients of ``self.costs``."""
        parts = [
            getattr(self.costs, part).grad.flatten() * unit for part, unit in self.units.items()
        ]
        return torch.cat(parts).double().numpy()


def gradient_along(criterion, directions, batches) -> tuple[np.ndarray, float]:
    """The estimated derivative along every direction, and the share of cells that moved."""
    costs = directions.costs
    costs.zero_grad()
    rates = []
    for *logits, sizes, truth in batches:
        losses, report = criterion(*costs(*logits), sizes, truth)
        (sum(losses.values()) / len(batches)).backward()
        rates.append(report.flip_rate)
    return directions.project(), float(np.mean(rates))


@torch.no_grad()
def loss_at(criterion, costs, batches) -> float:
    """Mean loss over the batches, with the solver in the loop."""
    losses = [criterion(*costs(*logits), sizes, truth)[0] for *logits, sizes, truth in batches]
    return float(np.mean([sum(v.item() for v in value.values()) for value in losses]))


def finite_differences(criterion, directions, batches, step) -> np.ndarray:
    """Central differences of the loss along every direction, a nat."""
    values = []
    for index in tqdm(range(len(directions.names)), desc=f"step {step:g}", leave=False):
        ends = [
            loss_at(criterion, directions.moved(index, side * step), batches) for side in (1, -1)
        ]
        values.append((ends[0] - ends[1]) / (2 * step))
    return np.array(values)


def largest_null_entry(criterion, costs, batch) -> float:
    """The largest entry of the costs' gradient where the loss does not perturb them."""
    *logits, sizes, truth = batch
    node_costs, edge_costs = (c.detach().requires_grad_() for c in costs(*logits))
    losses, _ = criterion(node_costs, edge_costs, sizes, truth)
    (0.0 * sum(losses.values())).backward()
    return max(c.grad.abs().max().item() for c in (node_costs, edge_costs))


def cosine(a, b) -> float:
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm else 0.0


def main(args):
    setup_logger(name="amwc_d2")
    started_at = commit()  # files may change while this runs
    cfg = load_config(args.config_file, args.opts)
    model = load_model(cfg)
    samples = pick_images(cfg.DATASETS.TRAIN[0], args.num_images)
    outputs = network_outputs(cfg, model, samples)
    batch = args.batch or cfg.SOLVER.IMS_PER_BATCH
    batches = [collate(outputs[i : i + batch]) for i in range(0, len(outputs), batch)]
    for p in model.costs.parameters():
        p.requires_grad = True
    directions = Directions(model.costs, outputs, list(model.solver.distances))
    criterion = model.criterion

    exact = finite_differences(criterion, directions, batches, args.step)
    again = finite_differences(criterion, directions, batches, args.step / 2)
    edge = directions.is_edge
    results = {
        "config": args.config_file,
        "opts": args.opts,
        "commit": started_at,
        "images": len(outputs),
        "batch": batch,
        "step": args.step,
        "lambda_range": list(criterion.estimator.gradient.lambda_range),
        "num_lambdas": criterion.estimator.gradient.num_samples,
        "two_sided": criterion.estimator.gradient.two_sided,
        "default": cfg.MODEL.AMWC.GRADIENT.ESTIMATOR,
        "directions": directions.names,
        "finite_differences": exact.tolist(),
        "finite_differences_repeat": cosine(exact, again),
        "null_max_abs": {},
        "alignment": {},
        "alignment_edges": {},
        "alignment_classes": {},
        "magnitude": {},
        "flip_rate": {},
        "seconds": {},
        "estimates": {},
    }
    rows = []
    gradient = criterion.estimator.gradient
    for name in args.estimators:
        criterion.estimator = Estimator(
            criterion.solver,
            replace(gradient, **ESTIMATORS[name]),
            torch.Generator().manual_seed(0),
        )
        start = time.process_time()
        estimate, rate = gradient_along(criterion, directions, batches)
        seconds = time.process_time() - start
        figures = {
            "null_max_abs": largest_null_entry(criterion, model.costs, batches[0]),
            "alignment": cosine(estimate, exact),
            "alignment_edges": cosine(estimate[edge], exact[edge]),
            "alignment_classes": cosine(estimate[~edge], exact[~edge]),
            "magnitude": float(np.linalg.norm(estimate) / np.linalg.norm(exact)),
            "flip_rate": rate,
            "seconds": seconds,
            "estimates": estimate.tolist(),
        }
        for key, value in figures.items():
            results[key][name] = value
        rows.append([name, *list(figures.values())[:-1]])
    rows.append(["finite differences", None, results["finite_differences_repeat"],
                 cosine(exact[edge], again[edge]), cosine(exact[~edge], again[~edge])])  # fmt: skip
    headers = ["estimator", "null test", "alignment", "edges", "classes", "size", "moved", "CPU s"]
    table = tabulate(rows, headers, floatfmt=("", "g", ".3f", ".3f", ".3f", ".2f", ".4f", ".1f"))
    logger.info("%d images, %d directions\n%s", len(outputs), len(exact), table)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main(get_parser().parse_args())
