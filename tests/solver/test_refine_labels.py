"""refine_labels against its definition, pixel by pixel."""

import numpy as np
import pytest

from amwc_d2.solver_cython import refine_labels, refine_labels_batch, solve_amwc


def reference(classes, segments, node_costs, edge_costs, distances, stride, image_size, output_size,
              gamma):  # fmt: skip
    """The rule of ``refine_labels``, read literally; with the margin of every decision."""
    height, width = segments.shape

    def conditional(y, x, segment, category):
        cost = float(node_costs[category, y, x])
        for d, layers in zip(distances, edge_costs):
            if d > 2:
                continue
            for layer, dy, dx in ((0, 0, d), (1, d, 0)):
                for v, u, anchor in ((y + dy, x + dx, (y, x)), (y - dy, x - dx, (y - dy, x - dx))):
                    inside = 0 <= v < height and 0 <= u < width
                    if inside and segments[v, u] == segment:
                        cost -= gamma * float(layers[layer][anchor])
        return cost

    out = np.empty((2, *output_size), np.int32)
    margin = np.full(output_size, np.inf)
    for i, j in np.ndindex(*output_size):
        taps, shares = [], []
        for index, size, length, cells in zip((i, j), image_size, output_size, segments.shape):
            at = np.clip((index + 0.5) * size / length / stride - 0.5, 0, cells - 1)
            taps.append((int(at), min(int(at) + 1, cells - 1)))
            shares.append((1 - (at - int(at)), at - int(at)))
        values = {}
        for y, x in ((y, x) for y in taps[0] for x in taps[1]):
            segment, category = segments[y, x], classes[y, x]
            if (segment, category) not in values:
                values[segment, category] = sum(
                    wy * wx * conditional(v, u, segment, category)
                    for v, wy in zip(taps[0], shares[0])
                    for u, wx in zip(taps[1], shares[1])
                )
        ranked = sorted(values.items(), key=lambda item: item[1])
        out[1, i, j], out[0, i, j] = ranked[0][0]
        if len(ranked) > 1:
            margin[i, j] = ranked[1][1] - ranked[0][1]
    return out, margin


def problem(rng, height, width, distances=(1, 2, 4), K=3):
    node_costs = rng.normal(size=(K, height, width)).astype(np.float32)
    edge_costs = rng.normal(0.3, 1, size=(len(distances), 2, height, width)).astype(np.float32)
    solution = solve_amwc(node_costs, edge_costs, distances, [False] + [True] * (K - 1))
    return node_costs, edge_costs, list(distances), solution


@pytest.mark.parametrize(
    "image_size, output_size",
    [
        ((37, 53), (37, 53)),
        ((37, 53), (19, 90)),  # smaller along one axis, larger along the other
        ((1, 9), (1, 9)),
        ((1, 9), (4, 1)),
        ((24, 32), (100, 61)),  # no multiple of the grid
        ((24, 32), (2, 3)),  # cells that no pixel lies between
    ],
)
@pytest.mark.parametrize("gamma", [0.05, 0.2])
def test_equals_reference(image_size, output_size, gamma):
    rng = np.random.default_rng(7)
    node_costs, edge_costs, distances, solution = problem(rng, *(-(-s // 4) for s in image_size))
    classes, segments = refine_labels(
        solution, node_costs, edge_costs, distances,
        stride=4, image_size=image_size, output_size=output_size, gamma=gamma,
    )  # fmt: skip
    (true_classes, true_segments), margin = reference(
        solution.classes, solution.segments, node_costs, edge_costs, distances, 4, image_size,
        output_size, gamma,
    )  # fmt: skip
    clear = margin > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(segments[clear], true_segments[clear])
    np.testing.assert_array_equal(classes[clear], true_classes[clear])
    of_segment = dict(zip(solution.segments.flat, solution.classes.flat))
    assert all(of_segment[s] == k for s, k in zip(segments.flat, classes.flat))


def test_boundary_follows_the_class_costs():
    # Class 1 wins right of x = 2.75 cells, which is pixel 11 of 16: between nearest's 8 and 12.
    slope = 2.75 - (np.arange(4, dtype=np.float32) + 0.5)
    node_costs = np.stack([np.zeros((4, 4), np.float32), np.tile(slope, (4, 1))])
    labels = (node_costs[1] < 0).astype(np.int32)
    _, segments = refine_labels(
        (labels, labels), node_costs, np.zeros((0, 2, 4, 4), np.float32), [],
        stride=4, image_size=(16, 16), output_size=(16, 16), gamma=0.2,
    )  # fmt: skip
    np.testing.assert_array_equal(segments, np.tile(np.arange(16) >= 11, (16, 1)))


def test_batch_of_mixed_sizes_on_any_number_of_threads():
    rng = np.random.default_rng(3)
    sizes = [(37, 53), (1, 9), (64, 8), (5, 5)]
    problems = [problem(rng, *(-(-s // 4) for s in size)) for size in sizes]
    node_costs, edge_costs, distances, solutions = zip(*problems)
    shared = dict(stride=4, gamma=0.2)
    alone = [
        refine_labels(s, n, e, distances[0], image_size=size, output_size=size[::-1], **shared)
        for s, n, e, size in zip(solutions, node_costs, edge_costs, sizes)
    ]
    for threads in (1, 3):
        together = refine_labels_batch(
            solutions, node_costs, edge_costs, distances[0],
            image_sizes=sizes, output_sizes=[s[::-1] for s in sizes], num_threads=threads, **shared,
        )  # fmt: skip
        for a, b in zip(alone, together):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image_size=(40, 53)), r"image_size: \(40, 53\) at stride 4 has \(10, 14\) cells"),
        (dict(output_size=(0, 5)), "output_size: expected"),
        (dict(output_size=(5.0, 5)), "output_size: expected integers"),
        (dict(gamma=-1), "gamma"),
        (dict(gamma=float("nan")), "gamma"),
        (dict(stride=0), "stride"),
    ],
)
def test_wrong_arguments(change, message):
    node_costs, edge_costs, distances, solution = problem(np.random.default_rng(0), 9, 14)
    arguments = dict(stride=4, image_size=(36, 53), output_size=(36, 53), gamma=0.2)
    with pytest.raises((ValueError, TypeError), match=message):
        refine_labels(solution, node_costs, edge_costs, distances, **{**arguments, **change})
