#!/usr/bin/env python
"""Measure the solver: time, memory, objective, certified gap and quality, beside public peers.

    python tools/benchmarks/benchmark_solver.py        # the table, and every bar it can check
    python tools/benchmarks/benchmark_solver.py --sections scaling threads --json scaling.json

Times are CPU seconds of the calling thread: the median of --repeats turns, each the mean of two
runs, one in the order of the table and one backwards, and half the distance between the quartiles.
Ratios are medians of those of each turn, with their quartiles. "removed" is the share of Algorithm
2's excess over the trivial bound (every node its cheapest class, every repulsive edge cut) that a
method removes; "gap" is the certified distance to the optimum, in percent of the objective. The
peers are optional.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from solver_instances import KINDS, city_coco_instance, make_instance, panoptic_quality
from solver_measuring import floor_seconds, measure, peak_extra, ratio, trivial_bound
from solver_peers import HINT, PEERS, segmentation, with_classes

from amwc_d2.solver_cython import (
    amwc_objective,
    lower_bound,
    lower_bound_graph,
    refine_labels,
    solve_amwc,
    solve_amwc_batch,
    solve_amwc_graph,
    solve_mwc,
)

METHODS = ("fast", "greedy", "best")
SIZES = [(64, 128), (128, 256), (256, 512), (512, 1024), (1024, 2048)]
KNOWN = Path(__file__).resolve().parents[2] / "tests/solver/instances"
OTHER_KINDS = ("city", "coco")
INSTANCES = [
    "street_256x512_medium_0",
    "objects_160x160_medium_0",
    "city_256x512_medium_0",
    "coco_160x160_medium_0",
    "coco_160x160_medium_1",
]


def instance_of(name):
    """Make the instance named KIND_HxW_LEVEL_SEED, of either generator."""
    match = re.fullmatch(r"([a-z]+)_(\d+)x(\d+)_([a-z]+)_(\d+)", name)
    if not match or match[1] not in (*KINDS, *OTHER_KINDS):
        raise SystemExit(
            f"--instances: expected KIND_HxW_LEVEL_SEED with KIND one of "
            f"{', '.join((*KINDS, *OTHER_KINDS))}, as street_256x512_medium_0; got {name!r}"
        )
    make = make_instance if match[1] in KINDS else city_coco_instance
    return make(match[1], int(match[2]), int(match[3]), int(match[5]), match[4])


def method_call(method, instance):
    """A function of no arguments that runs a method or a peer on an instance."""
    if method in METHODS:
        return lambda: solve_amwc(*instance.problem, method=method)
    if method == "lower_bound":
        return lambda: lower_bound(*instance.problem)
    return PEERS[method](instance)


class Report:
    """Prints as it goes and keeps everything for --json."""

    def __init__(self):
        self.data = {"machine": platform.machine(), "numpy": np.__version__, "bars": []}

    def bar(self, what, figure, bar, holds):
        """Print a figure beside its bar."""
        self.data["bars"].append({"what": what, "figure": figure, "bar": bar, "holds": bool(holds)})
        print(f"  [{'ok' if holds else 'MISSED':>6}] {what}: {figure}  (bar: {bar})", flush=True)


def table(report, options):
    """Methods and peers on every instance."""
    rows = report.data["table"] = []
    for name in options.instances:
        instance = instance_of(name)
        methods = [*METHODS, "lower_bound"]
        if segmentation is not None and options.peers != "none":
            small = instance.classes.size <= 160 * 160
            slow = options.peers == "all" or small
            methods += [m for m in PEERS if slow or m != "greedy_multicut"]
        slowest = {"best", "greedy_multicut", "lower_bound"}
        calls = {m: method_call(m, instance) for m in methods}
        timed = measure({m: c for m, c in calls.items() if m not in slowest}, options.repeats)
        timed |= measure({m: c for m, c in calls.items() if m in slowest}, min(2, options.repeats))
        size = instance.node_costs.nbytes + instance.edge_costs.nbytes
        floor, trivial = floor_seconds(instance), trivial_bound(instance)
        bound, greedy = timed["lower_bound"].result, timed["greedy"].result.objective
        print(
            f"\n{name}: K = {len(instance.node_costs)}, input {size / 2**20:.1f} MiB, read once "
            f"in {floor * 1e3:.2f} ms; trivial bound {trivial:.1f}, bound {bound:.1f}\n"
            f"{'method':26}{'ms':>9}{'+-':>7}{'MiB':>7}{'objective':>14}{'gap %':>8}"
            f"{'removed %':>11}{'PQ':>7}"
        )
        for method in methods:
            one = timed[method]
            memory = peak_extra(partial(method_call, method), instance) if options.memory else None
            row = {"instance": name, "method": method, "ms": one.seconds * 1e3}
            row |= {"memory": memory, "input": size, "floor_ms": floor * 1e3}
            row |= {"spread": one.spread * 1e3, "turns_ms": (one.turns * 1e3).tolist()}
            if method == "lower_bound":
                row["objective"] = bound
                best = min(timed[m].result.objective for m in METHODS)
                row["closed"] = (bound - trivial) / (best - trivial)
                text = f"  closes {100 * row['closed']:.1f} % of the trivial bound's gap"
            else:
                row |= _quality(instance, one.result, bound, greedy, trivial)
                text = f"{row['gap']:8.3f}{row['removed']:11.2f}{row['pq']:7.3f}"
            rows.append(row)
            shown = "-" if memory is None else f"{memory / 2**20:.1f}"
            print(
                f"{method:26}{row['ms']:9.2f}{row['spread']:7.2f}{shown:>7}"
                f"{row['objective']:14.1f}{text}",
                flush=True,
            )
        _table_bars(report, name, {r["method"]: r for r in rows if r["instance"] == name})


def _quality(instance, result, bound, greedy, trivial):
    if isinstance(result, tuple):
        classes, segments, value = result
    else:
        classes, segments = with_classes(instance, result)
        value = amwc_objective(*instance.problem[:3], classes, segments)
    return {
        "objective": value,
        "gap": 100 * (value - bound) / abs(value),
        "removed": 100 * (greedy - value) / (greedy - trivial),
        "pq": panoptic_quality(instance, classes, segments),
    }


def _table_bars(report, name, rows):
    fast, greedy, peer = rows["fast"], rows["greedy"], rows.get("mutex_watershed")
    if peer and "256x512_medium" in name:
        low, times, high = ratio(peer["turns_ms"], fast["turns_ms"])
        shown = f"1/{times:.1f} of mutex watershed (1/{low:.1f} to 1/{high:.1f})"
        report.bar(f"{name}: fast", shown, "1/20", times >= 20)
    if peer:
        low, times, high = ratio(greedy["turns_ms"], peer["turns_ms"])
        shown = f"{times:.2f} x mutex watershed ({low:.2f} to {high:.2f})"
        report.bar(f"{name}: greedy", shown, "1.3 x", times <= 1.3)
    if "160x160" in name:
        low, times, high = ratio(greedy["turns_ms"], fast["turns_ms"])
        shown = f"1/{times:.1f} of greedy (1/{low:.1f} to 1/{high:.1f})"
        report.bar(f"{name}: fast", shown, "1/6", times >= 6)
    if fast["memory"] is not None:
        share = fast["memory"] / fast["input"]
        report.bar(f"{name}: fast, extra memory", f"{share:.2f} x input", "1.5 x", share <= 1.5)
    kind, size, level, seed = name.split("_")
    if kind in OTHER_KINDS:
        known = json.loads((KNOWN / "reference.json").read_text())
        known = known.get(f"{kind}_{size}_{level}_{seed}")
        if known:
            over = fast["objective"] / known["prototype_label_first"] - 1
            shown = f"{fast['objective'] - known['prototype_label_first']:+.1f}"
            report.bar(f"{name}: fast - prototype", shown, "<= 0", over >= -1e-6)
            error = abs(greedy["objective"] / known["algorithm2"] - 1)
            report.bar(f"{name}: greedy = Algorithm 2", f"{error:.1e}", "2e-6", error <= 2e-6)
    report.bar(f"{name}: bound closes", f"{rows['lower_bound']['closed']:.3f}", "stated", True)


def refinement(report, options):
    """Time from labels of cells to labels of pixels, four times as many along each axis."""
    report.data["refinement"] = rows = []
    print("\nrefinement at stride 4")
    for name in options.instances:
        instance = instance_of(name)
        node_costs, edge_costs, distances, _ = instance.problem
        solution = solve_amwc(*instance.problem)
        size = tuple(4 * side for side in solution.segments.shape)
        refine = partial(
            refine_labels, solution, node_costs, edge_costs, distances,
            stride=4, image_size=size, output_size=size, gamma=0.15,
        )  # fmt: skip
        timed = measure({"fast": method_call("fast", instance), "refine": refine}, options.repeats)
        row = {"instance": name, **{m: one.seconds * 1e3 for m, one in timed.items()}}
        low, times, high = ratio(timed["refine"].turns, timed["fast"].turns)
        shown = f"{row['refine']:.2f} ms, {times:.2f} of fast ({low:.2f} to {high:.2f})"
        rows.append(row | {"ratio": times})
        if "256x512_medium" in name:
            report.bar(f"{name}: refinement to {size[0]}x{size[1]}", shown, "0.6", times <= 0.6)
        else:
            print(f"  {name}: {shown}", flush=True)


def scaling(report, options):
    """Time over the number of pixels, and the exponent of its growth."""
    rows = report.data["scaling"] = []
    kind = options.scaling_kind
    print(f"\nscaling, {kind} medium: ms (+- half quartile distance)")
    for height, width in SIZES[: options.scaling_sizes]:
        instance = instance_of(f"{kind}_{height}x{width}_medium_0")
        methods = ["fast", *(["greedy"] if height <= 512 else [])]
        if segmentation is not None and options.peers != "none" and height <= 512:
            methods.append("mutex_watershed")
        timed = measure({m: method_call(m, instance) for m in methods}, min(3, options.repeats))
        share = peak_extra(partial(method_call, "fast"), instance) if options.memory else None
        size = instance.node_costs.nbytes + instance.edge_costs.nbytes
        row = {"pixels": height * width, "floor_ms": floor_seconds(instance) * 1e3}
        row |= {m: timed[m].seconds * 1e3 for m in methods} | {
            "memory_share": share and share / size
        }
        rows.append(row)
        # Two threads seldom read one and the same copy.
        copy = instance._replace(
            node_costs=instance.node_costs.copy(), edge_costs=instance.edge_costs.copy()
        )
        batch = [instance, copy] * 4
        turns = [next(_on_threads(batch)) for _ in range(min(3, options.repeats))]
        row["walls_ms"] = (np.median(turns, 0) / len(batch) * 1e3).tolist()
        text = "  ".join(
            f"{m} {timed[m].seconds * 1e3:.2f} (+-{timed[m].spread * 1e3:.2f})" for m in methods
        )
        text += "  a batch on 1 and 2 threads, wall an image {:.2f} {:.2f}".format(*row["walls_ms"])
        memory = "" if share is None else f"  extra memory of fast {share / size:.2f} x input"
        print(f"  {height}x{width}: {text}  floor {row['floor_ms']:.2f}{memory}", flush=True)
    for method in ("fast", "greedy", "mutex_watershed"):
        points = [(r["pixels"], r[method]) for r in rows if method in r]
        if len(points) > 2:
            slope = np.polyfit(*np.log(np.array(points)).T, 1)[0]
            report.data.setdefault("exponents", {})[method] = slope
            if method == "fast":
                report.bar("growth of fast", f"exponent {slope:.3f}", "1.1", slope <= 1.1)
            else:
                print(f"  growth of {method}: exponent {slope:.3f}")
    if rows and rows[-1]["memory_share"] is not None:
        worst = max(r["memory_share"] for r in rows[1:])
        report.bar("peak extra memory of fast", f"{worst:.2f} x input", "1.5 x", worst <= 1.5)


def _wall(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _compute(_=None):
    """Work for a core that touches no memory and holds no lock."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)


def _compute_on_threads():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_compute, range(2)))


def _on_threads(batch):
    """Wall seconds of a batch on 1 and on 2 threads, and what they return."""
    node, edge = [b.node_costs for b in batch], [b.edge_costs for b in batch]
    solve = partial(solve_amwc_batch, node, edge, *batch[0][2:4])
    return zip(*(_wall(partial(solve, num_threads=n)) for n in (1, 2)))


def threads(report, options):
    """Throughput of a batch on 1 and 2 threads, in wall time, and what the machine has to give."""
    # Many images, so that the last one weighs little: beside it a thread has nothing left to do.
    batch = [make_instance("street", 256, 512, seed, "medium") for seed in range(32)]
    ratios, machine = [], []
    for _ in range(3 * options.repeats):  # wall time is noisier than a thread's
        (one, two), (first, second) = _on_threads(batch)
        ratios.append(one / two)
        machine.append((_wall(_compute)[0] + _wall(_compute)[0]) / _wall(_compute_on_threads)[0])
    same = all(np.array_equal(a.segments, b.segments) for a, b in zip(first, second))
    report.data["threads"] = {"ratios": ratios, "machine": machine, "identical": same}
    print(f"\nthreads: {len(batch)} images, throughput of 2 over 1, {len(ratios)} turns")
    (low, median, high), most = np.percentile(ratios, [25, 50, 75]), np.median(machine)
    shown = f"{median:.2f} x ({low:.2f} to {high:.2f}) on {os.cpu_count()} cores"
    shown += f"; a loop without memory gains {most:.2f} x there"
    report.bar("2 threads", shown, "1.7 x", median >= 1.7)
    report.bar("results on 1 and 2 threads", "identical" if same else "differ", "identical", same)


WARM_SCENES = [
    f"{kind}_{level}_0"
    for kind in ("street_128x256", "objects_128x128")
    for level in ("easy", "medium", "hard")
]


def warm(report, options):
    """Multiway cuts started from a labelling: the inner loop of the backward pass."""
    rows, same, shares = {}, True, []
    report.data["warm"] = rows
    print(
        f"\nwarm start: multiway cut, one label a segment of the forward solution, ms\n"
        f"{'':26}{'labels':>8}{'cold':>8}{'zero':>8}{'local':>8}{'local / cold':>14}"
    )
    for name in WARM_SCENES:
        instance = instance_of(name)
        forward = solve_amwc(*instance.problem)
        segments, edges = forward.segments, (instance.edge_costs, instance.distances)
        _, first = np.unique(segments, return_index=True)
        lifted = np.ascontiguousarray(instance.node_costs[forward.classes.ravel()[first]])
        settled = solve_mwc(lifted, *edges, init=segments).classes
        y, x = segments.shape[0] // 3, segments.shape[1] // 2
        local = lifted.copy()
        local[:, y : y + 20, x : x + 30] += np.random.default_rng(0).normal(
            0, 4, (len(lifted), 20, 30)
        )
        calls = {
            "cold": partial(solve_mwc, local, *edges),
            "zero": partial(solve_mwc, lifted, *edges, init=settled),
            "local": partial(solve_mwc, local, *edges, init=settled),
        }
        timed = measure(calls, options.repeats)
        same &= np.array_equal(timed["zero"].result.classes, settled)
        low, share, high = ratio(timed["local"].turns, timed["cold"].turns)
        shares.append(share)
        rows[name] = {key: one.seconds * 1e3 for key, one in timed.items()} | {"share": share}
        times = "".join(f"{one.seconds * 1e3:8.2f}" for one in timed.values())
        shown = f"{share:.2f} ({low:.2f} to {high:.2f})"
        print(f"  {name:24}{len(lifted):8}{times}  {shown}", flush=True)
    report.bar("zero perturbation", "identical" if same else "differs", "identical", same)
    shown = f"{np.mean(shares):.2f} of a cold solve ({min(shares):.2f} to {max(shares):.2f})"
    report.bar("local perturbation, mean", shown, "1/3", np.mean(shares) <= 1 / 3)


def scenes(report, options):
    """Fast against Algorithm 2 on many seeds."""
    counts, removed = {"better": 0, "equal": 0, "worse": 0}, {}
    kinds = [(kind, level) for kind in KINDS for level in ("easy", "medium", "hard")]
    for number in range(options.scenes):
        kind, level = kinds[number % len(kinds)]
        name = f"{kind}_{'128x256' if kind == 'street' else '128x128'}_{level}_{1000 + number}"
        instance = instance_of(name)
        fast, greedy = (solve_amwc(*instance.problem, method=m).objective for m in METHODS[:2])
        removed[name] = 100 * (greedy - fast) / (greedy - trivial_bound(instance))
        order = "equal" if fast == greedy else "better" if fast < greedy else "worse"
        counts[order] += 1
    report.data["scenes"] = counts | {"removed": removed}
    values = list(removed.values())
    print(
        f"\nscenes: fast against Algorithm 2 on {options.scenes} seeds: {counts}, removed mean "
        f"{np.mean(values):.2f} %, worst {min(values):.2f} %, best {max(values):.2f} %"
    )
    for name, value in removed.items():
        if value < 0:
            print(f"  worse on {name}: {value:.3f} %")
    good = options.scenes - counts["worse"]
    report.bar(
        "fast no worse than Algorithm 2",
        f"{good} of {options.scenes}",
        "99 %",
        good >= 0.99 * options.scenes,
    )


def proven(report, options):
    """Small instances with proven optima."""
    rows = report.data["proven"] = []
    for path in sorted((KNOWN / "proven").glob("*.json")):
        data = json.loads(path.read_text())
        costs = (
            np.array(data["node_costs"], np.float32),
            np.array(data["edges"]),
            np.array(data["edge_costs"], np.float32),
            np.array(data["partitionable"], bool),
        )
        optimum = data["optimum"]
        trivial = costs[0].min(1).sum(dtype=float) + np.minimum(costs[2], 0).sum(dtype=float)
        row = {"name": path.stem, "optimum": optimum, "bound": lower_bound_graph(*costs)}
        row["closed"] = (row["bound"] - trivial) / (optimum - trivial)
        for method in ("greedy", "best"):
            row[method] = solve_amwc_graph(*costs, method=method).objective
        rows.append(row)
    print(f"\nproven: {len(rows)} instances")
    for method in ("greedy", "best"):
        gaps = np.array([r[method] - r["optimum"] for r in rows])
        reached = float(np.mean(gaps <= 1e-4))
        relative = np.mean(gaps / [abs(r["optimum"]) + 1e-9 for r in rows])
        figure = f"optimum on {reached:.0%}, mean gap {gaps.mean():.3f} ({relative:.2%})"
        holds = (reached >= 0.8 or method == "greedy") and gaps.min() >= -1e-4
        report.bar(method, figure, "80 %" if method == "best" else "stated", holds)
    valid = all(r["bound"] <= r["optimum"] + 1e-4 for r in rows)
    closed = [r["closed"] for r in rows]
    figure = f"closes {min(closed):.3f} to {max(closed):.3f}, mean {np.mean(closed):.3f}"
    report.bar("lower bound", figure, "0.5, never above", valid and min(closed) >= 0.5)


SECTIONS = {f.__name__: f for f in (table, refinement, scaling, threads, warm, scenes, proven)}


def parse(arguments):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--instances",
        nargs="+",
        metavar="KIND_HxW_LEVEL_SEED",
        default=INSTANCES,
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--peers",
        choices=["none", "quick", "all"],
        default="quick",
        help="all: greedy multicut on large instances too (15 s a run)",
    )
    parser.add_argument("--scenes", type=int, default=30, metavar="N", help="seeds to compare on")
    parser.add_argument("--scaling-kind", choices=[*KINDS, "city"], default="street")
    parser.add_argument("--scaling-sizes", type=int, default=len(SIZES), metavar="N")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the sections; the exit status says whether every bar held."""
    options, report = parse(arguments), Report()
    if segmentation is None and options.peers != "none":
        print(HINT)
    for name in options.sections:
        SECTIONS[name](report, options)
    missed = [bar["what"] for bar in report.data["bars"] if not bar["holds"]]
    print(
        f"\n{len(report.data['bars']) - len(missed)} bars hold, {len(missed)} missed",
        *missed,
        sep="\n  ",
    )
    if options.json:
        options.json.write_text(json.dumps(report.data, indent=1))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
