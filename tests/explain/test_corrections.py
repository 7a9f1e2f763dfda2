"""Corrections on the region graph: what each tool does, and that the page's solver is the same."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from amwc_d2.explain import RegionGraph, correct, easiest_changes
from amwc_d2.solver_cython import solve_amwc_graph


def graph_of(class_costs, pairs, pair_costs, partitionable, segments, classes):
    """A region graph with one distance; positive costs are attraction."""
    pair_costs = np.asarray(pair_costs, float)[:, None]
    return RegionGraph(
        pieces=np.arange(len(class_costs), dtype=np.int32)[None],
        distances=(1,),
        partitionable=np.asarray(partitionable, bool),
        class_costs=np.asarray(class_costs, float),
        areas=np.ones(len(class_costs), np.int64),
        pairs=np.asarray(pairs),
        attraction=pair_costs.clip(min=0),
        repulsion=pair_costs.clip(max=0),
        edges=np.ones_like(pair_costs, dtype=np.int64),
        classes=np.asarray(classes, np.int32),
        segments=np.asarray(segments, np.int32),
    )


@pytest.fixture
def row():
    """Six pieces in a row: background, four pieces of one thing, background. Class 0 is stuff."""
    class_costs = [[0, 5, 9], *[[5, 0, 3]] * 4, [0, 5, 9]]
    pairs = [[i, i + 1] for i in range(5)]
    return graph_of(
        class_costs, pairs, [-2, 3, 1, 4, -2], [0, 1, 1], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]
    )


def action(tool, *pieces, k=None):
    return {"tool": tool, "pieces": list(pieces)} | ({} if k is None else {"class": k})


def test_nothing_asked_nothing_changed(row):
    result = correct(row)
    np.testing.assert_array_equal(result.segments, [0, 1, 1, 1, 1, 0])
    assert result.objective == row.objective(row.classes, row.segments) == -4


def test_split_cuts_the_weakest_link_between_the_seeds(row):
    result = correct(row, [action("split", 1, 4)])
    np.testing.assert_array_equal(result.segments, [0, 1, 1, 2, 2, 0])
    assert result.objective == -4 + 1
    three = correct(row, [action("split", 1, 3, 4)])
    np.testing.assert_array_equal(three.segments, [0, 1, 1, 2, 3, 0])


def test_merge_joins_things_and_gives_a_thing_to_stuff(row):
    split = action("split", 1, 4)
    back = correct(row, [action("split", 1, 4)] * 1 + [action("class", 1, k=2)])
    np.testing.assert_array_equal(back.classes, [0, 2, 2, 1, 1, 0])
    gone = correct(row, [split, action("merge", 4, 5)])
    np.testing.assert_array_equal(gone.segments, [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(gone.classes, [0, 1, 1, 0, 0, 0])
    joined = correct(row, [action("carve", 5, k=1), action("merge", 5, 1)])
    np.testing.assert_array_equal(joined.segments, [0, 1, 1, 1, 1, 1])


def test_a_class_given_by_hand_outlives_later_actions(row):
    result = correct(row, [action("class", 2, k=2), action("split", 1, 4)])
    np.testing.assert_array_equal(result.classes, [0, 2, 2, 2, 2, 0])


def test_stuff_has_one_segment(row):
    result = correct(row, [action("carve", 2, k=0)])
    np.testing.assert_array_equal(result.segments, [0, 1, 0, 1, 1, 0])


def test_a_missed_object_is_carved_out_of_the_background(row):
    result = correct(row, [action("split", 0, 1)])  # of stuff the seed's piece only
    np.testing.assert_array_equal(result.segments, [0, 1, 1, 1, 1, 2])
    assert result.classes[0] == 1 and result.classes[5] == 0


@pytest.mark.parametrize(
    "actions, message",
    [
        ([action("merge", 1, 2)], "action 1: both points are in one segment already"),
        ([action("split", 1, 1)], "action 1: two of the points are in one piece"),
        ([action("split", 1, 4), action("merge", 1, 4)], r"action 2: it undoes action 1 \(split\)"),
        ([action("class", 1, k=3)], "action 1: classes are 0 to 2, got 3"),
        ([action("split", 1)], "action 1: 'split' needs 2 or more points, got 1"),
        ([action("merge", 0, 6)], "action 1: pieces are 0 to 5"),
        ([action("join", 0, 1)], "action 1: expected a tool among"),
    ],
)
def test_what_is_wrong_is_said(row, actions, message):
    with pytest.raises(ValueError, match=message):
        correct(row, actions)


def test_offsets_solve_again_and_keep_the_better(row):
    apart = correct(row, distance_offsets=[-3.5])
    np.testing.assert_array_equal(apart.segments, [0, 1, 2, 3, 3, 0])
    assert apart.objective < row.objective(row.classes, row.segments, None, [-3.5])


def random_graph(rng):
    pieces, classes, distances = rng.integers(2, 30), rng.integers(1, 5), rng.integers(1, 4)
    first, second = np.triu_indices(pieces)
    kept = (rng.random(len(first)) < 4 / pieces) | (first == second)
    pairs = np.stack([first[kept], second[kept]], axis=1)
    partitionable = rng.random(classes) < 0.6
    class_costs = rng.normal(0, 3, (pieces, classes)).round(3)
    attraction, repulsion = np.abs(rng.normal(0, 2, (2, len(pairs), distances))).round(3)
    edges = rng.integers(0, 6, attraction.shape)
    edges[:, -1] += 1
    between = pairs[:, 0] != pairs[:, 1]
    start = solve_amwc_graph(
        class_costs.astype(np.float32), pairs[between],
        (attraction - repulsion).sum(axis=1)[between].astype(np.float32), partitionable,
    )  # fmt: skip
    return RegionGraph(
        pieces=np.zeros((1, 1), np.int32),
        distances=tuple(range(1, distances + 1)),
        partitionable=partitionable,
        class_costs=class_costs,
        areas=rng.integers(1, 9, pieces),
        pairs=pairs,
        attraction=attraction,
        repulsion=-repulsion,
        edges=edges,
        classes=start.classes,
        segments=start.segments,
    )


def random_case(rng):
    """A graph, actions most of which are possible, and offsets, often none."""
    graph = random_graph(rng)
    pieces, classes = graph.class_costs.shape
    actions = []
    for _ in range(rng.integers(0, 6)):
        tool = str(rng.choice(["merge", "split", "class", "carve"]))
        count = {"merge": 2, "split": int(rng.integers(2, 4))}.get(tool, 1)
        new = action(tool, *rng.integers(0, pieces, count).tolist())
        if count == 1:
            new["class"] = int(rng.integers(classes))
        try:
            correct(graph, [*actions, new])
        except ValueError:
            if rng.random() < 0.9:
                continue
        actions.append(new)
    offsets = [
        (rng.normal(0, 0.5, n) * (rng.random() < 0.5)).round(2).tolist()
        for n in (classes, len(graph.distances))
    ]
    return graph, actions, *offsets


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_pages_solver_is_the_same(count, repository, tmp_path):
    rng = np.random.default_rng(count)
    cases = [random_case(rng) for _ in range(count)]
    inputs = tmp_path / "cases.json"
    inputs.write_text(json.dumps([[case[0].to_dict(), *case[1:]] for case in cases]))
    script = tmp_path / "run.js"
    script.write_text(
        (repository / "amwc_d2/explain/html/graph.js").read_text()
        + """
        const cases = JSON.parse(require("fs").readFileSync(process.argv[2]));
        console.log(JSON.stringify(cases.map((given) => {
          try {
            const state = correct(...given);
            const zero = given[2].every((v) => v === 0) && given[3].every((v) => v === 0);
            const changes = [...new Set(state.segments)].map((s) => easiestChange(state, s));
            return [state.classes, state.numbered(), state.objective(), zero &&
              changes.map((c) => [c.change, c.change === "none" ? null : c.energy, c.weight])];
          } catch (error) {
            if (!(error instanceof RangeError)) throw error;
            return error.message;
          }
        })));"""
    )
    done = subprocess.run(["node", script, inputs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    refused = 0
    for case, (graph, *given) in enumerate(cases):
        try:
            expected = correct(graph, *given)
        except ValueError as error:
            refused += 1
            assert found[case] == str(error)
            continue
        classes, segments, objective, changes = found[case]
        np.testing.assert_array_equal(classes, expected.classes, err_msg=f"case {case}")
        np.testing.assert_array_equal(segments, expected.segments, err_msg=f"case {case}")
        assert objective == pytest.approx(expected.objective, rel=1e-9, abs=1e-9)
        if changes:
            for (kind, energy, weight), change in zip(changes, easiest_changes(graph, expected)):
                assert (kind, weight) == (change.kind, change.weight)
                assert kind == "none" or energy == pytest.approx(change.energy, rel=1e-9, abs=1e-9)
    assert refused < 0.2 * count
