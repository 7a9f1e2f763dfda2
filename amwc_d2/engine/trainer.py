"""Training of both stages: Detectron2's ``DefaultTrainer`` with our data, optimiser and guards."""

import logging
import os
import weakref
from collections import OrderedDict
from fnmatch import fnmatchcase

import detectron2.data.transforms as T
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm

from amwc_d2.data.datasets import check_panoptic_metadata, load_samples
from amwc_d2.data.mappers import AMWCDatasetMapper, InferenceMapper, ResizeShortestEdge
from amwc_d2.data.model_card import ModelCard, make_card
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.engine.calibration import Calibration, hold_back
from amwc_d2.engine.checkpoint import AMWCCheckpointer
from amwc_d2.engine.timing import PartTimeWriter
from amwc_d2.evaluation import build_evaluator
from amwc_d2.evaluation.loop import evaluate
from amwc_d2.evaluation.oracle import OracleMapper

logger = logging.getLogger(__name__)

SAMPLERS = (  # those of Detectron2's that need no boxes
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
)


class Trainer(DefaultTrainer):
    """Trains either stage (``MODEL.AMWC.STAGE``) on GPUs or the CPU, in one process or several.

    Stage 2 starts from ``MODEL.WEIGHTS`` in an ``OUTPUT_DIR`` of its own; ``resume`` continues a
    run of the same stage and the same ``SOLVER.MAX_ITER``.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): see ``amwc_d2.config``.

        Raises:
            ValueError: mixed precision in stage 2, stage 2 about to overwrite its own start, or
                datasets that differ in their classes.
            KeyError: a dataset is not registered.
        """
        check_stage(cfg)
        check_datasets(cfg, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        # DefaultTrainer.__init__ hands DistributedDataParallel a GPU whatever MODEL.DEVICE says;
        # the rest is as there.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        model.card = make_card(cfg)  # its own, not that of the weights it starts from
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        model = create_ddp_model(
            model, broadcast_buffers=False, **({"device_ids": None} if on_cpu else {})
        )
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        card = ModelCard(getattr(model, "module", model).card)
        self.checkpointer = AMWCCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), card=card
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg):
        """Images with their targets, endlessly, ``SOLVER.IMS_PER_BATCH`` over all processes."""
        samples, _ = training_samples(cfg)
        sampler = None
        if cfg.DATALOADER.SAMPLER_TRAIN not in SAMPLERS:
            raise ValueError(
                f"DATALOADER.SAMPLER_TRAIN must be one of {SAMPLERS}, got "
                f"'{cfg.DATALOADER.SAMPLER_TRAIN}'."
            )
        if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":  # rare classes more often
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                [{"annotations": sample["segments_info"]} for sample in samples],
                cfg.DATALOADER.REPEAT_THRESHOLD,
                sqrt=cfg.DATALOADER.REPEAT_SQRT,
            )
            sampler = RepeatFactorTrainingSampler(factors, seed=max(cfg.SEED, 0))
        mapper = cls.build_train_mapper(cfg)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=samples, sampler=sampler)

    @classmethod
    def build_train_mapper(cls, cfg):
        """From a dict of the DatasetCatalog to an augmented image with its targets."""
        return AMWCDatasetMapper(
            cfg,
            augmentations=build_train_augmentations(cfg),
            panoptic_target_generator=AMWCTargetGenerator.from_config(cfg),
        )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Images in order, ``TEST.IMS_PER_BATCH`` at a time in each process.

        Without targets, unless ``MODEL.AMWC.ORACLE`` asks for the ground truth.
        """
        return build_detection_test_loader(
            load_samples(dataset_name),
            mapper=(OracleMapper if cfg.MODEL.AMWC.ORACLE else InferenceMapper)(cfg),
            batch_size=cfg.TEST.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        """See :func:`amwc_d2.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on every dataset of ``DATASETS.TEST``, network and solver side by side.

        Args:
            cfg (CfgNode): the config.
            model (nn.Module): ``AMWCPanoptic``, or ``DistributedDataParallel`` around one.
            evaluators: one ``DatasetEvaluator`` a dataset; default ``build_evaluator``'s.

        Returns:
            the evaluator's results, by dataset where there are several.

        Raises:
            ValueError: another number of evaluators than datasets.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(f"{len(evaluators)} evaluators for DATASETS.TEST {tuple(names)}")
        check_datasets(cfg, *names)
        results = OrderedDict()
        for index, name in enumerate(names):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = evaluate(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info("Results on %s, in csv format:", name)
                print_csv_format(results[name])
        return results[names[0]] if len(names) == 1 else results

    def build_hooks(self):
        """Detectron2's; at the end of stage 1 costs are calibrated before the checkpoint is saved.

        Nothing is calibrated where ``MODEL.AMWC.CALIBRATION_IMAGES`` holds no image back.
        """
        hooks = super().build_hooks()
        _, held = training_samples(self.cfg)
        if held:
            hooks.insert(1, Calibration(self.cfg, held))  # behind the timer of steps
        return hooks

    def build_writers(self):
        """Detectron2's, and the time of each part of a step in the log."""
        return [*super().build_writers(), PartTimeWriter()]

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """``SOLVER.LR_SCHEDULER_NAME``: DeepLab's ``WarmupPolyLR`` or any of Detectron2's."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_optimizer(cls, cfg, model):
        """``SOLVER.OPTIMIZER`` ("ADAM" or "SGD") over the parameters with ``requires_grad``.

        ``SOLVER.LR_FACTORS`` multiply ``SOLVER.BASE_LR``.

        Raises:
            ValueError: another optimiser, nothing to train, or a factor that is for nothing.
        """
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            lr_factor_func=lr_factors(cfg.SOLVER.LR_FACTORS, model),
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        if not params:
            raise ValueError("no parameter requires a gradient: see MODEL.AMWC.TRAINED_LAYERS")
        if cfg.SOLVER.OPTIMIZER == "ADAM":
            return maybe_add_gradient_clipping(cfg, torch.optim.Adam)(params, cfg.SOLVER.BASE_LR)
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
                params,
                cfg.SOLVER.BASE_LR,
                momentum=cfg.SOLVER.MOMENTUM,
                nesterov=cfg.SOLVER.NESTEROV,
            )
        raise ValueError(f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; expected 'ADAM' or 'SGD'.")

    def state_dict(self):
        return {**super().state_dict(), "stage": self.cfg.MODEL.AMWC.STAGE}

    def load_state_dict(self, state_dict):
        """Continue an interrupted run.

        Raises:
            ValueError: the run had another stage or another ``SOLVER.MAX_ITER``.
        """
        here, there = self.cfg.MODEL.AMWC.STAGE, state_dict.get("stage")
        advice = (
            "leave out --resume, give MODEL.WEIGHTS the checkpoint to start from, and OUTPUT_DIR a "
            "new folder."
        )
        if there not in (None, here):
            raise ValueError(
                f"--resume: OUTPUT_DIR '{self.cfg.OUTPUT_DIR}' holds a run of stage '{there}', but "
                f"MODEL.AMWC.STAGE is '{here}'. To start this stage, {advice}"
            )
        scheduler = state_dict.get("hooks", {}).get("LRScheduler", {})
        max_iter = scheduler.get("max_iters", self.max_iter)
        if max_iter != self.max_iter:
            raise ValueError(
                f"--resume: the run in OUTPUT_DIR '{self.cfg.OUTPUT_DIR}' was planned for "
                f"{max_iter} iterations and its learning rate falls to zero there, but "
                f"SOLVER.MAX_ITER is {self.max_iter}. Set SOLVER.MAX_ITER {max_iter} to continue "
                f"it. To train for longer, {advice}"
            )
        super().load_state_dict(state_dict)


def training_samples(cfg):
    """The training images of ``DATASETS.TRAIN``, and those that stage 1 holds back to calibrate.

    Args:
        cfg (CfgNode): stage 2 holds none back, nor does ``MODEL.AMWC.CALIBRATED`` False.

    Returns:
        two lists of dicts of the DatasetCatalog.
    """
    samples = load_samples(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    amwc = cfg.MODEL.AMWC
    calibrates = amwc.STAGE == "pretrain" and amwc.CALIBRATED
    return hold_back(samples, amwc.CALIBRATION_IMAGES if calibrates else 0)


def check_datasets(cfg, *names):
    """Check that datasets have the model's classes: those of the first one that the config names.

    Raises:
        KeyError, ValueError: see :func:`amwc_d2.data.datasets.check_panoptic_metadata`.
    """
    first = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[:1]
    head = cfg.MODEL.SEM_SEG_HEAD
    check_panoptic_metadata(
        *first, *names, num_classes=head.NUM_CLASSES, ignore_value=head.IGNORE_VALUE
    )


def check_stage(cfg):
    """Refuse what stage 2 cannot do.

    Args:
        cfg (CfgNode): the full config.

    Raises:
        ValueError: mixed precision in stage 2, or stage 2 about to overwrite its own start.
    """
    if cfg.MODEL.AMWC.STAGE != "end_to_end":
        return
    if cfg.SOLVER.AMP.ENABLED:
        raise ValueError(
            "SOLVER.AMP.ENABLED is True, but the gradient through the solver is not linear in the "
            "incoming one, so that a scaled loss gives a wrong gradient. Set SOLVER.AMP.ENABLED "
            "False in stage 2 (MODEL.AMWC.STAGE 'end_to_end'); MODEL.AMWC.BFLOAT16 True trains the "
            "network in lower precision without scaling the loss."
        )
    if not cfg.MODEL.WEIGHTS:
        logger.warning(
            "Stage 2 starts from random weights: give MODEL.WEIGHTS a checkpoint of stage 1."
        )
    elif os.path.dirname(os.path.abspath(cfg.MODEL.WEIGHTS)) == os.path.abspath(cfg.OUTPUT_DIR):
        raise ValueError(
            f"stage 2 would overwrite the checkpoint that it starts from: MODEL.WEIGHTS "
            f"'{cfg.MODEL.WEIGHTS}' lies in OUTPUT_DIR. Give OUTPUT_DIR a new folder."
        )


def lr_factors(rules, model):
    """The learning-rate factor of each parameter.

    Args:
        rules: pairs ``[pattern, factor]`` of ``SOLVER.LR_FACTORS``; the first that matches decides.
        model (nn.Module): whose parameters the patterns must match.

    Returns:
        a function from a parameter's name to its factor, 1 where no pattern matches.

    Raises:
        ValueError: a pattern that matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern, _ in rules:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"SOLVER.LR_FACTORS: '{pattern}' matches no parameter of the model; its names look "
                f"like '{names[-1]}' (and * stands for any part)."
            )
    return lambda name: next((f for pattern, f in rules if fnmatchcase(name, pattern)), 1.0)


FLIPS = {  # INPUT.RANDOM_FLIP -> directions
    "none": (),
    "horizontal": ("horizontal",),
    "vertical": ("vertical",),
    "both": ("horizontal", "vertical"),
}
COLOURS = {
    "BRIGHTNESS": T.RandomBrightness,
    "CONTRAST": T.RandomContrast,
    "SATURATION": T.RandomSaturation,
}


def build_train_augmentations(cfg):
    """Resize, crop and flip, as Panoptic-DeepLab's training does; turns and colours if asked for.

    Args:
        cfg (CfgNode): reads ``INPUT.{MIN,MAX}_SIZE_TRAIN``, ``INPUT.CROP``, ``INPUT.RANDOM_FLIP``,
            ``INPUT.QUARTER_TURNS`` and ``INPUT.{BRIGHTNESS,CONTRAST,SATURATION}``.

    Returns:
        list[Augmentation]: for ``AMWCDatasetMapper``.

    Raises:
        ValueError: a flip of another name; a strength outside [0, 1); saturation of grey images; a
            crop limited in the share of its largest class, which only works on class maps, where
            crops are cut from maps of panoptic ids here.
    """
    if cfg.INPUT.RANDOM_FLIP not in FLIPS:
        raise ValueError(
            f"INPUT.RANDOM_FLIP must be one of {tuple(FLIPS)}, got '{cfg.INPUT.RANDOM_FLIP}'"
        )
    augmentations = [
        ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    ]
    if cfg.INPUT.CROP.ENABLED:
        if cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA < 1.0:
            raise ValueError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA};"
                " only 1.0 (no limit) works with panoptic ground truth."
            )
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    for direction in FLIPS[cfg.INPUT.RANDOM_FLIP]:
        augmentations.append(T.RandomFlip(**{"horizontal": False, direction: True}))
    if cfg.INPUT.QUARTER_TURNS:
        augmentations.append(T.RandomRotation([0, 90, 180, 270], sample_style="choice"))
    for key, augmentation in COLOURS.items():
        strength = cfg.INPUT[key]
        if not 0 <= strength < 1:
            raise ValueError(
                f"INPUT.{key} must be in [0, 1), got {strength}; 0 leaves the colours alone"
            )
        if strength and key == "SATURATION" and cfg.INPUT.FORMAT == "L":
            raise ValueError(
                "INPUT.SATURATION is for colours, but INPUT.FORMAT is 'L': set it to 0"
            )
        if strength:
            augmentations.append(augmentation(1 - strength, 1 + strength))
    return augmentations
