"""The meta-architecture: sizes, freezing, both stages' losses, inference, devices."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import load, toy_batch

from amwc_d2 import config
from amwc_d2.engine.trainer import precision
from amwc_d2.refinement import upsample_labels
from amwc_d2.solver_cython import refine_labels, solve_amwc


@pytest.fixture
def toy_cfg(repository, toy_root):
    return load(repository, "Toy-PanopticSegmentation/amwc_R18.yaml")


def test_result_lists_exactly_the_segments_of_its_map(toy_cfg):
    toy_cfg.MODEL.AMWC.THING_AREA = toy_cfg.MODEL.AMWC.STUFF_AREA = 20
    model = build_model(toy_cfg).eval()
    with torch.no_grad():
        (result,) = model(toy_batch([(128, 256)])[:1])
    panoptic, info = result["panoptic_seg"]
    assert panoptic.dtype == torch.int32
    assert sorted(s["id"] for s in info) == sorted(set(panoptic.unique().tolist()) - {0})
    for segment in info:
        mask = panoptic == segment["id"]
        assert segment["area"] == mask.sum() >= 20
        assert (result["classes"][mask] == segment["category_id"]).all()
        assert 0 < segment["score"] < 1
    things = [s for s in info if s["isthing"]]
    instances = result["instances"]
    assert len(instances) == len(things) > 0
    assert (instances.pred_masks.sum((1, 2)) == torch.tensor([s["area"] for s in things])).all()


def test_one_image_gives_the_same_alone_and_in_a_batch(toy_cfg):
    """Padding is void: it takes no part in the cut and counts in no area."""
    model = build_model(toy_cfg).eval()
    batch = toy_batch([(101, 203), (128, 256)])
    with torch.no_grad():
        alone, together = model(batch[:1])[0], model(batch)[0]
    same = (alone["classes"] == together["classes"]).float().mean()
    assert same > 0.999  # convolutions of another batch size may round differently
    assert alone["panoptic_seg"][0].shape == (101, 203)


@pytest.mark.parametrize("upsampling", ["refine", "nearest"])
def test_labels_of_pixels_for_odd_sizes(upsampling, toy_cfg):
    """Odd and tiny images in one batch, outputs that are no multiple of the grid."""
    toy_cfg.MODEL.AMWC.UPSAMPLING = upsampling
    model = build_model(toy_cfg).eval()
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight, 0, 1)
    model.thing_area = model.stuff_area = 0
    batch = toy_batch([(37, 53), (1, 9), (64, 64)])
    outputs = [(37, 53), (1, 9), (75, 41)]
    batch = [{**x, "height": h, "width": w} for x, (h, w) in zip(batch, outputs)]
    with torch.no_grad():
        prediction = model.predict(batch)
        results = model.label(batch, prediction)
    for n, (result, size) in enumerate(zip(results, outputs)):
        image_size = prediction.image_sizes[n]
        h, w = (-(-side // 4) for side in image_size)
        costs = [
            c[n, ..., :h, :w].contiguous().numpy()
            for c in (prediction.node_costs, prediction.edge_costs)
        ]
        distances = model.solver.distances
        solution = solve_amwc(*costs, distances, model.solver.partitionable)
        classes, _ = refine_labels(
            solution, *costs, distances, stride=4, image_size=image_size, output_size=size,
            gamma=model.costs.gamma.item(),
        )  # fmt: skip
        if upsampling == "nearest":
            classes = upsample_labels(torch.from_numpy(solution.classes), 4, image_size, size)
        assert np.array_equal(result["classes"], classes)
        panoptic, segments = result["panoptic_seg"]
        assert panoptic.shape == result["sem_seg"].shape[1:] == size
        assert (panoptic > 0).all()
        assert len(segments) + result["amwc"]["lost_segments"] == result["amwc"]["num_segments"]


@pytest.mark.parametrize("layers", ["classifiers", "heads", "decoders", "all"])
def test_stage_two_trains_only_what_it_says(layers, toy_cfg):
    toy_cfg.MODEL.AMWC.STAGE = "end_to_end"
    toy_cfg.MODEL.AMWC.TRAINED_LAYERS = layers
    model = build_model(toy_cfg).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    parts = (
        "backbone.",
        "sem_seg_head.decoder",
        "sem_seg_head.head",
        "sem_seg_head.predictor",
        "ins_embed_head.decoder",
        "ins_embed_head.reduce",
        "ins_embed_head.classifiers",
    )
    hit = {p for p in parts if any(n.startswith(p) for n in trained)}
    expected = {"sem_seg_head.predictor", "ins_embed_head.classifiers"}
    if layers != "classifiers":
        expected |= {"sem_seg_head.head", "ins_embed_head.reduce"}
    if layers in ("decoders", "all"):
        expected |= {"sem_seg_head.decoder", "ins_embed_head.decoder"}
    if layers == "all":
        expected |= {"backbone."}
    assert hit == expected
    assert not any(".norm." in n for n in trained)
    if layers == "classifiers":
        assert not any("conv1" in n for n in trained)

    statistics = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    with EventStorage():
        model(toy_batch([(128, 256)]))
    for name, value in model.named_buffers():
        if name in statistics:
            assert torch.equal(value, statistics[name]), f"{name} is not frozen"


def test_same_seed_same_loss_and_gradient(toy_cfg):
    toy_cfg.MODEL.AMWC.STAGE = "end_to_end"
    toy_cfg.MODEL.AMWC.GRADIENT.LAMBDA_RANGE = [5.0, 50.0]
    torch.manual_seed(0)
    state = build_model(toy_cfg).state_dict()
    runs = []
    for threads in (1, 2):
        toy_cfg.MODEL.AMWC.SOLVER.NUM_THREADS = threads
        model = build_model(toy_cfg).train()
        model.load_state_dict(state)
        with EventStorage():
            loss = model(toy_batch([(64, 128), (50, 90)]))["loss_pq"]
        loss.backward()
        runs.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1]))


def test_amp_reaches_the_network(toy_cfg):
    """SOLVER.AMP trains in the autocast that AMPTrainer puts around the model."""
    model, seen = build_model(toy_cfg).train(), []
    model.sem_seg_head.predictor.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16), EventStorage():
        losses = model(toy_batch([(64, 128)]))
    assert seen == [torch.bfloat16]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_stage_two_without_a_loss_through_the_solver(toy_cfg):
    toy_cfg.MODEL.AMWC.STAGE = "end_to_end"
    toy_cfg.MODEL.AMWC.LEARN_COST_SCALES = True
    assert all(p.requires_grad for p in build_model(toy_cfg).costs.parameters())
    toy_cfg.MODEL.AMWC.LOSS.PQ_WEIGHT = 0.0
    toy_cfg.MODEL.AMWC.LOSS.CROSS_ENTROPY_WEIGHT = 1.0
    # DistributedDataParallel would wait for gradients that never come.
    assert not any(p.requires_grad for p in build_model(toy_cfg).costs.parameters())
    toy_cfg.MODEL.AMWC.LOSS.CROSS_ENTROPY_WEIGHT = 0.0
    with pytest.raises(ValueError, match=r"has no loss: PQ_WEIGHT and .* above 0"):
        build_model(toy_cfg)


@pytest.mark.parametrize("stage", ["pretrain", "end_to_end"])
def test_bfloat16_trains_alike(stage, toy_cfg, monkeypatch):
    """Losses close to those of float32, gradients finite and of like direction, all in float32."""
    monkeypatch.setattr(config, "has_bfloat16", lambda device: True)
    toy_cfg.MODEL.AMWC.STAGE = stage
    torch.manual_seed(0)
    state = build_model(toy_cfg).state_dict()
    losses, gradients = [], []
    for bfloat16 in (False, True):
        toy_cfg.SOLVER.AMP.BFLOAT16 = bfloat16
        torch.manual_seed(0)  # dropout of the decoders
        model = build_model(toy_cfg).train()
        model.load_state_dict(state)
        with EventStorage(), precision(toy_cfg):
            losses.append(model(toy_batch([(64, 128), (50, 90)])))
        sum(losses[-1].values()).backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in trained)
        gradients.append(torch.cat([g.flatten() for g in trained]))
    for name, plain in losses[0].items():
        assert losses[1][name].dtype == torch.float32
        assert losses[1][name].item() == pytest.approx(plain.item(), rel=0.03), name
    assert gradients[0].norm() > 0
    if stage == "pretrain":  # the gradient through the solver is a difference of two solutions
        assert torch.cosine_similarity(*gradients, dim=0) > 0.9


@pytest.mark.parametrize(
    "wanted, there, amp, expected",
    [
        (True, {"avx512_bf16": True}, False, True),
        (True, {"avx512_bf16": False, "amx_bf16": True}, False, True),
        (True, {"avx512_bf16": False, "amx_bf16": False}, False, False),
        (False, {"avx512_bf16": True}, False, False),
        (True, {"avx512_bf16": True}, True, False),
    ],
)
def test_bfloat16_where_the_processor_has_it(wanted, there, amp, expected, toy_cfg, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there)
    toy_cfg.SOLVER.AMP.BFLOAT16, toy_cfg.SOLVER.AMP.ENABLED = wanted, amp
    assert config.use_bfloat16(toy_cfg) is expected


def test_images_without_things_or_labels_keep_every_gradient(toy_cfg):
    """DistributedDataParallel waits for every parameter's gradient."""
    toy_cfg.MODEL.AMWC.STAGE = "end_to_end"
    model = build_model(toy_cfg).train()
    batch = toy_batch([(64, 128)])
    batch[0]["segments"] = torch.full_like(batch[0]["segments"], -1)
    with EventStorage():
        model(batch)["loss_pq"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_diverged_network_is_named(toy_cfg):
    model = build_model(toy_cfg).eval()
    torch.nn.init.constant_(model.sem_seg_head.predictor.bias, float("nan"))
    with (
        torch.no_grad(),
        pytest.raises(FloatingPointError, match="of sem_seg_head are NaN"),
    ):
        model(toy_batch([(64, 128)]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("STAGE", "finetune", "STAGE must be one of"),
        ("TRAINED_LAYERS", "last", "TRAINED_LAYERS must be one of"),
        ("COST_DROPOUT", 1.0, r"COST_DROPOUT must be in \[0, 1\)"),
        ("SOLVER.METHOD", "quick", "AMWC.SOLVER.METHOD must be one of .* got 'quick'"),
        ("SOLVER.NUM_THREADS", -1, "AMWC.SOLVER.NUM_THREADS must be >= 0 .*got -1"),
        ("GRADIENT.ESTIMATOR", "magic", "AMWC.GRADIENT.ESTIMATOR must be one of"),
        ("LOSS.SURROGATE", "dice", "AMWC.LOSS.SURROGATE must be one of"),
        ("RESEARCH.TWO_SIDED", 2.0, "AMWC.RESEARCH.TWO_SIDED must be a share"),
        ("RESEARCH.SEPARATE_WEIGHT", -1.0, "AMWC.RESEARCH.SEPARATE_WEIGHT must be >= 0"),
    ],
)
def test_wrong_keys_are_named(key, value, message, toy_cfg):
    toy_cfg.merge_from_list([f"MODEL.AMWC.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_model(toy_cfg)


def test_wrong_number_of_classes_is_named(toy_cfg):
    toy_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        build_model(toy_cfg)
