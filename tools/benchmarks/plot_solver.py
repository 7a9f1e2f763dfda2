#!/usr/bin/env python
"""Draw the pictures of docs/benchmarks/solver.md from the benchmark's figures.

python tools/benchmarks/benchmark_solver.py --json solver.json
python tools/benchmarks/plot_solver.py solver.json --output docs/benchmarks
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from PIL import Image
from solver_instances import make_instance

from amwc_d2.solver_cython import solve_amwc

MARKS = "<!-- figures -->", "<!-- end of figures -->"
STYLE = {
    "fast": ("tab:red", "fast"),
    "greedy": ("tab:blue", "greedy (Algorithm 2)"),
    "best": ("tab:purple", "best"),
    "mutex_watershed": ("tab:gray", "mutex watershed"),
    "semantic_mutex_watershed": ("tab:olive", "semantic mutex watershed"),
    "greedy_multicut": ("tab:brown", "greedy multicut"),
}


def save(figure, path):
    """Save with a palette of 64 colours: small files, and nothing here needs more."""
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
    with Image.open(path) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def draw_segments(axes, classes, segments, partitionable):
    """One hue a class, one shade a thing, black where segments meet."""
    rng = np.random.default_rng(3)
    base = plt.get_cmap("tab20")(np.arange(len(partitionable)) % 20)[:, :3]
    shade = rng.uniform(0.55, 1.25, segments.max() + 1)[segments]
    image = base[classes] * np.where(partitionable[classes], shade, 0.9)[..., None]
    border = np.zeros(segments.shape, bool)
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    border[1:] |= segments[1:] != segments[:-1]
    image[border] = 0
    axes.imshow(image.clip(0, 1), interpolation="nearest")


def example(path):
    """What goes in, and what Algorithm 2 and the fast solver make of it."""
    instance = make_instance("street", 128, 256, 4, "medium")
    cheapest = instance.node_costs.argmin(0)
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.6))
    draw_segments(axes[0, 0], cheapest, cheapest, instance.partitionable)
    axes[0, 0].set_title("node costs: cheapest class of every pixel", fontsize=10)
    costs = instance.edge_costs[0].mean(0)
    axes[0, 1].imshow(costs, cmap="RdBu", vmin=-5, vmax=5, interpolation="nearest")
    axes[0, 1].set_title("edge costs, d = 1: blue attracts, red repels", fontsize=10)
    for panel, method in zip(axes[1], ("greedy", "fast")):
        solution = solve_amwc(*instance.problem, method=method)
        draw_segments(panel, solution.classes, solution.segments, instance.partitionable)
        count = solution.segments.max() + 1
        panel.set_title(
            f"{STYLE[method][1]}: objective {solution.objective:.0f}, {count} segments", fontsize=10
        )
    for panel in axes.ravel():
        panel.axis("off")
    figure.tight_layout()
    save(figure, path)


def scaling(rows, path):
    """Time over pixels on logarithmic axes."""
    figure, axes = plt.subplots(figsize=(7, 4.4))
    for method, (colour, label) in STYLE.items():
        points = [(r["pixels"], r[method]) for r in rows if method in r]
        if points:
            axes.plot(*np.array(points).T, "o-", color=colour, label=label)
    two = np.array([(r["pixels"], r["walls_ms"][1]) for r in rows])
    axes.plot(*two.T, "o:", color=STYLE["fast"][0], label="fast, 2 threads: wall time")
    floor = np.array([(r["pixels"], r["floor_ms"]) for r in rows])
    axes.plot(*floor.T, "k--", label="reading the costs once")
    axes.set(xscale="log", yscale="log", xlabel="pixels", ylabel="CPU ms, one thread")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    save(figure, path)


def tradeoff(rows, path):
    """Certified gap over time, one panel an instance."""
    names = list(dict.fromkeys(r["instance"] for r in rows))
    figure, panels = plt.subplots(
        1, len(names), figsize=(3.2 * len(names), 3.2), squeeze=False, sharex=True, sharey=True
    )
    for axes, name in zip(panels[0], names):
        for row in rows:
            if row["instance"] == name and row["method"] in STYLE:
                colour, label = STYLE[row["method"]]
                axes.plot(row["ms"], row["gap"], "o", color=colour, label=label)
        axes.set(xscale="log", yscale="log", xlabel="CPU ms, one thread")
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    panels[0, 0].set_ylabel("certified gap, % of the objective")
    shown = dict(zip(*panels[0, -1].get_legend_handles_labels()[::-1]))
    figure.legend(shown.values(), shown.keys(), loc="lower center", ncol=len(shown), fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    save(figure, path)


def markdown(data):
    """The figures as Markdown tables."""
    lines = []
    for name in dict.fromkeys(r["instance"] for r in data["table"]):
        rows = [r for r in data["table"] if r["instance"] == name]
        lines += [
            f"**{name}** (input {rows[0]['input'] / 2**20:.1f} MiB, read once in "
            f"{rows[0]['floor_ms']:.2f} ms)",
            "",
            "| method | ms | +- | extra MiB | objective | gap % | removed % | PQ |",
            "| --- | --: | --: | --: | --: | --: | --: | --: |",
        ]
        for r in rows:
            memory = "-" if r["memory"] is None else f"{r['memory'] / 2**20:.1f}"
            quality = f"closes {100 * r['closed']:.1f} % | | " if "closed" in r else ""
            quality = quality or f"{r['gap']:.3f} | {r['removed']:.2f} | {r['pq']:.3f}"
            lines.append(
                f"| {r['method']} | {r['ms']:.2f} | {r['spread']:.2f} | {memory} "
                f"| {r['objective']:.1f} | {quality} |"
            )
        lines.append("")
    lines += ["| what | figure | bar | |", "| --- | --- | --- | --- |"]
    for bar in data["bars"]:
        holds = "holds" if bar["holds"] else "**missed**"
        lines.append(f"| {bar['what']} | {bar['figure']} | {bar['bar']} | {holds} |")
    return "\n".join(lines)


def write_figures(data, path):
    """Replace what stands between the figure marks of a Markdown file."""
    text = path.read_text()
    head, mark, rest = text.partition(MARKS[0] + "\n")
    tail = rest.partition(MARKS[1])[2]
    if not mark or MARKS[1] not in rest:
        raise SystemExit(f"{path}: expected the lines {MARKS[0]} and {MARKS[1]}, found none")
    path.write_text(f"{head}{mark}\n{markdown(data)}\n\n{MARKS[1]}{tail}")
    print(path)


def main(arguments=None):
    """Draw all pictures and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="JSON written by benchmark_solver.py")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args(arguments)
    data = json.loads(options.figures.read_text())
    options.output.mkdir(parents=True, exist_ok=True)
    example(options.output / "solver_example.png")
    scaling(data["scaling"], options.output / "solver_scaling.png")
    tradeoff(data["table"], options.output / "solver_tradeoff.png")
    if (options.output / "solver.md").exists():
        write_figures(data, options.output / "solver.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
