"""Adapters for affinities, and the notebook that shows them."""

import json

import numpy as np
import pytest

from amwc_d2.solver_cython import solve_amwc
from amwc_d2.solver_cython.affinities import affinities_to_costs, segment_affinities

OFFSETS = [(-1, 0), (0, -1), (2, 3)]


def _affinities(seed, shape=(20, 30)):
    return np.random.default_rng(seed).random((len(OFFSETS), *shape), np.float32)


def test_costs_are_logits_with_a_prior():
    affinities = np.array([[[0.0, 0.25, 0.5, 1.0]]])
    costs = affinities_to_costs(affinities)
    assert costs.dtype == np.float32
    np.testing.assert_allclose(costs.ravel(), [-6.906755, -1.098612, 0, 6.906755], rtol=1e-5)
    assert (affinities_to_costs(affinities, beta=0.25) > costs).all()


def test_segments_are_those_of_the_solver_and_background_is_zero():
    affinities = _affinities(0)
    solution = solve_amwc(
        np.zeros((1, 20, 30), np.float32), affinities_to_costs(affinities), OFFSETS, [True]
    )
    np.testing.assert_array_equal(segment_affinities(affinities, OFFSETS), solution.segments + 1)
    foreground = np.full((20, 30), 0.95)
    foreground[:, 10:] = 0.001
    mask = np.ones((20, 30), bool)
    mask[:3] = False
    weak = 0.4 + 0.2 * affinities  # the foreground decides
    labels = segment_affinities(weak, OFFSETS, foreground=foreground, mask=mask)
    assert (labels[:, 12:] == 0).all() and (labels[:3] == 0).all() and labels.max() > 0
    ids = np.unique(labels)
    np.testing.assert_array_equal(ids, np.arange(len(ids)))


def test_a_perfect_volume():
    blocks = np.indices((4, 6, 8))[2] // 4
    offsets = [(1, 0, 0), (0, -1, 0), (0, 0, 1)]
    same = [blocks == np.roll(blocks, [-o for o in offset], (0, 1, 2)) for offset in offsets]
    labels = segment_affinities(np.array(same, np.float32), offsets)
    np.testing.assert_array_equal(labels, blocks + 1)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"affinities": np.zeros((3, 4, 4), np.uint8)}, TypeError, "divide integers"),
        ({"affinities": np.full((3, 4, 4), 1.5)}, ValueError, r"in \[0, 1\].*logits"),
        ({"affinities": np.full((3, 4, 4), np.nan)}, ValueError, r"in \[0, 1\]"),
        ({"beta": 0}, ValueError, "beta"),
        ({"foreground": np.zeros((4, 5))}, ValueError, "foreground: expected shape"),
        ({"offsets": OFFSETS[:2]}, ValueError, "edge_costs: expected shape"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {"affinities": np.zeros((3, 4, 4), np.float32), "offsets": OFFSETS, **change}
    with pytest.raises(error, match=message):
        segment_affinities(**given)


def test_the_notebook_runs(repository, monkeypatch, capsys):
    """Every cell, in order, in one namespace; pictures are drawn to nowhere."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((repository / "docs/affinities.ipynb").read_text(encoding="utf-8"))
    names = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert "segments for" in capsys.readouterr().out
    assert names["bound"] <= names["objective"](names["labels"])
