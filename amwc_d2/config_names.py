"""Config keys under their old names, and inherited keys that do nothing.

``add_amwc_config`` makes the config a :class:`Config`: files and command lines that use an old name
still work, with one warning per key, and a key of Panoptic-DeepLab that has no effect here is
refused by name instead of being ignored.
"""

import warnings
from functools import cache, reduce

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

RESEARCH = "MODEL.AMWC.RESEARCH"
RENAMED = {
    "MODEL.AMWC.SOLVER_METHOD": "MODEL.AMWC.SOLVER.METHOD",
    "MODEL.AMWC.NUM_THREADS": "MODEL.AMWC.SOLVER.NUM_THREADS",
    "MODEL.AMWC.ESTIMATOR": "MODEL.AMWC.GRADIENT.ESTIMATOR",
    "MODEL.AMWC.NUM_LAMBDAS": "MODEL.AMWC.GRADIENT.NUM_SAMPLES",
    "MODEL.AMWC.LAMBDA_RANGE": "MODEL.AMWC.GRADIENT.LAMBDA_RANGE",
    "MODEL.AMWC.PQ_LOSS.WEIGHT": "MODEL.AMWC.LOSS.PQ_WEIGHT",
    "MODEL.AMWC.PQ_LOSS.SURROGATE": "MODEL.AMWC.LOSS.SURROGATE",
    "MODEL.AMWC.CROSS_ENTROPY_LOSS.WEIGHT": "MODEL.AMWC.LOSS.CROSS_ENTROPY_WEIGHT",
    "MODEL.AMWC.PQ_LOSS.MISS_WEIGHT": f"{RESEARCH}.MISS_WEIGHT",
    "MODEL.AMWC.PQ_LOSS.FULL_RESOLUTION": f"{RESEARCH}.FULL_RESOLUTION",
    "MODEL.AMWC.SEPARATE_LOSS.WEIGHT": f"{RESEARCH}.SEPARATE_WEIGHT",
    "MODEL.AMWC.FENCHEL_YOUNG_LOSS.WEIGHT": f"{RESEARCH}.FENCHEL_YOUNG_WEIGHT",
    "MODEL.AMWC.LAMBDA_AREA": f"{RESEARCH}.LAMBDA_AREA",
    "MODEL.AMWC.TARGET_FLIP_RATE": f"{RESEARCH}.TARGET_FLIP_RATE",
    "MODEL.AMWC.TWO_SIDED": f"{RESEARCH}.TWO_SIDED",
    "MODEL.AMWC.NOISE": f"{RESEARCH}.NOISE",
    "MODEL.AMWC.PROXIMAL": f"{RESEARCH}.PROXIMAL",
    "MODEL.AMWC.NORMALIZE_COSTS": f"{RESEARCH}.NORMALIZE_COSTS",
    "MODEL.AMWC.BFLOAT16": "SOLVER.AMP.BFLOAT16",
    "MODEL.AMWC.ORACLE": "TEST.ORACLE",
    "MODEL.INS_EMBED_HEAD.THING_EDGE_WEIGHT": "INPUT.THING_EDGE_WEIGHT",
}
REMOVED = {  # a key that is gone, and the only value that it may still have
    "MODEL.AMWC.FENCHEL_YOUNG_LOSS.NOISE": 0.0,
}
# Keys of Panoptic-DeepLab that nothing here reads, and where to look instead.
WITHOUT_EFFECT = {
    "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA": "MODEL.AMWC.STUFF_AREA",
    "MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD": "",
    "MODEL.PANOPTIC_DEEPLAB.NMS_KERNEL": "",
    "MODEL.PANOPTIC_DEEPLAB.TOP_K_INSTANCE": "",
    "MODEL.PANOPTIC_DEEPLAB.PREDICT_INSTANCES": "",
    "MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV": (
        "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV"
    ),
    "MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY": "",
    "MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED": "",
    "MODEL.INS_EMBED_HEAD.CENTER_LOSS_WEIGHT": "MODEL.INS_EMBED_HEAD.LOSS_WEIGHT",
    "MODEL.INS_EMBED_HEAD.OFFSET_LOSS_WEIGHT": "MODEL.INS_EMBED_HEAD.LOSS_WEIGHT",
    "INPUT.GAUSSIAN_SIGMA": "",
    "INPUT.IGNORE_STUFF_IN_OFFSET": "",
}


class Config(CfgNode):
    """Detectron2's ``CfgNode`` that takes old names and refuses keys without effect."""

    def merge_from_other_cfg(self, cfg_other):
        """See yacs; also what ``merge_from_file`` ends in.

        Raises:
            ValueError: a key that is gone, or that has no effect, has another value than before.
        """
        other = CfgNode(_as_dict(cfg_other))  # a copy
        for old, new in RENAMED.items():
            if (value := _pop(other, old.split("."))) is not None:
                _warn(old, new)
                _put(other, new.split("."), value)
        for old, allowed in REMOVED.items():
            value = _pop(other, old.split("."))
            if value not in (None, allowed):
                raise ValueError(f"{old} is {value}, but this key is gone: leave it out.")
        if "RESEARCH" in other.get("MODEL", {}).get("AMWC", {}):
            add_amwc_research_config(self)
        super().merge_from_other_cfg(other)
        check_keys_without_effect(self)

    @classmethod
    def _decode_cfg_value(cls, value):
        return CfgNode._decode_cfg_value(value)  # only the root is a Config

    def merge_from_list(self, cfg_list):
        """See yacs.

        Raises:
            ValueError: as :meth:`merge_from_other_cfg`.
        """
        options = list(cfg_list)
        for i, key in enumerate(options[0::2]):
            if key in REMOVED:
                raise ValueError(f"{key} is gone: leave it out.")
            if key in RENAMED:
                _warn(key, RENAMED[key])
                options[2 * i] = RENAMED[key]
            if options[2 * i].startswith(RESEARCH):
                add_amwc_research_config(self)
        result = super().merge_from_list(options)
        check_keys_without_effect(self)
        return result


def add_amwc_research_config(cfg):
    """Add ``MODEL.AMWC.RESEARCH``, knobs that no recipe uses; does nothing where it is there.

    A file or a command line that names one of them adds the node by itself. What is known of them:
    docs/results.md.
    """
    if "RESEARCH" in cfg.MODEL.AMWC:
        return
    node = cfg.MODEL.AMWC.RESEARCH = CfgNode()
    # The gradient (formulas: estimators.py).
    node.LAMBDA_AREA = 0.0  # > 0: segments of more cells get a lambda larger in proportion
    node.TARGET_FLIP_RATE = 0.0  # > 0: lambda is steered until this share of cells moves
    node.TWO_SIDED = 0.0  # the reference is solved at minus this times lambda; 1 = central
    node.NOISE = 0.0  # standard deviation of the noise on all costs, shared by both sides
    node.PROXIMAL = 0.0  # rho: pull of both sides towards the forward solution
    node.NORMALIZE_COSTS = False  # take the gradient's part along the costs away (cost collapse)
    # The PQ surrogate; None: as LOSS.SURROGATE implies.
    node.MISS_WEIGHT = None  # way back for missed objects, which equation 6 leaves out
    node.FULL_RESOLUTION = None  # compare cells with all their pixels, not with their centre
    # Losses on classes and on cuts (equations 7 and 8), and the cost of the true labelling beyond
    # that of the solution (Fenchel-Young), by weight.
    node.SEPARATE_WEIGHT = 0.0
    node.FENCHEL_YOUNG_WEIGHT = 0.0


def check_keys_without_effect(cfg):
    """Refuse keys that nothing reads, where they differ from Panoptic-DeepLab's defaults.

    Raises:
        ValueError: names the key, its value, and the key to set instead.
    """
    for key, instead in WITHOUT_EFFECT.items():
        value, default = get_value(cfg, key), get_value(_panoptic_deeplab_defaults(), key)
        if value != default:
            advice = f"Set {instead} instead" if instead else "Leave it out"
            raise ValueError(
                f"{key} is {value}, but has no effect on AMWCPanoptic. {advice} (or keep the "
                f"default, {default})."
            )


def get_value(node, key: str):
    """The value of ``A.B.C`` below a config node."""
    return reduce(lambda value, part: value[part], key.split("."), node)


@cache
def _panoptic_deeplab_defaults():
    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    return cfg


def _as_dict(node):
    return {k: _as_dict(v) if isinstance(v, dict) else v for k, v in node.items()}


def _warn(old, new):
    warnings.warn(f"{old} is now called {new}; the old name works as before.", FutureWarning, 4)


def _pop(node, path):
    """Take a value out of nested nodes, and nodes that become empty; None if it is not there."""
    if path[0] not in node:
        return None
    if len(path) == 1:
        return node.pop(path[0])
    value = _pop(node[path[0]], path[1:])
    if not node[path[0]]:
        del node[path[0]]
    return value


def _put(node, path, value):
    for part in path[:-1]:
        node = node.setdefault(part, CfgNode())
    node[path[-1]] = value
