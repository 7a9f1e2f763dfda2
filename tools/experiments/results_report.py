#!/usr/bin/env python3
"""Write docs/results.md from the JSON of reproduce.py and check_gradient.py.

The page holds the answer; every other table and plot goes to its appendix, results/appendix.md.

    tools/experiments/results_report.py --output docs/results.md \\
        --results output/reproduce/toy/results.json output/reproduce/dsb2018/results.json \\
        --search output/reproduce/toy/search.json --gradient toy.json dsb2018.json
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from experiment_rows import ROWS
from tabulate import tabulate

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS = {
    "PQ": "panoptic_seg/PQ",
    "PQ_th": "panoptic_seg/PQ_th",
    "PQ_st": "panoptic_seg/PQ_st",
    "AP": "segm/AP",
    "mIoU": "amwc/mIoU",
}
CURVES = ("N = 1", "N = 5")
# What the answer rests on: the first row against each of the others.
ANSWER = ("end to end", ("baseline", "calibrated", "continued cross-entropy", "separate losses"))
APPENDIX_MARK = "<!-- appendix -->\n"  # in the notes: what follows goes there


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--results", nargs="*", default=[], help="results.json of reproduce.py")
    parser.add_argument("--search", nargs="*", default=[], help="search.json of reproduce.py")
    parser.add_argument("--notes", type=Path, default=Path("docs/results/notes.md"))
    parser.add_argument("--gradient", nargs="*", default=[], help="--json of check_gradient.py")
    return parser


def table(rows, headers):
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def interval(bounds):
    return "" if bounds is None else f"[{bounds[0]:+.2f}, {bounds[1]:+.2f}]"


def mean_of(values) -> str:
    """Two decimals; empty where a run has no value (None stands for NaN in JSON)."""
    return "" if any(v is None for v in values) else f"{np.mean(values):.2f}"


def rows_in_order(runs):
    """As reproduce.py lists them; others after those, as they come."""
    found = list(dict.fromkeys(run["row"] for run in runs))
    return sorted(found, key=lambda row: (*ROWS, row).index(row))


def runs_table(results, rows=None) -> str:
    """One line for each of ``rows`` (None: all): the mean over its seeds."""
    lines = []
    for row in rows_in_order(results["runs"]):
        if rows is not None and row not in rows:
            continue
        runs = [run for run in results["runs"] if run["row"] == row]
        means = [mean_of([r["metrics"].get(key) for r in runs]) for key in METRICS.values()]
        lines.append([row, len(runs), *means])
    ceiling = results["ceiling"]
    if ceiling:
        lines.append(["grid ceiling", "", *(f"{ceiling[k]:.2f}" for k in ("PQ", "PQ_th", "PQ_st"))])
    return table(lines, ["", "runs", *METRICS])


def differences_table(differences) -> str:
    """Paired differences of PQ with both intervals, and of the other metrics over the seeds."""
    lines = []
    for d in differences:
        each = d["PQ"]["each"]
        lines.append(
            [
                f"{d['ours']} - {d['base']}",
                f"{d['PQ']['mean']:+.2f}",
                interval(d["PQ"]["images"]),
                interval(d["PQ"]["seeds"]),
                f"{sum(v > 0 for v in each)} of {len(each)}",
                *(
                    f"{d[key]['mean']:+.2f} {interval(d[key]['images'] or d[key]['seeds'])}"
                    if key in d
                    else ""  # NaN in one of the runs
                    for key in ("PQ_th", "PQ_st", "AP", "mIoU")
                ),
            ]
        )
    headers = ["difference", "PQ", "95 %, images", "95 %, seeds", "better", "PQ_th", "PQ_st"]
    return table(lines, [*headers, "AP", "mIoU"])


def cost_table(results) -> str:
    """Seconds of a cached step, the solver's part of it, memory, and how much moved."""
    lines = []
    for row in rows_in_order(results["runs"]):
        runs = [
            r["figures"] for r in results["runs"] if r["row"] == row and "seconds" in r["figures"]
        ]
        if not runs:
            continue
        seconds = {k: np.mean([r["seconds"][k] for r in runs]) for k in runs[0]["seconds"]}
        solver = seconds["solver_forward"] + seconds["solver_backward"]
        growth = [r["memory"][-1] - r["memory"][len(r["memory"]) // 2] for r in runs]
        lines.append(
            [
                row,
                f"{seconds['step']:.3f}",
                f"{seconds['solver_forward']:.3f}",
                f"{seconds['solver_backward']:.3f}",
                f"{100 * solver / seconds['step']:.0f}",
                f"{100 * np.mean([r['flip_rate'] for r in runs]):.2f}",
                f"{max(growth):.0f}",
            ]
        )
    headers = [
        "",
        "s per step",
        "solver forward",
        "solver backward",
        "solver %",
        "% of cells moved",
    ]
    return table(lines, [*headers, "MiB more in the second half"])


def plot_curves(results, path) -> bool:
    """Loss on fixed held-back crops against steps, mean and range over seeds."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    drawn = False
    for row in CURVES:
        curves = [r["figures"]["curve"] for r in results["runs"] if r["row"] == row]
        if not curves:
            continue
        steps = [step for step, _ in curves[0]]
        values = np.array([[value for _, value in curve] for curve in curves])
        axes.plot(steps, values.mean(0), label=f"{row}, runs: {len(curves)}")
        axes.fill_between(steps, values.min(0), values.max(0), alpha=0.2)
        drawn = True
    axes.set_xlabel("stage-2 step")
    axes.set_ylabel("loss on fixed held-back crops")
    if drawn:
        axes.legend()
        figure.tight_layout()
        figure.savefig(path, dpi=120)
    plt.close(figure)
    return drawn


def gradient_section(path) -> str:
    g = json.loads(Path(path).read_text())
    rows = [
        [
            name + (" (default)" if name == g["default"] else ""),
            f"{g['null_max_abs'][name]:.3g}",
            *(f"{g[key][name]:+.3f}" for key in ("alignment", "alignment_edges",
                                                 "alignment_classes")),
            f"{g['magnitude'][name]:.2f}",
            f"{100 * g['flip_rate'][name]:.2f}",
        ]
        for name in g["alignment"]
    ]  # fmt: skip
    headers = ["estimator", "null test", "cosine", "edges", "classes", "size", "% moved"]
    return "\n".join(
        [
            f"{g['images']} training images, {len(g['directions'])} directions, lambda uniform "
            f"on {g['lambda_range']}, two-sided {g['two_sided']}, N = {g['num_lambdas']}, "
            f"{g['batch']} images a loss; finite differences against "
            f"themselves at half the step: {g['finite_differences_repeat']:.3f}. Commit "
            f"{g['commit']}, `tools/experiments/check_gradient.py --config-file "
            f"{_relative(g['config'])}`.",
            "",
            table(rows, headers),
            "",
        ]
    )


def _relative(path) -> str:
    """A path below the repository, from its root."""
    parts = Path(path).parts
    return str(Path(*parts[parts.index("configs") :])) if "configs" in parts else str(path)


def results_head(results) -> list[str]:
    name = results["dataset"]
    found = dict.fromkeys(run.get("commit", results["commit"]) for run in results["runs"])
    commits = " and ".join(found)
    return [
        f"### {name}",
        "",
        f"{results['test_images']} images of `{results['test']}`, commit {commits}, "
        f"`tools/experiments/reproduce.py {name}{' --search' if results['search'] else ''}"
        f"{' --quick' if results['quick'] else ''}`. Means over runs.",
        "",
    ]


def differences_part(differences) -> list[str]:
    if not differences:
        return []
    head = "Differences of paired runs; *better*: runs in which the first is."
    return [head, "", differences_table(differences), ""]


def answer_section(path) -> str:
    results = json.loads(Path(path).read_text())
    ours, bases = ANSWER
    differences = [d for d in results["differences"] if d["ours"] == ours and d["base"] in bases]
    lines = [*results_head(results), runs_table(results, (ours, *bases)), ""]
    return "\n".join(lines + differences_part(differences))


def results_section(path, folder: Path) -> str:
    results = json.loads(Path(path).read_text())
    lines = [*results_head(results), runs_table(results), ""]
    lines += differences_part(results["differences"])
    if any("seconds" in run["figures"] for run in results["runs"]):
        lines += ["Costs of a stage-2 step on cached features.", "", cost_table(results), ""]
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / f"{results['dataset']}_curves.png"
    if plot_curves(results, plot):
        lines += [f"![N = 1 and N = 5]({plot.name})", ""]
    return "\n".join(lines)


HEAD = """# Learning through the solver: results

Every comparison stands beside two controls: *calibrated*, stage 1 with fitted cost scales and
offsets, and *continued cross-entropy*, stage 1's losses on the same layers for as many steps.
"95 %, images" is a bootstrap over the images, "95 %, seeds" Student's interval over the runs.

The [appendix](results/appendix.md) has every other row, the costs of a step, the alignment of the
gradient and the searches. Both pages are made by `tools/experiments/results_report.py` from the
JSON that the commands below wrote; not edited by hand.
"""

APPENDIX_HEAD = """# Results: appendix

Every row, table and search behind [../results.md](../results.md), made with it.
"""


def main(args):
    folder = args.output.with_suffix("")
    notes, _, more_notes = (args.notes.read_text() if args.notes.exists() else "").partition(
        APPENDIX_MARK
    )
    answer = [
        HEAD,
        "## Does it pay? Validation images\n",
        *(answer_section(path) for path in args.results),
        notes,
    ]
    appendix = [APPENDIX_HEAD]
    if args.gradient:
        appendix.append("## Does the gradient point the right way?\n")
        appendix += [gradient_section(path) for path in args.gradient]
    for title, paths in (
        ("## Does it pay? Validation images", args.results),
        ("## What was tried, on images held back from training", args.search),
    ):
        if paths:
            appendix.append(title + "\n")
            appendix += [results_section(path, folder) for path in paths]
    appendix.append(more_notes)
    folder.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(answer).rstrip() + "\n")
    (folder / "appendix.md").write_text("\n".join(appendix).rstrip() + "\n")


if __name__ == "__main__":
    main(get_parser().parse_args())
