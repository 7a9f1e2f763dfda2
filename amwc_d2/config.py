"""The configuration keys of AMWC, on top of Panoptic-DeepLab's."""

import logging

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config
from detectron2.utils.file_io import PathManager
from yaml import YAMLError

from amwc_d2.config_names import Config, add_amwc_research_config, get_value

logger = logging.getLogger(__name__)

__all__ = [
    "STAGES",
    "add_amwc_config",
    "add_amwc_research_config",
    "from_keys",
    "has_bfloat16",
    "load_config",
    "use_available_device",
    "use_bfloat16",
]

STAGES = ("pretrain", "end_to_end")


def load_config(config_file, opts=()):
    """Read a config: Detectron2's defaults and ours, then the file, then single options.

    Args:
        config_file (str or Path): a YAML file.
        opts (sequence): keys and values in turn, as on the command line.

    Returns:
        CfgNode: not frozen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no plain YAML with keys (tags that would run code are refused), or bases
            itself on itself.
        KeyError: a key that does not exist.
    """
    cfg = get_cfg()
    add_amwc_config(cfg)
    _merge_from_file(cfg, str(config_file))
    cfg.merge_from_list(list(opts))
    return cfg


def _merge_from_file(cfg, file):
    if not PathManager.isfile(file):
        raise FileNotFoundError(f"the config '{file}' does not exist.")
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the config '{file}' (or its _BASE_) is not plain YAML: {error}\nTags such as "
            "!!python/... would run code and are refused; write plain values."
        ) from error
    except RecursionError as error:
        raise ValueError(
            f"the config '{file}' is its own _BASE_, over others perhaps. _BASE_ names another "
            "config, to which the file adds its keys."
        ) from error
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"the config '{file}' (or its _BASE_) holds no keys; expected 'KEY: value' lines as in "
            f"configs/*.yaml ({error})."
        ) from error


def use_available_device(cfg, num_gpus=1):
    """Set ``MODEL.DEVICE`` to "cpu" when no GPU is there or none was asked for, and say so.

    Args:
        cfg (CfgNode): changed in place; not frozen yet.
        num_gpus (int): ``--num-gpus``; 0 asks for the CPU.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and (num_gpus == 0 or not torch.cuda.is_available()):
        reason = "--num-gpus 0" if num_gpus == 0 else "no CUDA device was found"
        logger.info("Running on the CPU (%s).", reason)
        cfg.MODEL.DEVICE = "cpu"


def use_bfloat16(cfg):
    """Tell whether the network trains in bfloat16: the config wants it and the device can.

    Args:
        cfg (CfgNode): reads ``SOLVER.AMP.BFLOAT16``, ``MODEL.DEVICE`` and ``SOLVER.AMP.ENABLED``,
            which is a mixed precision of its own.
    """
    if not cfg.SOLVER.AMP.BFLOAT16 or cfg.SOLVER.AMP.ENABLED:
        return False
    return has_bfloat16(cfg.MODEL.DEVICE)


def has_bfloat16(device):
    """Tell whether ``device`` ("cpu", "cuda", ...) has instructions for bfloat16."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def from_keys(factory, cfg, **keys):
    """Call ``factory`` with values from a config; its errors then name the keys.

    Args:
        factory (callable): raises ValueErrors that begin with the name of the wrong argument.
        cfg (CfgNode): the config.
        keys (str): for each argument the key that has its value.

    Returns:
        what ``factory`` returns.

    Raises:
        ValueError: of ``factory``, with the key in place of the argument.
    """
    values = {argument: get_value(cfg, key) for argument, key in keys.items()}
    try:
        return factory(**values)
    except ValueError as error:
        argument, _, rest = str(error).partition(" ")
        raise ValueError(f"{keys.get(argument, argument)} {rest}") from error


def add_amwc_config(cfg):
    """Add all keys of AMWC to ``cfg`` (a Detectron2 ``CfgNode``), in place.

    Calls ``add_panoptic_deeplab_config`` first; call neither that nor ``add_deeplab_config``
    yourself. Areas are in pixels of the image, distances in cells of the stride-4 grid. Old names
    of keys still work in files and lists (``config_names``).
    """
    add_panoptic_deeplab_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "AMWCPanoptic"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PanopticDeepLabSemSegHead"

    # Reading of images (amwc_d2/data/images.py), in training, evaluation and prediction alike.
    # INPUT.FORMAT is "RGB", "BGR", "L" (one channel) or "ALL" (the file's channels, as many as
    # MODEL.PIXEL_MEAN has values). Pixel values become 0..255 by "dtype" (the range of their type:
    # 0..255, 0..65535, floats 0..1), by "percentile" (two of each image) or by "values" (two).
    cfg.INPUT.SCALING = "dtype"
    cfg.INPUT.SCALING_RANGE = [1.0, 99.8]  # the two percentiles or values
    cfg.INPUT.PAGE = -1  # which image of a stack, counted from 0; -1: stacks are refused

    # Augmentation. Scale is Detectron2's INPUT.MIN_SIZE_TRAIN; INPUT.RANDOM_FLIP is "none",
    # "horizontal", "vertical" or, added here, "both" (each by a coin of its own).
    cfg.INPUT.QUARTER_TURNS = False  # turn by 0, 90, 180 or 270 degrees, where up has no meaning
    # Colours times a factor drawn from [1 - x, 1 + x], x in [0, 1): towards black, towards the
    # image's mean, towards grey.
    cfg.INPUT.BRIGHTNESS = 0.0
    cfg.INPUT.CONTRAST = 0.0
    cfg.INPUT.SATURATION = 0.0

    # Weight in the affinity loss of edges with at least one end on a thing (paper 4.2); times
    # INPUT.SMALL_INSTANCE_WEIGHT on things below INPUT.SMALL_INSTANCE_AREA.
    cfg.INPUT.THING_EDGE_WEIGHT = 4.0

    # The affinity head: Panoptic-DeepLab's instance branch with other outputs (paper A.6).
    head = cfg.MODEL.INS_EMBED_HEAD
    head.NAME = "AMWCAffinityHead"
    head.CONVS_DIM = 256  # channels of the decoder
    head.HEAD_CHANNELS = 256  # channels that all classifiers share
    head.DISTANCES = [1, 4, 16, 32, 64]  # one classifier each (paper 3.1; Cityscapes adds 128)
    head.LOSS_WEIGHT = 0.25  # of every (distance, direction) term
    head.LOSS_TOP_K = 0.25  # share of the hardest edges that count

    # Learning rates by parameter: [[pattern, factor], ...]; the first pattern that matches the
    # parameter's name (as fnmatch does, such as "ins_embed_head.reduce.*") decides; otherwise 1.
    cfg.SOLVER.LR_FACTORS = []
    # Images of a batch at inference, in each process. They are padded to the largest, and padding
    # enters the features of smaller ones: only with 1 does a result not depend on its neighbours.
    cfg.TEST.IMS_PER_BATCH = 1
    cfg.TEST.LOWER_BOUND = False  # bound every optimum from below, which takes longer than solving

    cfg.DATALOADER.TIMEOUT = 600  # seconds that data workers may take for a batch
    # An image that cannot be read, an evaluation that fails, a checkpoint or a log that cannot be
    # written: False logs and counts it and trains on, True ends the training.
    cfg.STRICT = False
    # On images with ground truth, the truth replaces the class costs ("semantic", paper A.8), the
    # edge costs ("affinity") or "both": upper bounds, not results.
    cfg.TEST.ORACLE = ""
    # Train the network (not losses, costs and solver) in bfloat16 where MODEL.DEVICE has the
    # instructions (a GPU of compute capability 8.0, a CPU with AVX512-BF16 or AMX): half the time.
    # Needs no loss scaling, so that stage 2 takes it, unlike SOLVER.AMP.ENABLED. False: float32.
    cfg.SOLVER.AMP.BFLOAT16 = True

    amwc = cfg.MODEL.AMWC = CN()
    amwc.STAGE = "pretrain"  # "pretrain": cross-entropy; "end_to_end": PQ through the solver
    # Smaller segments become void: in pixels of the image at inference, of the resized input in the
    # loss of stage 2.
    amwc.THING_AREA = 200  # (paper 4.1)
    amwc.STUFF_AREA = 2048  # (COCO: 4096)
    # Labels of cells to labels of pixels: "refine" chooses between the segments around a pixel by
    # their costs, "nearest" takes the nearest cell's (the paper), which leaves staircases.
    amwc.UPSAMPLING = "refine"
    amwc.SOLVER = CN()
    amwc.SOLVER.METHOD = "fast"  # "fast", "greedy" (Algorithm 2) or "best"
    amwc.SOLVER.NUM_THREADS = 0  # that solve images; 0: as many as the process may use
    # Training images that stage 1 holds back, at most a fifth, and on which the scales and offsets
    # of the costs are fitted to PQ at its end (engine/calibration.py). 0: no calibration.
    amwc.CALIBRATION_IMAGES = 60
    # Use the scales and offsets that the checkpoint holds; False: the network's logits as they are.
    amwc.CALIBRATED = True

    # Stage 2. Which layers train: "classifiers" (paper), "heads", "decoders" or "all".
    amwc.TRAINED_LAYERS = "heads"
    amwc.LEARN_COST_SCALES = False  # train the cost scales and offsets of costs.py as well
    amwc.COST_DROPOUT = 0.1  # share of pixels (class costs) and of edges set to zero
    # The gradient through the solver (Algorithm 1, equation 4; formulas: estimators.py).
    amwc.GRADIENT = CN()
    amwc.GRADIENT.ESTIMATOR = "warm_start"  # "same_solver", "warm_start" or "literal"
    amwc.GRADIENT.NUM_SAMPLES = 5  # N
    amwc.GRADIENT.LAMBDA_RANGE = [1.0, 5000.0]  # lambda is uniform on it, for image and sample
    # Its losses, by weight; 0 = off.
    amwc.LOSS = CN()
    # 1 - PQ surrogate (equation 6). Its weight scales the perturbation, not the gradient's size:
    # w (Cityscapes 10, COCO 100).
    amwc.LOSS.PQ_WEIGHT = 10.0
    # "symmetric", which compares cells with all their pixels and gives missed objects a way back,
    # "paper" (equation 6) or "authors", both on the grid.
    amwc.LOSS.SURROGATE = "symmetric"
    # Stage 1's losses, as a regulariser; alone, they are the control "continued cross-entropy".
    amwc.LOSS.CROSS_ENTROPY_WEIGHT = 0.0

    object.__setattr__(cfg, "__class__", Config)  # takes old names, refuses keys without effect
