"""Training of both stages: Detectron2's ``DefaultTrainer`` with our data, optimiser and guards."""

import logging
import os
import weakref
from collections import Counter, OrderedDict
from contextlib import nullcontext
from fnmatch import fnmatchcase

import detectron2.data.transforms as T
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm

from amwc_d2.config import use_bfloat16
from amwc_d2.data.datasets import check_panoptic_metadata, load_samples
from amwc_d2.data.loading import TrainingLoader, WatchedLoader, explain_dead_worker
from amwc_d2.data.mappers import AMWCDatasetMapper, InferenceMapper, ResizeShortestEdge
from amwc_d2.data.model_card import ModelCard, make_card
from amwc_d2.data.target_generator import AMWCTargetGenerator
from amwc_d2.engine.calibration import Calibration, hold_back
from amwc_d2.engine.checkpoint import AMWCCheckpointer
from amwc_d2.engine.hooks import (
    EvaluateOrGoOn,
    RefuseNonFinite,
    SaveCheckpoints,
    StepSeed,
    TolerantWriter,
    describe,
)
from amwc_d2.engine.interruption import Interruption
from amwc_d2.engine.settings import check_settings, differing_settings
from amwc_d2.engine.timing import PartTimeWriter, time_forward
from amwc_d2.evaluation import build_evaluator
from amwc_d2.evaluation.loop import evaluate
from amwc_d2.evaluation.oracle import OracleMapper, OracleModel, check_oracle

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains either stage (``MODEL.AMWC.STAGE``) on GPUs or the CPU, in one process or several.

    Stage 2 starts from ``MODEL.WEIGHTS`` in an ``OUTPUT_DIR`` of its own. ``resume`` continues a
    run of the same settings as if it had not been interrupted: on a CPU to the bit. SIGTERM and
    SIGINT save a checkpoint and end the process with status 143 or 130.

    Attributes:
        seed: decides on order, augmentation and the random numbers of each step; ``cfg.SEED``, or
            drawn where that is negative.
        faults (Counter): what went wrong on the way and was survived (``STRICT``).
        interruption (Interruption): whether SIGTERM or SIGINT came.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): see ``amwc_d2.config``.

        Raises:
            ValueError: a wrong value in the config, mixed precision in stage 2, stage 2 about to
                overwrite its own start, or datasets that differ in their classes.
            KeyError: a dataset is not registered.
        """
        check_settings(cfg)
        check_stage(cfg)
        check_oracle(cfg.TEST.ORACLE)  # now, not when the training is done
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
        time_forward(getattr(model, "module", model))
        if use_bfloat16(cfg):
            model.to(memory_format=torch.channels_last)
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
        self.seed = data_loader.seed
        self.faults = Counter()
        self.interruption = Interruption()
        self._states = None  # of all processes, when a checkpoint is saved
        if not cfg.SOLVER.AMP.ENABLED:  # whose scaler finds infinite gradients, and needs them
            self._trainer.register_hooks([RefuseNonFinite(self.faults)])
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg):
        """Images with their targets, endlessly, ``SOLVER.IMS_PER_BATCH`` over all processes."""
        samples, _ = training_samples(cfg)
        factors = None
        if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":  # rare classes more often
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                [{"annotations": sample["segments_info"]} for sample in samples],
                cfg.DATALOADER.REPEAT_THRESHOLD,
                sqrt=cfg.DATALOADER.REPEAT_SQRT,
            )
        return TrainingLoader(
            samples,
            cls.build_train_mapper(cfg),
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            repeat_factors=factors,
            strict=cfg.STRICT,
            timeout=cfg.DATALOADER.TIMEOUT,
        )

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

        Without targets, unless ``TEST.ORACLE`` asks for the ground truth.
        """
        loader = build_detection_test_loader(
            load_samples(dataset_name),
            mapper=(OracleMapper if cfg.TEST.ORACLE else InferenceMapper)(cfg),
            batch_size=cfg.TEST.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        return WatchedLoader(loader, cfg.DATALOADER.TIMEOUT)

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
        if cfg.TEST.ORACLE:
            model = OracleModel(model, cfg.TEST.ORACLE)
        results = OrderedDict()
        for index, name in enumerate(names):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = evaluate(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info("Results on %s, in csv format:", name)
                print_csv_format(results[name])
        return results[names[0]] if len(names) == 1 else results

    def build_hooks(self):
        """Detectron2's, with ours for checkpoints and evaluations; see ``engine/hooks.py``.

        At the end of stage 1 costs are calibrated before the checkpoint is saved, unless
        ``MODEL.AMWC.CALIBRATION_IMAGES`` holds no image back.
        """
        cfg, hooks = self.cfg, [StepSeed()]
        for hook in super().build_hooks():
            if isinstance(hook, EvalHook):
                hooks += [
                    SaveCheckpoints(
                        cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, self.faults, cfg.STRICT
                    ),
                    EvaluateOrGoOn(cfg.TEST.EVAL_PERIOD, hook._func, self.faults, cfg.STRICT),
                ]
            elif not isinstance(hook, PeriodicCheckpointer):
                hooks.append(hook)
        _, held = training_samples(cfg)
        if held:
            hooks.insert(2, Calibration(cfg, held))  # behind the timer of steps
        return hooks

    def build_writers(self):
        """Detectron2's, and the time of each part of a step in the log."""
        writers = [*super().build_writers(), PartTimeWriter()]
        return writers if self.cfg.STRICT else [TolerantWriter(w, self.faults) for w in writers]

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

    # ---- running and resuming ------------------------------------------------------------------
    @property
    def estimators(self):
        """What draws the model's lambdas, and owns their scale."""
        model = getattr(self.model, "module", self.model)
        criterion = getattr(model, "criterion", None)
        owners = [getattr(criterion, name, None) for name in ("estimator", "separate_estimator")]
        owners.append(getattr(model, "solver", None))
        return [owner for owner in owners if hasattr(owner, "lambda_scale")]

    def train(self):
        """Train to the end, from where :meth:`resume_or_load` came to.

        Returns:
            the results of the last evaluation where ``TEST.EXPECTED_RESULTS`` are set.

        Raises:
            SystemExit: the training was interrupted, and is saved.
        """
        self.data_loader.seed, self.data_loader.start = self.seed, self.start_iter
        with self.interruption:
            try:
                return super().train()
            finally:
                if self.data_loader.unreadable:
                    self.faults["unreadable images"] = len(self.data_loader.unreadable)
                if self.faults:
                    logger.warning("On the way there were: %s.", describe(self.faults))

    def run_step(self):
        """One step, its network in the precision of ``SOLVER.AMP.BFLOAT16``."""
        try:
            with precision(self.cfg):
                super().run_step()
        except RuntimeError as error:
            reason = explain_dead_worker(str(error))
            if reason is None:
                raise
            raise RuntimeError(reason) from error

    def save(self, name):
        """Save a checkpoint; all processes call it, the first one writes.

        Args:
            name (str): such as "model_final".

        Raises:
            FloatingPointError, OSError: see :meth:`AMWCCheckpointer.save`.
        """
        self._states = comm.gather(self._process_state())
        self.checkpointer.save(name)

    def _process_state(self):
        return {"lambda_scales": [estimator.lambda_scale for estimator in self.estimators]}

    def state_dict(self):
        return {
            **super().state_dict(),
            "stage": self.cfg.MODEL.AMWC.STAGE,
            "config": self.cfg.dump(),
            "seed": self.seed,
            "processes": self._states or [self._process_state()],
        }

    def load_state_dict(self, state_dict):
        """Continue an interrupted run.

        Raises:
            ValueError: the run had another stage, another ``SOLVER.MAX_ITER``, or other settings of
                model, solver, input or training data.
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
        differing = differing_settings(state_dict.get("config", ""), self.cfg.dump())
        if differing:
            raise ValueError(
                f"--resume: the run in OUTPUT_DIR '{self.cfg.OUTPUT_DIR}' has other settings:\n  "
                + "\n  ".join(f"{key}: {old} there, {new} here" for key, old, new in differing)
                + f"\nGive them its values to continue it. To train with these, {advice}"
            )
        super().load_state_dict(state_dict)
        self.seed = state_dict.get("seed", self.seed)
        states, count = state_dict.get("processes", []), comm.get_world_size()
        if len(states) == count:
            scales = states[comm.get_rank()]["lambda_scales"]
            for estimator, scale in zip(self.estimators, scales):
                estimator.lambda_scale = scale
        elif states:
            logger.warning(
                "The run was on %d processes and goes on with %d: its batches are shared out in "
                "another way, so that the weights will differ from those of one run.",
                len(states),
                count,
            )


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


def precision(cfg):
    """The context of a training step: bfloat16 (``use_bfloat16``), or the caller's own.

    Losses, costs and solver are in float32 in any case.
    """
    if use_bfloat16(cfg):
        return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, torch.bfloat16)
    return nullcontext()


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
            "False in stage 2 (MODEL.AMWC.STAGE 'end_to_end'); SOLVER.AMP.BFLOAT16 True trains the "
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
