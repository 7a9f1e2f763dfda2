"""The recipes for Cityscapes and COCO: every value against the paper or the authors' code."""

import re

import pytest
import torch
from helpers import load, toy_batch

from amwc_d2.engine.trainer import Trainer, lr_factors

FOLDERS = {
    "cityscapes": "Cityscapes-PanopticSegmentation",
    "coco": "COCO-PanopticSegmentation",
}
# The paper, section 4.2: Panoptic-DeepLab's network and learning-rate decay, Adam, x4 for edges
# with an end on a thing, x3 for small objects. The rest of this table is Panoptic-DeepLab's.
COMMON = {
    "MODEL.META_ARCHITECTURE": "AMWCPanoptic",
    "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530],
    "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res5"],
    "MODEL.RESNETS.RES4_DILATION": 1,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.SEM_SEG_HEAD.NAME": "PanopticDeepLabSemSegHead",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": True,
    "MODEL.INS_EMBED_HEAD.NAME": "AMWCAffinityHead",
    "INPUT.THING_EDGE_WEIGHT": 4.0,
    "MODEL.INS_EMBED_HEAD.LOSS_WEIGHT": 0.25,  # not in the paper; the authors' code
    "MODEL.INS_EMBED_HEAD.LOSS_TOP_K": 0.25,  # likewise
    "INPUT.SMALL_INSTANCE_WEIGHT": 3,
    "INPUT.SMALL_INSTANCE_AREA": 4096,
    "INPUT.IGNORE_CROWD_IN_SEMANTIC": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "SOLVER.OPTIMIZER": "ADAM",
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.AMP.ENABLED": False,
    "MODEL.AMWC.THING_AREA": 200,  # paper 4.1
    "SOLVER.AMP.BFLOAT16": False,
    "TEST.ORACLE": "",
    **{
        f"MODEL.{head}.{key}": value
        for head in ("SEM_SEG_HEAD", "INS_EMBED_HEAD")
        for key, value in {
            "IN_FEATURES": ["res2", "res3", "res5"],
            "PROJECT_FEATURES": ["res2", "res3"],
            "PROJECT_CHANNELS": [32, 64],
            "ASPP_CHANNELS": 256,
            "ASPP_DILATIONS": [6, 12, 18],
            "ASPP_DROPOUT": 0.1,
            "CONVS_DIM": 256,
            "HEAD_CHANNELS": 256,
            "COMMON_STRIDE": 4,
        }.items()
    },
}
DATASET = {  # paper 4.1, 4.2
    "cityscapes": {
        "DATASETS.TRAIN": ("cityscapes_fine_panoptic_train",),
        "DATASETS.TEST": ("cityscapes_fine_panoptic_val",),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
        "MODEL.SEM_SEG_HEAD.LOSS_TOP_K": 0.2,
        "MODEL.AMWC.STUFF_AREA": 2048,
        "INPUT.CROP.SIZE": [512, 1024],
        "INPUT.MAX_SIZE_TRAIN": 4096,
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TEST": 2048,
    },
    "coco": {
        "DATASETS.TRAIN": ("coco_2017_train_panoptic",),
        "DATASETS.TEST": ("coco_2017_val_panoptic",),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
        "MODEL.SEM_SEG_HEAD.LOSS_TOP_K": 1.0,
        "MODEL.AMWC.STUFF_AREA": 4096,
        "INPUT.CROP.SIZE": [640, 640],
        "INPUT.MAX_SIZE_TRAIN": 960,
        "INPUT.MIN_SIZE_TEST": 640,
        "INPUT.MAX_SIZE_TEST": 640,
    },
}
CITYSCAPES_SIZES = (512, 640, 704, 832, 896, 1024, 1152, 1216, 1344, 1408, 1536, 1664, 1728, 1856,
                    1920, 2048)  # fmt: skip
COCO_SIZES = tuple(640 * tenth // 10 for tenth in range(5, 16))
SYNC_BN, BN = (
    {f"MODEL.{part}.NORM": norm for part in ("RESNETS", "SEM_SEG_HEAD", "INS_EMBED_HEAD")}
    for norm in ("SyncBN", "BN")
)
STAGE_1 = {"MODEL.WEIGHTS": "detectron2://DeepLab/R-52.pkl", "MODEL.AMWC.STAGE": "pretrain"}
STAGE_2 = {  # paper 4.2, Table 2
    "MODEL.AMWC.STAGE": "end_to_end",
    "MODEL.AMWC.GRADIENT.NUM_SAMPLES": 5,
    "MODEL.AMWC.COST_DROPOUT": 0.1,
}
PAPER_STAGE_2 = {
    **STAGE_2,
    "MODEL.AMWC.GRADIENT.LAMBDA_RANGE": [1.0, 5000.0],
    "MODEL.AMWC.TRAINED_LAYERS": "classifiers",
    "MODEL.AMWC.LEARN_COST_SCALES": False,
    "SOLVER.LR_FACTORS": [],
}
AUTHORS_STAGE_2 = {
    **STAGE_2,
    "MODEL.AMWC.GRADIENT.ESTIMATOR": "literal",
    "MODEL.AMWC.SOLVER.METHOD": "greedy",
    "MODEL.AMWC.TRAINED_LAYERS": "heads",
    "MODEL.AMWC.LEARN_COST_SCALES": True,
    "MODEL.AMWC.LOSS.SURROGATE": "authors",
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.CHECKPOINT_PERIOD": 500,
    "TEST.IMS_PER_BATCH": 4,
}
COLUMNS = (  # of the rows below, whose last entry holds what else is particular
    "MODEL.INS_EMBED_HEAD.DISTANCES", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.BASE_LR",
    "INPUT.MIN_SIZE_TRAIN",
)  # fmt: skip
ROWS = {
    ("cityscapes", "amwc_R50"): (
        [1, 4, 16, 32, 64, 128], 12, 250000, 0.001, CITYSCAPES_SIZES,
        {**STAGE_1, **SYNC_BN},
    ),
    ("cityscapes", "amwc_R50_e2e"): (
        [1, 4, 16, 32, 64, 128], 24, 12000, 0.001, tuple(range(512, 2049, 32)),
        {**PAPER_STAGE_2, **SYNC_BN, "MODEL.AMWC.LOSS.PQ_WEIGHT": 10.0},
    ),
    ("coco", "amwc_R50"): (
        [1, 4, 16, 32, 64], 48, 240000, 0.001, COCO_SIZES,
        {**STAGE_1, **SYNC_BN},
    ),
    ("coco", "amwc_R50_e2e"): (
        [1, 4, 16, 32, 64], 24, 4000, 0.0001, tuple(range(448, 769, 64)),
        {**PAPER_STAGE_2, **SYNC_BN, "MODEL.AMWC.LOSS.PQ_WEIGHT": 100.0},
    ),
    ("cityscapes", "amwc_R50_authors"): (
        [1, 4, 16, 32, 64], 12, 50000, 0.0001, CITYSCAPES_SIZES,
        {**STAGE_1, **BN, "DATALOADER.NUM_WORKERS": 8},
    ),
    ("cityscapes", "amwc_R50_authors_e2e"): (
        [1, 4, 16, 32, 64], 24, 20000, 0.001, CITYSCAPES_SIZES,
        {**AUTHORS_STAGE_2, **BN, "MODEL.AMWC.GRADIENT.LAMBDA_RANGE": [1.0, 5000.0],
         "MODEL.AMWC.LOSS.PQ_WEIGHT": 10.0},
    ),
    ("coco", "amwc_R50_authors"): (
        [1, 4, 16, 32], 48, 50000, 0.0001, COCO_SIZES,
        {**STAGE_1, **SYNC_BN, "DATALOADER.NUM_WORKERS": 32, "TEST.IMS_PER_BATCH": 24},
    ),
    ("coco", "amwc_R50_authors_e2e"): (
        [1, 4, 16, 32], 24, 20000, 0.0001, (448, 512, 576, 640, 704, 768),
        {**AUTHORS_STAGE_2, **SYNC_BN, "MODEL.AMWC.GRADIENT.LAMBDA_RANGE": [1000.0, 5000.0],
         "MODEL.AMWC.LOSS.PQ_WEIGHT": 100.0, "TEST.EVAL_PERIOD": 1000,
         "DATALOADER.NUM_WORKERS": 4, "SEED": 17867965},
    ),
}  # fmt: skip
RECIPES = {name: {**dict(zip(COLUMNS, row)), **row[-1]} for name, row in ROWS.items()}
# Small crops, and for time's sake a narrow network; test_full_size runs the real one on "meta".
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
         "INPUT.CROP.SIZE", "(32, 64)", "INPUT.MIN_SIZE_TRAIN", "(27,)", "INPUT.MAX_SIZE_TRAIN", 61,
         "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0,
         "MODEL.AMWC.CALIBRATION_IMAGES", 0, "MODEL.AMWC.GRADIENT.NUM_SAMPLES", 1,
         "DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", "()",
         "SOLVER.CHECKPOINT_PERIOD", 100]  # fmt: skip


def recipe_file(dataset, recipe):
    return f"{FOLDERS[dataset]}/{recipe}.yaml"


@pytest.mark.parametrize(("dataset", "recipe"), RECIPES)
def test_values(dataset, recipe, repository):
    cfg = load(repository, recipe_file(dataset, recipe), keep_weights=True)
    expected = {**COMMON, **DATASET[dataset], **RECIPES[dataset, recipe]}
    expected["OUTPUT_DIR"] = f"output/{dataset}/{recipe}"
    if recipe.endswith("_e2e"):
        stage1 = recipe.removesuffix("_e2e")
        expected["MODEL.WEIGHTS"] = f"output/{dataset}/{stage1}/model_final.pth"
    for key, value in expected.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key


def test_learning_rates_of_the_authors(repository):
    """Each module's rate in stage 2, as a fraction of the base rate."""
    expected = {
        "costs.edge_scale": 1,
        "costs.class_offset": 1,
        "sem_seg_head.predictor.weight": 1 / 20,
        "sem_seg_head.head.depthwise.weight": 1 / 40,
        "ins_embed_head.reduce.1.weight": 1 / 60,
        "ins_embed_head.classifiers.3.conv1.weight": 1 / 40,
        "ins_embed_head.classifiers.3.conv2.weight": 1 / 40,
        "ins_embed_head.classifiers.3.predictor.bias": 1 / 20,
    }
    for dataset in FOLDERS:
        file = recipe_file(dataset, "amwc_R50_authors_e2e")
        cfg = load(repository, file, "MODEL.DEVICE", "meta")
        model = Trainer.build_model(cfg)
        factor = lr_factors(cfg.SOLVER.LR_FACTORS, model)
        assert {name: factor(name) for name in expected} == pytest.approx(expected, rel=1e-5)
        assert set(expected) <= {n for n, p in model.named_parameters() if p.requires_grad}
        optimizer = Trainer.build_optimizer(cfg, model)
        rates = {group["lr"] / cfg.SOLVER.BASE_LR for group in optimizer.param_groups}
        assert sorted(rates) == pytest.approx([1 / 60, 1 / 40, 1 / 20, 1], rel=1e-5)


def test_schedules_of_the_documentation(repository):
    """The table for 1 to 64 GPUs is what SOLVER.REFERENCE_WORLD_SIZE does."""
    text = (repository / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| (\d+) \|([\d. |]+)\|$", text, flags=re.MULTILINE)
    assert [int(gpus) for gpus, _ in rows] == [1, 2, 4, 8, 16, 32, 64]
    for dataset, reference, columns in (("cityscapes", 1, slice(3)), ("coco", 4, slice(3, 6))):
        options = ["SOLVER.REFERENCE_WORLD_SIZE", reference]
        cfg = load(repository, recipe_file(dataset, "amwc_R50"), *options)
        for gpus, cells in rows:
            solver = Trainer.auto_scale_workers(cfg, int(gpus)).SOLVER
            expected = [solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER]
            assert [float(cell) for cell in cells.split("|")][columns] == pytest.approx(expected)


def test_factor_for_nothing_is_named():
    with pytest.raises(ValueError, match=r"'decoder\.\*' matches no parameter.*like 'bias'"):
        lr_factors([["decoder.*", 0.1]], torch.nn.Linear(1, 1))


def test_no_code_in_configs(repository):
    files = sorted((repository / "configs").rglob("*.yaml"))
    assert len(files) > 8
    assert not [file.name for file in files if re.search(r"!!|eval:", file.read_text())]


@pytest.mark.parametrize(("dataset", "recipe"), RECIPES)
def test_full_size(dataset, recipe, repository):
    """A training batch of the recipe's own size through the whole network, on no device at all."""
    cfg = load(repository, recipe_file(dataset, recipe), "MODEL.DEVICE", "meta")
    model = Trainer.build_model(cfg).train()
    height, width = cfg.INPUT.CROP.SIZE
    batch = [
        {"image": torch.empty(3, height - 5, width, dtype=torch.uint8, device="meta")}
        for _ in range(2)
    ]
    node_costs, edge_costs = model.predict_costs(model.preprocess(batch).tensor)
    grid = height // 4, width // 4
    assert node_costs.device.type == edge_costs.device.type == "meta"
    assert node_costs.shape == (2, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, *grid)
    assert edge_costs.shape == (2, len(cfg.MODEL.INS_EMBED_HEAD.DISTANCES), 2, *grid)
    assert node_costs.dtype == edge_costs.dtype == torch.float32


@pytest.mark.parametrize(("dataset", "recipe"), RECIPES)
def test_recipe_trains_and_predicts(dataset, recipe, request, repository, tmp_path):
    """Two iterations of its stage on images of odd sizes, then one more such image."""
    request.getfixturevalue(f"fake_{dataset}")
    options = [*SMALL, "OUTPUT_DIR", str(tmp_path)]
    trainer = Trainer(load(repository, recipe_file(dataset, recipe), *options))
    trainer.checkpointer.save_to_disk = False
    trainer.train()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)

    (image,) = toy_batch([(31, 45)])
    with torch.no_grad():
        (result,) = trainer.model.eval()([{**image, "height": 33, "width": 47}])
    classes = trainer.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert result["panoptic_seg"][0].shape == result["classes"].shape == (33, 47)
    assert result["sem_seg"].shape == (classes, 33, 47)
    assert result["amwc"]["segments"].shape == (8, 12)
