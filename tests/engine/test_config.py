"""Old names of config keys, keys without effect, and the research node."""

import re
import warnings

import pytest
import yaml
from detectron2.config import get_cfg

from amwc_d2 import add_amwc_config, model_zoo
from amwc_d2.config_names import RENAMED, WITHOUT_EFFECT, get_value


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_amwc_config(cfg)
    return cfg


def keys(node, prefix=""):
    """All keys of a nested dict, dotted."""
    for key, value in node.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def test_a_released_config_loads_with_one_warning_for_each_old_name(cfg, repository):
    file = repository / "checkpoints/toy_amwc_r18_e2e/config.yaml"
    old = [key for key in keys(yaml.safe_load(file.read_text())) if key in RENAMED]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg.merge_from_file(str(file))
    messages = [str(w.message) for w in caught if "is now called" in str(w.message)]
    assert sorted(m.split()[0] for m in messages) == sorted(old)
    amwc = cfg.MODEL.AMWC
    assert amwc.GRADIENT.LAMBDA_RANGE == [500.0, 5000.0] and amwc.GRADIENT.NUM_SAMPLES == 3
    assert amwc.LOSS.PQ_WEIGHT == 10.0 and amwc.TRAINED_LAYERS == "heads"
    assert amwc.SOLVER.METHOD == "fast" and "PQ_LOSS" not in amwc and "NOISE" not in amwc
    if "RESEARCH" in amwc:
        assert amwc.RESEARCH.NOISE == amwc.RESEARCH.SEPARATE_WEIGHT == 0.0


@pytest.mark.parametrize("name", model_zoo.names())
def test_the_zoo_loads(name):
    assert model_zoo.get_config(name).MODEL.AMWC.LOSS.PQ_WEIGHT > 0


def test_old_names_on_the_command_line(cfg):
    with pytest.warns(FutureWarning, match=r"AMWC.NUM_LAMBDAS is now called .*NUM_SAMPLES"):
        cfg.merge_from_list(["MODEL.AMWC.NUM_LAMBDAS", "7"])
    assert cfg.MODEL.AMWC.GRADIENT.NUM_SAMPLES == 7
    with pytest.warns(FutureWarning, match="AMWC.TWO_SIDED is now called"):
        cfg.merge_from_list(["MODEL.AMWC.TWO_SIDED", 0.5])
    assert cfg.MODEL.AMWC.RESEARCH.TWO_SIDED == 0.5


def test_research_keys_appear_when_they_are_named(cfg, tmp_path):
    assert "RESEARCH" not in cfg.MODEL.AMWC
    file = tmp_path / "research.yaml"
    file.write_text("MODEL: {AMWC: {RESEARCH: {NOISE: 0.25, MISS_WEIGHT: 0.5}}}\nVERSION: 2\n")
    cfg.merge_from_file(str(file))
    assert cfg.MODEL.AMWC.RESEARCH.NOISE == 0.25 and cfg.MODEL.AMWC.RESEARCH.MISS_WEIGHT == 0.5
    copy = cfg.clone()
    copy.merge_from_list(["MODEL.AMWC.RESEARCH.PROXIMAL", 0.1])
    assert (copy.MODEL.AMWC.RESEARCH.PROXIMAL, cfg.MODEL.AMWC.RESEARCH.PROXIMAL) == (0.1, 0.0)


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_keys_without_effect_are_refused_by_name(key, cfg):
    value = get_value(cfg, key)
    cfg.merge_from_list([key, value])  # as a dump of a config does
    other = (not value) if isinstance(value, bool) else value + 5
    with pytest.raises(ValueError, match=re.escape(key) + f" is {other}, but has no effect"):
        cfg.merge_from_list([key, other])


def test_a_key_that_is_gone_is_named(cfg):
    with pytest.raises(ValueError, match=r"FENCHEL_YOUNG_LOSS.NOISE is gone"):
        cfg.merge_from_list(["MODEL.AMWC.FENCHEL_YOUNG_LOSS.NOISE", 0.3])


def test_unknown_keys_stay_errors(cfg, tmp_path):
    file = tmp_path / "typo.yaml"
    file.write_text("MODEL: {AMWC: {SOLVR: 1}}\nVERSION: 2\n")
    with pytest.raises(KeyError, match="SOLVR"):
        cfg.merge_from_file(str(file))
