"""Segmentation from affinities, as bioimage analysis has them: probabilities, channel first.

Shapes: O offsets, H x W pixels; what is said of (H, W) holds for volumes (D, H, W).
"""

import numpy as np

from amwc_d2.solver_cython import solve_amwc


def affinities_to_costs(affinities, beta=0.5, least=1e-3):
    """Edge costs of affinities: the logit of "same segment", shifted by a prior.

    Args:
        affinities: float (O, H, W) in [0, 1], 1 = same segment. With offset (dy, dx) of channel o,
            ``affinities[o, y, x]`` is that of the pixels (y, x) and (y + dy, x + dx).
        beta: prior probability of a boundary, in (0, 1); lower joins more.
        least: affinities are moved into [least, 1 - least], so that costs are finite.

    Returns:
        float32, same shape: ``log(a / (1 - a)) + log((1 - beta) / beta)``.

    Raises:
        ValueError, TypeError: affinities are no probabilities, or beta or least no fraction.
    """
    affinities = _probabilities("affinities", affinities)
    if not 0 < beta < 1:
        raise ValueError(f"beta: expected a number in (0, 1), got {beta!r}")
    if not 0 < least < 0.5:
        raise ValueError(f"least: expected a number in (0, 0.5), got {least!r}")
    a = affinities.clip(least, 1 - least)
    return (np.log(a / (1 - a)) + np.log((1 - beta) / beta)).astype(np.float32)


def segment_affinities(
    affinities, offsets, *, foreground=None, beta=0.5, method="fast", **constraints
):
    """Segments an image or volume by its affinities: a multicut, with background if given.

    Args:
        affinities, beta: as in :func:`affinities_to_costs`.
        offsets: O offsets (dy, dx) or (dz, dy, dx), any signs, one for each channel.
        foreground: float (H, W) in [0, 1], probability that a pixel is of an object. Background is
            then one segment, connected or not; without it every pixel is of an object.
        method, constraints: as in :func:`solve_amwc`: mask, seeds, must_link, ...

    Returns:
        int32 (H, W): 1, 2, ... for the objects in the order of their first pixel, 0 for background
        and what is outside a mask.

    Raises:
        ValueError, TypeError: as :func:`affinities_to_costs` and :func:`solve_amwc`.
    """
    edge_costs = affinities_to_costs(affinities, beta)
    shape = edge_costs.shape[1:]
    if foreground is None:
        node_costs, things = np.zeros((1, *shape), np.float32), [True]
    else:
        p = _probabilities("foreground", foreground).clip(1e-3, 1 - 1e-3)
        if p.shape != shape:
            raise ValueError(f"foreground: expected shape {shape}, got {p.shape}")
        node_costs, things = -np.log(np.stack([1 - p, p])).astype(np.float32), [False, True]
    solution = solve_amwc(node_costs, edge_costs, offsets, things, method, **constraints)
    object_of = np.zeros(int(solution.segments.max()) + 1, np.int32)
    objects = np.array(things)[solution.segment_classes]
    object_of[objects] = np.arange(1, objects.sum() + 1)
    return np.where(solution.segments < 0, np.int32(0), object_of[solution.segments])


def _probabilities(name, array):
    array = np.asarray(array)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{name}: expected floats in [0, 1], got {array.dtype}; divide integers by their "
            f"maximum"
        )
    low, high = (array.min(), array.max()) if array.size else (0, 1)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name}: expected probabilities in [0, 1], got [{low}, {high}]; logits are edge "
            f"costs: "
            "pass them to solve_amwc"
        )
    return array
