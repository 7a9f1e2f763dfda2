"""The evaluator against the official tools, on predictions made up from the ground truth."""

import copy
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.structures import BitMasks, Instances
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from amwc_d2 import add_amwc_config
from amwc_d2.data.datasets import register_panoptic_dataset
from amwc_d2.engine.launch import launch
from amwc_d2.evaluation import (
    AMWCPanopticEvaluator,
    build_evaluator,
    grid_ceiling,
    segment_metrics,
)
from amwc_d2.evaluation.cityscapes import _UPSTREAM_NAME, alias_cityscapesscripts

CATEGORIES = [
    {"id": 7, "name": "road", "isthing": 0, "color": [128, 64, 128]},
    {"id": 24, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 11, "name": "building", "isthing": 0, "color": [70, 70, 70]},
    {"id": 26, "name": "car", "isthing": 1, "color": [0, 0, 142]},
]
THINGS, STUFF = (24, 26), (7, 11)
CLASS_OF = {category["id"]: k for k, category in enumerate(CATEGORIES)}
SIZE = (40, 56)


def random_scene(rng, categories=CATEGORIES, crowds=True):
    """Ids int32 (H, W) of overlapping boxes, some void and crowds, with their segments_info."""
    ids = np.zeros(SIZE, np.int32)
    stuff = [c["id"] for c in categories if not c["isthing"]]
    things = [c["id"] for c in categories if c["isthing"]]
    category_of, next_id = {}, int(rng.integers(1, 1000))
    for category in stuff[: rng.integers(0, len(stuff) + 1)]:
        ids[:, slice(int(rng.integers(0, SIZE[1] - 8)), None)] = next_id
        category_of[next_id] = category
        next_id += int(rng.integers(1, 300))
    for _ in range(rng.integers(0, 9)):
        y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
        h, w = rng.integers(3, 20, 2)
        ids[y : y + h, x : x + w] = next_id
        category_of[next_id] = int(rng.choice(things))
        next_id += int(rng.integers(1, 300))
    ids[:, : rng.integers(0, 8)] = 0
    present = [i for i in category_of if (ids == i).any()]
    is_crowd = {i: int(crowds and category_of[i] in things and rng.random() < 0.2) for i in present}
    return ids, [
        {
            "id": i,
            "category_id": category_of[i],
            "iscrowd": is_crowd[i],
            "area": int((ids == i).sum()),
        }
        for i in present
    ]


def disturbed(rng, ids, segments_info):
    """A prediction that is partly right: shifted, relabelled, split, merged, with void."""
    out, category_of, next_id = np.zeros_like(ids), {}, 1
    shifted = np.roll(ids, tuple(rng.integers(-3, 4, 2)), axis=(0, 1))
    for segment in segments_info:
        mask = shifted == segment["id"]
        action = rng.random()
        if action < 0.15 or not mask.any():
            continue
        category = segment["category_id"]
        if action < 0.3:
            category = int(
                rng.choice([c for c in CLASS_OF if (c in THINGS) == (category in THINGS)])
            )
        out[mask] = next_id
        category_of[next_id] = category
        next_id += 1
        if action > 0.85 and category in THINGS:
            half = mask & (np.arange(SIZE[0])[:, None] > np.nonzero(mask)[0].mean())
            out[half] = next_id
            category_of[next_id] = category
            next_id += 1
    present = np.unique(out[out > 0]).tolist()
    return out, [{"id": i, "category_id": category_of[i]} for i in present]


@pytest.fixture
def make_dataset(register_scenes):
    """A function that writes scenes [(ids, segments_info)] and registers them; returns the name."""
    return lambda scenes, categories=CATEGORIES: register_scenes(scenes, categories)


def as_output(ids, segments_info, categories=CATEGORIES, scores=None):
    """What a model would return, built from a segmentation with dataset categories."""
    things = {c["id"] for c in categories if c["isthing"]}
    class_of = {c["id"]: k for k, c in enumerate(categories)}
    classes = np.full(ids.shape, -1)
    for segment in segments_info:
        classes[ids == segment["id"]] = class_of[segment["category_id"]]
    one_hot = (np.arange(len(categories))[:, None, None] == classes).astype(np.float32)
    instances = [s for s in segments_info if s["category_id"] in things]
    masks = [torch.from_numpy(ids == s["id"]) for s in instances]
    infos = [
        {
            "id": s["id"],
            "category_id": class_of[s["category_id"]],
            "isthing": s["category_id"] in things,
            "area": int((ids == s["id"]).sum()),
            "score": 1.0,
        }
        for s in segments_info
    ]
    return {
        "panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), infos),
        "classes": torch.from_numpy(classes),
        "sem_seg": torch.from_numpy(one_hot),
        "instances": Instances(
            ids.shape,
            pred_masks=torch.stack(masks) if masks else torch.zeros((0, *ids.shape), dtype=bool),
            pred_classes=torch.tensor([class_of[s["category_id"]] for s in instances]),
            scores=torch.ones(len(instances)) if scores is None else torch.as_tensor(scores),
        ),
        "amwc": {
            "solver_seconds": 0.5,
            "objective": -3.0,
            "num_segments": len(segments_info),
            "segments": torch.from_numpy(ids),
        },
    }


def without_crowds(ids, segments_info):
    """The ground truth as a prediction: crowd regions become void."""
    crowds = [s["id"] for s in segments_info if s["iscrowd"]]
    kept = [s for s in segments_info if not s["iscrowd"]]
    return np.where(np.isin(ids, crowds), 0, ids), kept


def evaluate(name, predictions, order=None, output_dir=None, **options):
    """Run the evaluator on predictions [(ids, segments_info)] in the dataset's categories."""
    evaluator = AMWCPanopticEvaluator(name, output_dir, **options)
    evaluator.reset()
    for i in range(len(predictions)) if order is None else order:
        categories = [dict(c) for c in evaluator._categories.values()]
        evaluator.process([{"image_id": i}], [as_output(*predictions[i], categories)])
    return evaluator.evaluate()


def scenes_and_predictions(count, seed=0):
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return scenes, [disturbed(rng, *scene) for scene in scenes]


# ---------------------------------------------------------------------------- panoptic quality
def test_perfect_prediction_scores_100_and_is_left_alone(make_dataset, tmp_path):
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng, crowds=False) for _ in range(6)]
    name = make_dataset(scenes)
    evaluator = AMWCPanopticEvaluator(name, tmp_path / "out")
    evaluator.reset()
    for i, scene in enumerate(scenes):
        output = as_output(*scene)
        before = copy.deepcopy(output)
        evaluator.process([{"image_id": i}], [output])
        assert output["panoptic_seg"][1] == before["panoptic_seg"][1]
        assert torch.equal(output["panoptic_seg"][0], before["panoptic_seg"][0])
    results = evaluator.evaluate()
    panoptic, amwc = results["panoptic_seg"], results["amwc"]
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ-car"):
        assert panoptic[key] == 100, key
    for key in ("PQ_boundary", "PQ_th_small", "PQ_th_medium", "PQ_th_large", "mIoU", "mIoU_argmax"):
        assert amwc[key] == 100, key
    assert amwc["splits"] == amwc["merges"] == 0
    assert amwc["solver_seconds"] == 0.5 and amwc["objective"] == -3.0
    assert results["segm"]["AP"] == pytest.approx(100) and results["segm"][
        "AP_all"
    ] == pytest.approx(100)


def test_equals_panopticapi_command(make_dataset, tmp_path):
    scenes, predictions = scenes_and_predictions(30)
    name = make_dataset(scenes)
    results = evaluate(name, predictions, output_dir=tmp_path / "out")["panoptic_seg"]
    meta = MetadataCatalog.get(name)
    script = (
        "import json, sys; from panopticapi.evaluation import pq_compute\n"
        "if __name__ == '__main__':\n"
        "    json.dump(pq_compute(*sys.argv[1:4]), open(sys.argv[4], 'w'), default=float)"
    )  # the prediction's folder is found by itself, beside panoptic.json
    command = [sys.executable, "-c", script, meta.panoptic_json, tmp_path / "out/panoptic.json"]
    subprocess.run([*command, meta.panoptic_root, tmp_path / "pq.json"], check=True)
    official = json.loads((tmp_path / "pq.json").read_text())
    for ours, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for key in ("PQ", "SQ", "RQ"):
            assert results[key + ours] == pytest.approx(
                100 * official[group][key.lower()], abs=1e-9
            )
    for category in CATEGORIES:
        value = 100 * official["per_class"][str(category["id"])]["pq"]
        assert results[f"PQ-{category['name']}"] == pytest.approx(value, abs=1e-9)
    assert 5 < results["PQ"] < 95  # the predictions are neither right nor wrong


def test_equals_detectron2(make_dataset):
    scenes, predictions = scenes_and_predictions(8, seed=3)
    name = make_dataset(scenes)
    theirs = COCOPanopticEvaluator(name)
    theirs.reset()
    for i, prediction in enumerate(predictions):
        theirs.process([{"image_id": i, "file_name": f"{i:04d}.png"}], [as_output(*prediction)])
    ours = evaluate(name, predictions)["panoptic_seg"]
    for key, value in theirs.evaluate()["panoptic_seg"].items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key


@pytest.mark.parametrize("seed", range(5))
def test_own_matching_is_the_official_one(make_dataset, tmp_path, seed):
    """Sizes and boundaries rest on our matching, which must be panopticapi's, image by image."""
    scenes, predictions = scenes_and_predictions(20, seed=100 + seed)
    name = make_dataset(scenes)
    root = MetadataCatalog.get(name).panoptic_root
    categories = {category["id"]: category for category in CATEGORIES}
    for i, ((true, true_info), (pred, pred_info)) in enumerate(zip(scenes, predictions)):
        Image.fromarray(id2rgb(pred)).save(tmp_path / f"{i:04d}.png")
        true_annotation, pred_annotation = (
            {"image_id": i, "file_name": f"{i:04d}.png", "segments_info": copy.deepcopy(info)}
            for info in (true_info, pred_info)
        )
        pair = [(true_annotation, pred_annotation)]
        official = pq_compute_single_core(0, pair, root, tmp_path, categories)
        records = segment_metrics.match_segments(
            segment_metrics.index_map(true, true_info, ""),
            segment_metrics.index_map(pred, pred_info, ""),
            true_info,
            pred_info,
        )
        for category in categories:
            of_category = records[records["category"] == category]
            counts = np.bincount(of_category["outcome"], minlength=3).tolist()
            stat = official[category]
            assert counts == [stat.tp, stat.fp, stat.fn]
            assert of_category["iou"].sum() == pytest.approx(stat.iou, abs=1e-12)


def many_squares(count):
    """Ids and segments_info of ``count`` small cars on a road."""
    columns = 42
    ids = np.full((10 * -(-count // columns), 10 * columns), 1, np.int32)
    for i in range(count):
        y, x = divmod(i, columns)
        ids[y * 10 + 1 : y * 10 + 9, x * 10 + 1 : x * 10 + 9] = 2 + i
    infos = [{"id": 2 + i, "category_id": 26, "iscrowd": 0, "area": 64} for i in range(count)]
    return ids, [{"id": 1, "category_id": 7, "iscrowd": 0, "area": int((ids == 1).sum())}, *infos]


def test_1500_instances(make_dataset, tmp_path):
    """Neither the PNGs nor the evaluator has a limit on the number of segments."""
    ids, infos = many_squares(1500)
    name = make_dataset([(ids, infos)])
    results = evaluate(name, [(ids, infos)], output_dir=tmp_path / "out", instance_ap=False)
    assert results["panoptic_seg"]["PQ"] == 100
    written = np.asarray(Image.open(tmp_path / "out/panoptic/0000.png"), dtype=np.int32)
    assert np.array_equal(rgb2id(written), ids)
    (annotation,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert len(annotation["segments_info"]) == 1501


def test_ap_of_more_than_100_instances(make_dataset):
    """COCO's AP looks at 100 detections only, ``AP_all`` at all of them."""
    scene = many_squares(250)
    results = evaluate(make_dataset([scene]), [scene])
    assert results["segm"]["AP"] == pytest.approx(40, abs=1)
    assert results["segm"]["AP_all"] == pytest.approx(100)


def test_without_stuff_or_things(make_dataset, tmp_path):
    """panopticapi divides by zero here."""
    for keep, absent, present in (("things", "_st", "_th"), ("stuff", "_th", "_st")):
        categories = [c for c in CATEGORIES if bool(c["isthing"]) == (keep == "things")]
        ids = np.repeat(np.arange(3, dtype=np.int32), 100).reshape(15, 20)
        infos = [
            {"id": i, "category_id": categories[i - 1]["id"], "iscrowd": 0, "area": 100}
            for i in (1, 2)
        ]
        name = make_dataset([(ids, infos)], categories)
        results = evaluate(name, [(ids, infos)], output_dir=tmp_path / keep)
        assert results["panoptic_seg"]["PQ"] == 100
        assert results["panoptic_seg"][f"PQ{present}"] == 100
        assert np.isnan(results["panoptic_seg"][f"PQ{absent}"])
        written = json.loads((tmp_path / keep / "results.json").read_text())
        assert written["results"]["panoptic_seg"][f"PQ{absent}"] is None


def test_independent_of_order_and_batching(make_dataset, tmp_path):
    scenes, predictions = scenes_and_predictions(7, seed=5)
    name = make_dataset(scenes)
    once = evaluate(name, predictions, output_dir=tmp_path / "a")
    again = evaluate(name, predictions, order=[4, 0, 6, 2, 1, 5, 3], output_dir=tmp_path / "b")
    np.testing.assert_equal(once, again)
    for file in ("panoptic.json", "results.json", "per_class.csv", "per_image.csv", "segments.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def _evaluate_on_this_rank(folder, seed, count):
    """Each of two processes predicts every second image; the first writes the results."""
    from detectron2.utils import comm

    register_panoptic_dataset("two_ranks", folder / "images", folder / "png", folder / "truth.json")
    _, predictions = scenes_and_predictions(count, seed)
    order = range(comm.get_rank(), count, comm.get_world_size())
    results = evaluate("two_ranks", predictions, order=order, output_dir=folder / "two")
    assert (results is None) == (comm.get_rank() > 0)


@pytest.mark.slow
def test_two_ranks_equal_one(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # two processes with gloo, whatever is here
    scenes, predictions = scenes_and_predictions(9, seed=6)
    name = make_dataset(scenes)
    folder = Path(MetadataCatalog.get(name).panoptic_json).parent
    launch(_evaluate_on_this_rank, 2, dist_url="auto", args=(folder, 6, 9))
    evaluate(name, predictions, output_dir=folder / "one")
    one, two = (json.loads((folder / run / "results.json").read_text()) for run in ("one", "two"))
    assert one["results"] == two["results"] and one["per_class"] == two["per_class"]


# ---------------------------------------------------------------------------- further measures
def test_boundary_quality_by_erosion(make_dataset):
    """The boundary of every single mask, as Boundary IoU defines it, and its IoU, pair by pair."""
    scenes, predictions = scenes_and_predictions(60, seed=7)
    ratio, seen = 0.03, 0
    dilation = round(ratio * np.hypot(*SIZE))

    def edge(mask):
        square = np.ones((3, 3), bool)
        return mask & ~ndimage.binary_erosion(mask, square, iterations=dilation, border_value=0)

    for (true, true_info), (pred, pred_info) in zip(scenes, predictions):
        records = segment_metrics.match_segments(
            segment_metrics.index_map(true, true_info, ""),
            segment_metrics.index_map(pred, pred_info, ""),
            true_info,
            pred_info,
            ratio,
        )
        expected = []
        for t in true_info:
            for p in pred_info:
                if t["category_id"] != p["category_id"] or t["iscrowd"]:
                    continue
                ious = []
                for shape in (lambda mask: mask, edge):
                    a, b = shape(true == t["id"]), shape(pred == p["id"])
                    union = (a | b).sum() - (b & (true == 0)).sum()
                    ious.append((a & b).sum() / union)
                if min(ious) > 0.5:
                    expected.append(min(ious))
        found = records["iou"][records["outcome"] == segment_metrics.TRUE_POSITIVE]
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=0, atol=1e-12)
        seen += len(expected)
    assert seen > 15


def test_quality_by_size_and_limits(make_dataset):
    """A missed small thing lowers the quality of small things alone."""
    ids = np.zeros((30, 60), np.int32)
    ids[:2, :2], ids[5:10, :10], ids[10:, :] = 1, 2, 3
    infos = [
        {"id": i, "category_id": 26, "iscrowd": 0, "area": int((ids == i).sum())} for i in (1, 2, 3)
    ]
    name = make_dataset([(ids, infos)])
    prediction = np.where(ids == 1, 0, ids), infos[1:]
    amwc = evaluate(name, [prediction], size_limits=(10, 100))["amwc"]
    sizes = [amwc[f"PQ_th_{size}"] for size in ("small", "medium", "large")]
    assert sizes == [0, 100, 100]
    amwc = evaluate(name, [prediction], size_limits=(5000, 6000))["amwc"]
    assert amwc["PQ_th_small"] == 80 and np.isnan(amwc["PQ_th_large"])


def test_splits_and_merges(make_dataset):
    ids = np.repeat(np.array([[1, 2, 3, 4]], np.int32), 10, axis=0).repeat(10, axis=1)
    infos = [{"id": i, "category_id": 26, "iscrowd": 0, "area": 100} for i in (1, 2, 3, 4)]
    name = make_dataset([(ids, infos)])
    pred = np.where(ids == 2, 1, ids)  # 1 and 2 in one
    pred[:5, 30:] = 9  # 4 in two
    infos = [{"id": i, "category_id": 26} for i in (1, 3, 4, 9)]
    amwc = evaluate(name, [(pred, infos)])["amwc"]
    assert (amwc["splits"], amwc["merges"]) == (1, 1)


def test_mean_iou_by_hand():
    true = np.array([0, 0, 0, 0, 1, 1, -1, -1])
    pred = np.array([0, 0, 1, 9, 1, 1, 1, 2])
    confusion = segment_metrics.class_confusion(true, pred, 3)
    assert confusion.tolist() == [[2, 1, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(segment_metrics.class_iou(confusion), [50, 200 / 3, np.nan])


def test_ap_equals_pycocotools(make_dataset, tmp_path, capsys):
    """The same masks and scores through COCO's files and command."""
    rng = np.random.default_rng(11)
    scenes = [random_scene(rng) for _ in range(12)]
    name = make_dataset(scenes)
    predictions = [disturbed(rng, *scene) for scene in scenes]
    evaluator = AMWCPanopticEvaluator(name)
    evaluator.reset()
    detections = []
    for i, (ids, infos) in enumerate(predictions):
        things = [info for info in infos if info["category_id"] in THINGS]
        scores = rng.random(len(things)).astype(np.float32)
        evaluator.process([{"image_id": i}], [as_output(ids, infos, scores=scores)])
        for info, score in zip(things, scores):
            code = mask_util.encode(np.asfortranarray(ids == info["id"], dtype=np.uint8))
            code["counts"] = code["counts"].decode()
            detections.append(
                {"image_id": i, "category_id": info["category_id"], "segmentation": code,
                 "score": float(score)}
            )  # fmt: skip
    ours = evaluator.evaluate()["segm"]

    annotations = []
    for i, (ids, infos) in enumerate(scenes):
        for info in infos:
            if info["category_id"] in THINGS:
                code = mask_util.encode(np.asfortranarray(ids == info["id"], dtype=np.uint8))
                code["counts"] = code["counts"].decode()
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "segmentation": code,
                     "category_id": info["category_id"], "area": info["area"],
                     "iscrowd": info["iscrowd"], "bbox": [0, 0, 1, 1]}
                )  # fmt: skip
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(scenes))],
        "categories": [c for c in CATEGORIES if c["isthing"]],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    coco = COCO(tmp_path / "truth.json")
    official = COCOeval(coco, coco.loadRes(str(tmp_path / "detections.json")), "segm")
    official.evaluate()
    official.accumulate()
    official.summarize()
    for key, value in zip(("AP", "AP50", "AP75", "APs"), official.stats):
        assert ours[key] == pytest.approx(100 * value, abs=1e-9)
    assert 5 < ours["AP"] < 95
    assert np.isnan(ours["APl"])  # no thing in a 40 x 56 image is large: COCO says -1


def test_ap_against_instance_annotations(make_dataset, tmp_path):
    """COCO's evaluator is used where the metadata name an instance file; same masks, same AP."""
    rng = np.random.default_rng(14)
    # COCOEvaluator wants the things to come first, as they do in COCO.
    categories = sorted(CATEGORIES, key=lambda category: -category["isthing"])
    scenes = [random_scene(rng, crowds=False) for _ in range(20)]
    predictions = [disturbed(rng, *scene) for scene in scenes]
    name = make_dataset(scenes, categories)
    annotations = []
    for i, (ids, infos) in enumerate(scenes):
        for info in infos:
            if info["category_id"] in THINGS:
                code = mask_util.encode(np.asfortranarray(ids == info["id"], dtype=np.uint8))
                box = mask_util.toBbox(code).tolist()
                code["counts"] = code["counts"].decode()
                annotations.append(
                    {**info, "id": len(annotations) + 1, "image_id": i, "segmentation": code,
                     "bbox": box}
                )  # fmt: skip
    truth = {
        "images": [
            {"id": i, "file_name": f"{i:04d}.png", "height": SIZE[0], "width": SIZE[1]}
            for i in range(len(scenes))
        ],
        "categories": [c for c in categories if c["isthing"]],
        "annotations": annotations,
    }
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    meta = MetadataCatalog.get(name)
    twin = f"{name}_instances_panoptic"
    register_panoptic_dataset(twin, meta.image_root, meta.panoptic_root, meta.panoptic_json)
    MetadataCatalog[twin].__dict__["json_file"] = str(tmp_path / "instances.json")
    register_coco_instances(f"{name}_instances", {}, tmp_path / "instances.json", meta.image_root)
    numbers = meta.thing_dataset_id_to_contiguous_id
    MetadataCatalog.get(f"{name}_instances").set(
        thing_dataset_id_to_contiguous_id=numbers, thing_classes=[c["name"] for c in categories[:2]]
    )
    cfg = get_cfg()
    add_amwc_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    try:
        evaluator = build_evaluator(cfg, twin)
        evaluator.reset()
        for i, prediction in enumerate(predictions):
            output = as_output(*prediction, categories)
            masks = output["instances"].pred_masks
            output["instances"].pred_boxes = BitMasks(masks).get_bounding_boxes()
            evaluator.process([{"image_id": i}], [output])
        theirs = evaluator.evaluate()["segm"]
    finally:
        for dataset in (twin, f"{name}_instances"):
            DatasetCatalog.remove(dataset)
            MetadataCatalog.remove(dataset)
    ours = evaluate(name, predictions)["segm"]
    assert "AP_all" not in theirs and 2 < ours["AP"] < 95
    for key in ("AP", "AP50", "AP75", "APs"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-9), key


# ---------------------------------------------------------------------------- files and resources
def test_files(make_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes, predictions = scenes_and_predictions(4, seed=8)
    name = make_dataset(scenes)
    before = set(os.listdir())
    results = evaluate(name, predictions, output_dir=tmp_path / "out")
    assert set(os.listdir()) == before | {"out"}
    assert sorted(os.listdir("out")) == [
        "panoptic", "panoptic.json", "per_class.csv", "per_image.csv", "results.json",
        "segments.csv",
    ]  # fmt: skip
    rows = (tmp_path / "out/per_image.csv").read_text().splitlines()
    assert len(rows) == 5 and "solver_seconds" in rows[0]
    rows = (tmp_path / "out/per_class.csv").read_text().splitlines()
    assert rows[0] == "class,isthing,PQ,SQ,RQ,TP,FP,FN,IoU,IoU_argmax"
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["results"]["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ"]
    segments = (tmp_path / "out/segments.csv").read_text().splitlines()[1:]
    matched = sum(",TP," in line for line in segments)
    per_class = [line.split(",") for line in rows[1:]]
    assert matched == sum(int(row[5]) for row in per_class)


def test_table_is_logged(make_dataset, caplog):
    scenes, predictions = scenes_and_predictions(3, seed=9)
    with caplog.at_level(logging.INFO, logger="amwc_d2"):
        evaluate(make_dataset(scenes), predictions)
    text = caplog.text
    for word in ("things", "stuff", "building", "PQ_boundary", "solver_seconds"):
        assert word in text


def test_nothing_is_left_running(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scenes, predictions = scenes_and_predictions(3, seed=10)
    name = make_dataset(scenes)
    folders, threads = set(os.listdir(tmp_path)), set(threading.enumerate())
    for _ in range(3):
        evaluate(name, predictions)
    assert set(threading.enumerate()) == threads
    assert set(os.listdir(tmp_path)) == folders


# ---------------------------------------------------------------------------- wrong input
def test_wrong_input_is_named(make_dataset):
    scenes, predictions = scenes_and_predictions(2, seed=12)
    name = make_dataset(scenes)
    with pytest.raises(ValueError, match=r"1 of 2 images of .* have no prediction"):
        evaluate(name, predictions, order=[0])
    with pytest.raises(ValueError, match="image_id 17"):
        evaluator = AMWCPanopticEvaluator(name)
        evaluator.reset()
        evaluator.process([{"image_id": 17}], [as_output(*predictions[0])])
    with pytest.raises(ValueError, match="label_divisor"):
        output = as_output(*predictions[0])
        output["panoptic_seg"] = (output["panoptic_seg"][0], None)
        evaluator.process([{"image_id": 0}], [output])
    small = predictions[0][0][:-1], predictions[0][1]
    with pytest.raises(ValueError, match=r"\(39, 56\).*\(40, 56\)"):
        evaluate(name, [small, predictions[1]])
    ids, infos = scenes[0]
    with pytest.raises(ValueError, match="does not list"):
        evaluate(name, [(ids, infos[1:]), predictions[1]])
    with pytest.raises(ValueError, match="no pixel has"):
        evaluate(name, [(np.where(ids == infos[0]["id"], 0, ids), infos), predictions[1]])


def test_build_evaluator_refuses_other_datasets():
    cfg = get_cfg()
    add_amwc_config(cfg)
    with pytest.raises(ValueError, match=r"evaluator_type 'coco'.*panoptic"):
        build_evaluator(cfg, "coco_2017_val")


# ---------------------------------------------------------------------------- real data
def test_grid_ceiling(make_dataset):
    rng = np.random.default_rng(13)
    scenes = [random_scene(rng) for _ in range(8)]
    name = make_dataset(scenes)
    assert grid_ceiling(name, stride=1)["panoptic_seg"]["PQ"] == 100
    coarse, fine = (grid_ceiling(name, stride=s)["panoptic_seg"]["PQ"] for s in (4, 2))
    nearest = grid_ceiling(name, upsampling="nearest")["panoptic_seg"]["PQ"]
    assert 30 < nearest < coarse < fine < 100
    # Twice the resolution at inference halves the stride.
    twice = grid_ceiling(name, stride=4, min_size=2 * SIZE[0], max_size=10**4)["panoptic_seg"]["PQ"]
    assert grid_ceiling(name, stride=4, factor=2, num_images=10**3)["panoptic_seg"]["PQ"] == twice
    assert grid_ceiling(name, stride=1, thing_area=10**6)["panoptic_seg"]["PQ_th"] == 0
    assert twice == fine


def test_cityscapesscripts_under_the_upstream_name():
    alias_cityscapesscripts()
    alias_cityscapesscripts()  # once is enough, twice does no harm
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as expected

    script = f"import {_UPSTREAM_NAME}.evaluation.evalInstanceLevelSemanticLabeling as found"
    namespace = {}
    exec(script, namespace)
    assert namespace["found"] is expected
    exec(f"from {_UPSTREAM_NAME}.helpers.labels import name2label", namespace)
    assert namespace["name2label"]["car"].id == 26
