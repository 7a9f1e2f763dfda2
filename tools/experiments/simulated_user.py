#!/usr/bin/env python3
"""A simulated user corrects segmentations by the ground truth: panoptic quality against effort.

The user looks at the segments of all images one after the other, the least certain first (the
page's list) or in a random order, and corrects what the ground truth says is wrong with the page's
tools: a thing that holds several objects is split by one click in each, parts of one object are
merged, what is no object is merged into the background, objects in stuff are made anew, classes are
set. A merge is two clicks, a split one for each part, all else one.

    python tools/experiments/simulated_user.py --config-file CONFIG --output output/corrections \\
        --dataset dsb2018_panoptic_val --save 10 --opts MODEL.WEIGHTS FILE

writes corrections.json and corrections.png, and with --save the first images, corrected, as the
page saves them: training data for tools/collect_corrections.py.
"""

import copy
import json
import logging
from pathlib import Path

import numpy as np
from demo import setup_cfg
from detectron2.utils.logger import setup_logger
from network_outputs import pick_images
from tqdm import tqdm

from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.engine.command_line import commit, model_parser
from amwc_d2.engine.predictor import Predictor
from amwc_d2.evaluation.segment_metrics import (
    index_map,
    match_segments,
    overlaps,
    panoptic_quality,
)
from amwc_d2.explain import Clicks, correct, easiest_changes, explain

logger = logging.getLogger("amwc_d2.simulated_user")


class SimulatedUser:
    """Who corrects one image, knowing its ground truth.

    Attributes:
        clicks: what was done, a ``Clicks``.
        labelling: the ``Correction`` that it leads to.
    """

    def __init__(self, explanation, ids, segments_info):
        self.explanation, self.segments_info = explanation, segments_info
        self.truth = index_map(ids, segments_info, "the ground truth")
        graph, pixels = explanation.graph, explanation.pixel_pieces
        self.category = np.array([-1] + [s["category_id"] for s in segments_info])
        self.isthing = np.array([False] + [bool(s["isthing"]) for s in segments_info])
        # pixels that a piece shares with a true segment, (P, 1 + G); column 0 is void
        self.shared = overlaps(
            pixels + 1, self.truth, len(graph.areas), len(segments_info)
        )[1:]  # fmt: skip
        self.area = self.shared.sum(axis=0)
        offsets = [0.0] * len(explanation.classes), [0.0] * len(graph.distances)
        self.clicks = Clicks(explanation.file_name, *pixels.shape, [], *offsets)
        self.labelling = correct(graph)

    def records(self):
        """The image's records for the panoptic quality, corrected as it now is."""
        ids, info = self.explanation.panoptic(self.clicks)
        pred = index_map(ids, info, "the prediction")
        return match_segments(self.truth, pred, self.segments_info, info)

    def members(self, piece):
        return np.flatnonzero(self.labelling.segments == self.labelling.segments[piece])

    def perform(self, tool, pieces, category=None):
        """Click; returns the number of clicks, 0 where the tool says no."""
        points = []
        for piece in pieces:
            inside = np.argwhere(self.explanation.pixel_pieces == piece)
            if not len(inside):
                return 0
            y, x = inside[len(inside) // 2].tolist()
            points.append([x, y])
        click = {"tool": tool, "points": points}
        if category is not None:
            click["class"] = int(category)
        self.clicks.clicks.append(click)
        try:
            actions = self.clicks.actions(self.explanation.pixel_pieces)
            self.labelling = correct(self.explanation.graph, actions)
        except ValueError:
            self.clicks.clicks.pop()
            return 0
        return len(points)

    def review(self, piece):
        """Look at the segment of a piece and correct it; returns the number of clicks."""
        if self.explanation.graph.partitionable[self.labelling.classes[piece]]:
            return self.review_thing(piece)
        return self.find_missed(piece)

    def review_thing(self, piece):
        members = self.members(piece)
        within = self.shared[members].sum(axis=0)
        # Objects that lie in it by half, or by a quarter and make a quarter of it.
        large = (within > 0.25 * self.area) & (within > 0.25 * within.sum())
        objects = np.flatnonzero(self.isthing & ((within > 0.5 * self.area) | large))
        seeds = []  # the piece that holds most of each object, the largest object first
        for g in objects[np.argsort(-within[objects], kind="stable")]:
            seed = int(members[self.shared[members, g].argmax()])
            if seed not in seeds:
                seeds.append(seed)
        clicks = self.perform("split", seeds) if len(seeds) >= 2 else 0
        if not clicks:
            seeds = [int(members[self.shared[members].sum(axis=1).argmax()])]
        return clicks + sum(self.review_part(seed) for seed in seeds)

    def review_part(self, piece):
        """What is no object goes to the background; classes are set; parts are merged."""
        within = self.shared[self.members(piece)].sum(axis=0)
        within[0] = 0  # void
        g = int(within.argmax())
        if not within[g]:
            return 0
        if not self.isthing[g]:
            stuff = np.flatnonzero(self.labelling.classes == self.category[g])
            return self.perform("merge", [piece, int(stuff[0])]) if len(stuff) else 0
        clicks = 0
        if self.labelling.classes[piece] != self.category[g]:
            clicks += self.perform("class", [piece], self.category[g])
        for other in range(int(self.labelling.segments.max()) + 1):
            members = np.flatnonzero(self.labelling.segments == other)
            if other == self.labelling.segments[piece] or not len(members):
                continue
            if not self.explanation.graph.partitionable[self.labelling.classes[members[0]]]:
                continue
            within = self.shared[members].sum(axis=0)
            within[0] = 0
            if within.argmax() == g and within[g] > 0.1 * self.area[g]:
                return clicks + self.perform("merge", [piece, int(members[0])])
        return clicks

    def find_missed(self, piece):
        """Make objects that lie in stuff anew, of the pieces that are mostly theirs."""
        members = self.members(piece)
        within = self.shared[members].sum(axis=0)
        mostly = self.shared[members].argmax(axis=1)
        clicks = 0
        for g in np.flatnonzero(self.isthing & (within > 0.5 * self.area)):
            parts = members[mostly == g]
            parts = parts[np.argsort(-self.shared[parts, g], kind="stable")].tolist()
            for part in parts:
                made = self.perform("carve", [part], self.category[g])
                clicks += made
                if made and part != parts[0]:
                    clicks += self.perform("merge", [parts[0], part])
        return clicks


def follow(users, order, categories, things):
    """Let the users review (image, piece) pairs in an order.

    Returns:
        list of [segments looked at, clicks, PQ, PQ of things], whenever something changed.
    """
    records = [user.records() for user in users]

    def quality():
        everything = np.concatenate(records)
        return [panoptic_quality(everything, c) for c in (categories, things)]

    clicks, curve = 0, [[0, 0, *quality()]]
    for looked, (image, piece) in enumerate(order, 1):
        made = users[image].review(piece)
        if made:
            clicks += made
            records[image] = users[image].records()
            curve.append([looked, clicks, *quality()])
    return [*curve, [len(order), clicks, *curve[-1][2:]]]


def draw(curves, file):
    """Draw quality against segments looked at, and against clicks."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    total = curves["least certain first"][0][-1][0]
    looks = {"least certain first": ("#0072b2", "-"), "random order": ("#d55e00", "--")}
    for name, (color, style) in looks.items():
        for axis, column in ((axes[0], 0), (axes[1], 1)):
            for i, curve in enumerate(curves[name]):
                x, y = np.array(curve)[:, column], np.array(curve)[:, 2]
                x = 100 * x / total if column == 0 else x
                axis.step(x, y, style, where="post", color=color, lw=1.6 if i == 0 else 0.8,
                          label=name if i == 0 else None)  # fmt: skip
    axes[0].set(xlabel="segments looked at (%)", ylabel="PQ")
    axes[1].set(xlabel="clicks")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=110)


def get_parser():
    parser = model_parser(__doc__)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="with ground truth")
    parser.add_argument("--num", type=int, default=40, help="images, drawn by a seed (default: 40)")
    parser.add_argument("--random-orders", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--save", type=int, default=0, metavar="N", help="save N corrected images")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    return parser


def main(args):
    setup_logger(name="amwc_d2")
    cfg = setup_cfg(args)
    predictor = Predictor(cfg)
    users = []
    for sample in tqdm(pick_images(args.dataset, args.num), desc="images", unit="image"):
        ids = read_panoptic_png(sample["pan_seg_file_name"])
        made = explain(predictor, sample["file_name"], image_id=sample["image_id"])
        users.append(SimulatedUser(made, ids, sample["segments_info"]))
    segments = []  # (certainty, image, a piece of the segment)
    for image, user in enumerate(users):
        changes = easiest_changes(user.explanation.graph, user.labelling)
        _, first = np.unique(user.labelling.segments, return_index=True)
        segments += [(c.certainty, image, int(p)) for c, p in zip(changes, first)]
    categories = range(len(predictor.metadata.stuff_classes))
    things = sorted(predictor.model.thing_ids)
    orders = {"least certain first": [[s[1:] for s in sorted(segments)]], "random order": []}
    for seed in range(args.random_orders):
        shuffled = np.random.default_rng(seed).permutation(len(segments))
        orders["random order"].append([segments[i][1:] for i in shuffled])
    curves = {name: [] for name in orders}
    for name, of_name in orders.items():
        for order in tqdm(of_name, desc=name):
            at_work = copy.deepcopy(users)
            curves[name].append(follow(at_work, order, categories, things))
            if args.save and name == "least certain first":
                (args.output / "labels").mkdir(parents=True, exist_ok=True)
                for user in at_work[: args.save]:
                    user.explanation.save_labels(args.output / "labels", user.clicks)
    args.output.mkdir(parents=True, exist_ok=True)
    about = {"commit": commit(), "dataset": args.dataset, "images": len(users)}
    about |= {"segments": len(segments), "columns": ["looked at", "clicks", "PQ", "PQ_th"]}
    (args.output / "corrections.json").write_text(json.dumps({**about, **curves}))
    draw(curves, args.output / "corrections.png")
    for name, of_name in curves.items():
        logger.info("%s: segments looked at, clicks, PQ, PQ of things", name)
        for share in (0, 0.05, 0.1, 0.2, 0.5, 1):
            rows = [
                [row for row in curve if row[0] <= share * len(segments)][-1] for curve in of_name
            ]
            mean = np.mean([row[1:] for row in rows], axis=0)
            logger.info("%4d %%  %6.1f  %6.2f  %6.2f", 100 * share, *mean)
    return curves


if __name__ == "__main__":
    main(get_parser().parse_args())
