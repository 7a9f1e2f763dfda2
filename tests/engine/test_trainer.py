"""Training of both stages with tools/train_net.py, resuming, and the guards around it."""

import json
import logging
import subprocess
import sys

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
import train_net
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser
from detectron2.structures import BitMasks
from detectron2.utils.env import seed_all_rng
from helpers import random_weights

from amwc_d2.config import load_config, use_available_device
from amwc_d2.engine.trainer import Trainer, build_train_augmentations
from amwc_d2.evaluation import build_evaluator

TOY = "configs/Toy-PanopticSegmentation/amwc_R18{}.yaml"
QUICK = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0",
         "DATALOADER.NUM_WORKERS", "0", "MODEL.AMWC.GRADIENT.NUM_SAMPLES", "1",
         "MODEL.AMWC.CALIBRATION_IMAGES", "0"]  # fmt: skip


def run_train_net(repository, config, *options, flags=()):
    """Run tools/train_net.py in this process, on the CPU."""
    arguments = ["--config-file", str(repository / config), "--num-gpus", "0", *flags, *QUICK]
    train_net.main(default_argument_parser().parse_args([*arguments, *map(str, options)]))


def read_config(repository, config, *options):
    return load_config(repository / config, [*QUICK, *map(str, options)])


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def stage1(repository, toy_root, tmp_path_factory):
    """OUTPUT_DIR of a stage-1 run of two iterations, evaluated."""
    folder = tmp_path_factory.mktemp("stage1")
    run_train_net(repository, TOY.format(""), "OUTPUT_DIR", folder, "SOLVER.CHECKPOINT_PERIOD", 1)
    return folder


# ---------------------------------------------------------------------------- both stages
def test_two_stages_and_evaluation(repository, stage1, tmp_path):
    metrics = [json.loads(line) for line in (stage1 / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 2 and "panoptic_seg/PQ" in metrics[-1]
    assert np.isfinite([metrics[0]["loss_sem_seg"], metrics[0]["loss_affinity"]]).all()
    assert (stage1 / "inference/results.json").is_file()

    options = ("MODEL.WEIGHTS", stage1 / "model_final.pth", "OUTPUT_DIR", tmp_path)
    run_train_net(repository, TOY.format("_e2e"), *options)
    before, after = weights(stage1), weights(tmp_path)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"sem_seg_head", "ins_embed_head"}  # the rest is frozen

    # --eval-only reproduces the evaluation at the end of the training.
    trained = json.loads((tmp_path / "inference/results.json").read_text())
    options = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "again")
    run_train_net(repository, TOY.format("_e2e"), *options, flags=["--eval-only"])
    again = json.loads((tmp_path / "again/inference/results.json").read_text())
    for results in (trained, again):
        for key in ("solver_seconds", "solver_seconds_p95", "upsampling_seconds"):
            assert results["results"]["amwc"].pop(key) > 0
    assert trained == again


@pytest.mark.slow
def test_two_processes(repository, stage1, tmp_path):
    """The command with ``--num-gpus 2`` where there is no GPU: two CPU processes, one model."""
    if torch.cuda.is_available():
        pytest.skip("checks the fallback to the CPU, and CUDA is here")
    command = [sys.executable, "tools/train_net.py", "--config-file", TOY.format("_e2e")]
    command += ["--num-gpus", "2", "--dist-url", "auto", *QUICK, "OUTPUT_DIR", str(tmp_path)]
    command += ["MODEL.WEIGHTS", str(stage1 / "model_final.pth")]
    subprocess.run(command, cwd=repository, check=True, stdout=subprocess.DEVNULL)
    assert not torch.equal(
        weights(tmp_path)["sem_seg_head.predictor.weight"],
        weights(stage1)["sem_seg_head.predictor.weight"],
    )
    assert json.loads((tmp_path / "inference/results.json").read_text())["images"] == 6


def test_same_seed_same_weights(repository, stage1, tmp_path):
    run_train_net(repository, TOY.format(""), "OUTPUT_DIR", tmp_path)
    first, second = weights(stage1), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------- resuming
def test_resume(repository, stage1, tmp_path, caplog):
    """A run that stopped after its first iteration goes on with the second."""
    (tmp_path / "model_0000000.pth").write_bytes((stage1 / "model_0000000.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    cfg = read_config(repository, TOY.format(""), "OUTPUT_DIR", tmp_path)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 1
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 1
    trainer.train()
    assert trainer.iter == 2
    assert (tmp_path / "model_final.pth").is_file()


def test_resume_with_another_length_is_refused(repository, stage1):
    cfg = read_config(repository, TOY.format(""), "OUTPUT_DIR", stage1, "SOLVER.MAX_ITER", 9)
    with pytest.raises(ValueError, match=r"planned for 2 iterations.*SOLVER.MAX_ITER is 9"):
        Trainer(cfg).resume_or_load(resume=True)


def test_resume_of_another_stage_is_refused(repository, stage1):
    cfg = read_config(repository, TOY.format("_e2e"), "OUTPUT_DIR", stage1, "MODEL.WEIGHTS", "")
    with pytest.raises(ValueError, match=r"stage 'pretrain', but MODEL.AMWC.STAGE is 'end_to_end'"):
        Trainer(cfg).resume_or_load(resume=True)


# ---------------------------------------------------------------------------- guards
def test_stage_2_refuses_mixed_precision(repository, toy_root):
    cfg = read_config(repository, TOY.format("_e2e"), "SOLVER.AMP.ENABLED", True)
    with pytest.raises(ValueError, match=r"SOLVER.AMP.ENABLED False.*SOLVER.AMP.BFLOAT16 True"):
        Trainer(cfg)


def test_stage_2_does_not_overwrite_its_start(repository, stage1):
    options = ("MODEL.WEIGHTS", stage1 / "model_final.pth", "OUTPUT_DIR", stage1)
    with pytest.raises(ValueError, match="OUTPUT_DIR a new folder"):
        Trainer(read_config(repository, TOY.format("_e2e"), *options))


def test_device_falls_back_to_the_cpu(caplog):
    cfg = get_cfg()
    with caplog.at_level(logging.INFO, logger="amwc_d2"):
        use_available_device(cfg, num_gpus=0)
    assert cfg.MODEL.DEVICE == "cpu" and "--num-gpus 0" in caplog.text


@pytest.mark.parametrize(
    "optimizer, expected", [("ADAM", torch.optim.Adam), ("SGD", torch.optim.SGD)]
)
def test_optimizer_holds_what_is_trained(repository, optimizer, expected):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    cfg = read_config(repository, TOY.format(""), "SOLVER.OPTIMIZER", optimizer)
    built = Trainer.build_optimizer(cfg, model)
    assert isinstance(built, expected)
    held = {id(p) for group in built.param_groups for p in group["params"]}
    assert held == {id(p) for p in model[1].parameters()}
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    with pytest.raises(ValueError, match="'ADAMW'; expected 'ADAM' or 'SGD'"):
        Trainer.build_optimizer(cfg, model)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        Trainer.build_optimizer(cfg, model.requires_grad_(False))


def test_augmentations_follow_the_config(repository):
    plain = ["INPUT.BRIGHTNESS", 0.0, "INPUT.CONTRAST", 0.0, "INPUT.SATURATION", 0.0]
    cfg = read_config(repository, TOY.format(""), "INPUT.RANDOM_FLIP", "none", *plain)
    assert len(build_train_augmentations(cfg)) == 2
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert build_train_augmentations(cfg)[-1].vertical
    cfg.INPUT.RANDOM_FLIP = "both"
    assert [a.vertical for a in build_train_augmentations(cfg)[2:]] == [False, True]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.7
    with pytest.raises(ValueError, match=r"SINGLE_CATEGORY_MAX_AREA is 0\.7"):
        build_train_augmentations(cfg)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("RANDOM_FLIP", "Horizontal", r"RANDOM_FLIP must be one of .*'both'\), got 'Horizontal'"),
        ("BRIGHTNESS", 1.0, r"BRIGHTNESS must be in \[0, 1\), got 1\.0"),
        ("CONTRAST", -0.1, r"CONTRAST must be in \[0, 1\)"),
        ("SATURATION", 0.2, r"SATURATION is for colours, but INPUT\.FORMAT is 'L'"),
    ],
)
def test_augmentations_without_a_meaning_are_refused(repository, key, value, message):
    cfg = read_config(repository, TOY.format(""), f"INPUT.{key}", value, "INPUT.FORMAT", "L")
    with pytest.raises(ValueError, match=message):
        build_train_augmentations(cfg)


def test_every_symmetry_comes_and_colours_leave_the_ground_truth_alone(repository):
    square = ["INPUT.MIN_SIZE_TRAIN", (6,), "INPUT.CROP.SIZE", (6, 6)]
    turns = ["INPUT.RANDOM_FLIP", "both", "INPUT.QUARTER_TURNS", True]
    colours = ["INPUT.BRIGHTNESS", 0.3, "INPUT.CONTRAST", 0.3, "INPUT.SATURATION", 0.3]
    ids = np.arange(36, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=2)
    cfg = read_config(repository, TOY.format(""), *square, *turns, *colours)
    augmentations = T.AugmentationList(build_train_augmentations(cfg))
    seed_all_rng(0)
    seen, factors = set(), set()
    for _ in range(100):
        sample = T.AugInput(np.full((6, 6, 3), 100, np.uint8), sem_seg=ids)
        augmentations(sample)
        seen.add(sample.sem_seg[..., 0].tobytes())
        factors.add(sample.image[0, 0, 0] / 100)
    turned = [np.rot90(side[..., 0], k) for side in (ids, ids[::-1]) for k in range(4)]
    assert seen == {np.ascontiguousarray(x).tobytes() for x in turned}
    assert 0.5 < min(factors) < 0.9 and 1.1 < max(factors) < 1.7


# ---------------------------------------------------------------------------- built-in datasets
CITYSCAPES = "configs/Cityscapes-PanopticSegmentation/amwc_R50.yaml"
SMALL_R50 = ["MODEL.WEIGHTS", "", "INPUT.CROP.SIZE", "(128,256)", "INPUT.MIN_SIZE_TEST", "64"]


def test_eval_only_on_cityscapes(repository, fake_cityscapes, tmp_path, monkeypatch):
    """Random weights through all of Cityscapes' evaluators; no file is left lying about."""
    monkeypatch.chdir(tmp_path)
    random = random_weights(read_config(repository, CITYSCAPES, *SMALL_R50), tmp_path / "r.pth")
    options = (*SMALL_R50, "MODEL.WEIGHTS", random, "OUTPUT_DIR", tmp_path / "out")
    run_train_net(repository, CITYSCAPES, *options, flags=["--eval-only"])
    results = json.loads((tmp_path / "out/inference/results.json").read_text())["results"]
    assert set(results) == {"panoptic_seg", "amwc", "segm", "sem_seg"}
    assert set(results["segm"]) == {"AP", "AP50"} and "IoU" in results["sem_seg"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "r.pth"}


def test_perfect_cityscapes_prediction(repository, fake_cityscapes, tmp_path):
    """PQ, AP and mIoU of the ground truth itself are 100, by ours and by Cityscapes' evaluators."""
    from detectron2.data import DatasetCatalog
    from detectron2.structures import Instances
    from panopticapi.utils import rgb2id
    from PIL import Image

    name = "cityscapes_fine_panoptic_val"
    cfg = read_config(repository, CITYSCAPES, "OUTPUT_DIR", tmp_path)
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        ids = rgb2id(np.array(Image.open(record["pan_seg_file_name"]), dtype=np.int32))
        infos = [s for s in record["segments_info"] if not s["iscrowd"]]
        ids[~np.isin(ids, [s["id"] for s in infos])] = 0
        sem_seg = np.full((19, *ids.shape), -1.0)
        things = [s for s in infos if s["category_id"] >= 11]
        classes = np.array(Image.open(record["sem_seg_file_name"])).astype(np.int64)
        for k in range(19):
            sem_seg[k][classes == k] = 1
        masks = BitMasks(np.stack([ids == s["id"] for s in things]))
        output = {
            "panoptic_seg": (torch.from_numpy(ids), infos),
            "sem_seg": torch.from_numpy(sem_seg),
            "classes": torch.from_numpy(classes),
            "instances": Instances(
                ids.shape,
                pred_masks=masks.tensor,
                pred_classes=torch.tensor([s["category_id"] for s in things]),
                scores=torch.ones(len(things)),
            ),
        }
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 100
    assert results["amwc"]["mIoU"] == results["amwc"]["mIoU_argmax"] == 100
    assert results["sem_seg"]["IoU"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_test_loader_reads_no_labels(repository, fake_cityscapes):
    cfg = read_config(repository, CITYSCAPES, *SMALL_R50)
    for (record,) in Trainer.build_test_loader(cfg, "cityscapes_fine_panoptic_val"):
        assert record["image"].shape == (3, 64, 128)
        assert not {"sem_seg", "sem_seg_file_name"} & set(record)


def test_eval_only_in_coco_layout(repository, fake_coco, tmp_path):
    """Any result will do for random weights: the data, the 133 classes and the files must fit."""
    config = "configs/COCO-PanopticSegmentation/amwc_R50.yaml"
    random = random_weights(read_config(repository, config, *SMALL_R50), tmp_path / "r.pth")
    options = (*SMALL_R50, "MODEL.WEIGHTS", random, "OUTPUT_DIR", tmp_path)
    run_train_net(repository, config, *options, flags=["--eval-only"])
    results = json.loads((tmp_path / "inference/results.json").read_text())
    assert results["images"] == 4 and 0 <= results["results"]["panoptic_seg"]["PQ"] <= 100


def test_settings_of_biases(repository, toy_root):
    cfg = read_config(repository, TOY.format(""), "SOLVER.WEIGHT_DECAY", 0.01,
                      "SOLVER.WEIGHT_DECAY_BIAS", 0.002, "SOLVER.BIAS_LR_FACTOR", 2.0)  # fmt: skip
    model = Trainer.build_model(cfg)
    bias = model.sem_seg_head.predictor.bias
    groups = Trainer.build_optimizer(cfg, model).param_groups
    (group,) = (g for g in groups if any(p is bias for p in g["params"]))
    assert group["weight_decay"] == 0.002 and group["lr"] == 2 * cfg.SOLVER.BASE_LR


def test_all_datasets_are_checked_before_training(repository, toy_root, tmp_path):
    options = ["OUTPUT_DIR", tmp_path, "DATASETS.TEST"]
    with pytest.raises(KeyError, match=r"'toy_panoptic_vall' is not registered. Did you mean"):
        Trainer(read_config(repository, TOY.format(""), *options, "('toy_panoptic_vall',)"))
    with pytest.raises(ValueError, match="differ in their classes"):
        Trainer(read_config(repository, TOY.format(""), *options, "('coco_2017_val_panoptic',)"))
    cfg = read_config(repository, TOY.format(""), *options, "('coco_2017_val_panoptic',)")
    with pytest.raises(ValueError, match="differ in their classes"):  # --eval-only
        Trainer.test(cfg, None)


def test_rare_classes_come_more_often(register_scenes, repository):
    background = {"id": 1, "category_id": 1, "area": 64, "iscrowd": 0}
    cell = {"id": 2, "category_id": 2, "area": 8, "iscrowd": 0}
    scenes = []
    for i in range(6):  # a cell in one image of six
        ids = np.ones((8, 8), int)
        ids[0] = 2 if i == 3 else 1
        scenes.append((ids, [{**background, "area": 56}, cell] if i == 3 else [background]))
    categories = [{"id": k, "name": str(k), "isthing": k - 1} for k in (1, 2)]
    name = register_scenes(scenes, categories)
    options = "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"
    cfg = read_config(repository, TOY.format(""), *options, "DATALOADER.REPEAT_THRESHOLD", 0.7)
    cfg.DATASETS.TRAIN = (name,)
    batches = iter(Trainer.build_train_loader(cfg))
    shown = [x["file_name"] for _ in range(60) for x in next(batches)]
    assert 0.2 < np.mean(["0003" in file for file in shown]) < 0.4  # 2 of 7
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedCategoryTrainingSampler"
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN is .*; expected one of"):
        Trainer(cfg)
