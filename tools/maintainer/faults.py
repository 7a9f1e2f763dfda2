#!/usr/bin/env python3
"""Provoke faults in small trainings, and say what became of each: "make faults".

    tools/maintainer/faults.py [--only TEXT] [--write docs/reliability.md]

Every fault is real: processes are killed, disks are full, files are damaged; nothing is simulated
that can be provoked. A fault that loses or falsifies something FAILs, and with it the command. The
fast tests of tests/engine/test_untrusted_input.py, test_resume.py and test_survival.py hold the
same kinds one by one. Needs a POSIX system; a full disk needs the right to mount a tmpfs.
"""

# ruff: noqa: E402, the environment comes before the imports
import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = Path(tempfile.mkdtemp(prefix="amwc_faults_"))
os.environ["DETECTRON2_DATASETS"] = str(WORK / "datasets")
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]

import psutil
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from tabulate import tabulate

from amwc_d2 import register_panoptic_dataset
from amwc_d2.data import loading
from amwc_d2.data.toy_dataset import make_toy_dataset
from amwc_d2.engine.trainer import Trainer
from amwc_d2.evaluation.panoptic_evaluator import AMWCPanopticEvaluator
from amwc_d2.panoptic_seg import AMWCPanoptic

CONFIG = str(REPOSITORY / "configs/Toy-PanopticSegmentation/amwc_R18{}.yaml")
TINY = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0",
        "MODEL.AMWC.GRADIENT.NUM_SAMPLES", "1",
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.CROP.SIZE", "(64,64)",
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16", "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", "16",
        "MODEL.AMWC.TARGET_FLIP_RATE", "0.01", "MODEL.AMWC.CALIBRATION_IMAGES", "0",
        "MODEL.AMWC.STUFF_AREA", "64", "MODEL.WEIGHTS", ""]  # fmt: skip
RUN = ["SOLVER.MAX_ITER", 20, "SOLVER.CHECKPOINT_PERIOD", 4, "TEST.EVAL_PERIOD", 7]
SHORT = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "()"]
TABLE_START, TABLE_END = "<!-- START TABLE -->", "<!-- END TABLE -->"


# ---------------------------------------------------------------------------- running things
class Result:
    """How a run ended: ``status`` (or -signal, or "hang"), its output ``text``, ``seconds``."""

    def __init__(self, status, text, seconds):
        self.status, self.text, self.seconds = status, text, seconds

    @property
    def began(self):
        """The iteration that the training began with."""
        return [int(n) for n in re.findall(r"Starting training from iteration (\d+)", self.text)]

    @property
    def said(self):
        """The last line that looks like an error, for the table."""
        lines = [line for line in self.text.splitlines() if line and not line.startswith(" ")]
        errors = [line for line in lines if "Error" in line or "SystemExit" in line]
        line = re.sub(r"\x1b\[[0-9;]*m|/tmp/\S*/", "", (errors or lines or [""])[-1])
        return line.replace("|", "/")[:150]


def forked(function, timeout=600, limits=()):
    """Run a function in a forked process of its own session; the imports are shared."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        return _forked(function, timeout, limits, log)


def _forked(function, timeout, limits, log):
    sys.stdout.flush()
    start, pid = time.time(), os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        for which, value in limits:
            resource.setrlimit(which, (value, value))
        status = 0
        try:
            function()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
            print("SystemExit:", error.code)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        threading._shutdown()
        os._exit(status)
    status = None
    while status is None and time.time() - start < timeout:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.02)
    if status is None:
        status = "hang"
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    log.seek(0)
    return Result(status, log.read(), time.time() - start)


def main_function(folder, *options, stage=1, flags=(), gpus=0):
    """tools/train_net.py, in this process."""
    file = CONFIG.format("_e2e" if stage == 2 else "")
    arguments = ["--config-file", file, "--num-gpus", str(gpus), *flags, *TINY]
    arguments += [str(o) for o in ("OUTPUT_DIR", folder, *options)]
    torch.manual_seed(0)
    train_net.main(default_argument_parser().parse_args(arguments))


def run(folder, *options, hook=None, timeout=600, limits=(), **keywords):
    """Train in a forked process, where ``hook()`` first prepares the fault."""

    def function():
        if hook:
            hook()
        main_function(folder, *options, **keywords)

    return forked(function, timeout, limits)


def command(folder, *options, flags=(), gpus=0):
    arguments = [sys.executable, REPOSITORY / "tools/train_net.py", "--config-file"]
    arguments += [CONFIG.format(""), "--num-gpus", gpus, "--dist-url", "auto", *flags, *TINY]
    return [str(a) for a in (*arguments, "OUTPUT_DIR", folder, *options)]


def fresh(name):
    folder = WORK / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def last_iteration(folder):
    """The iteration of the checkpoint that ``last_checkpoint`` names, -1 without one."""
    tag = folder / "last_checkpoint"
    if not tag.exists():
        return -1
    return torch.load(folder / tag.read_text(), weights_only=True)["trainer"]["iteration"]


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def same_weights(first, second):
    a, b = weights(first), weights(second)
    return all(torch.equal(a[name], b[name]) for name in a)


_references = {}


def reference(stage, options=tuple(RUN)):
    """OUTPUT_DIR of a run that nothing disturbs."""
    if (stage, options) not in _references:
        folder = fresh(f"reference_{len(_references)}")
        result = run(folder, *options, stage=stage)
        assert result.status == 0, result.text[-2000:]
        _references[stage, options] = folder
    return _references[stage, options]


# ---------------------------------------------------------------------------- moments
def at_step(number, action):
    """Do ``action`` before step ``number``."""
    step = Trainer.run_step

    def run_step(self):
        if self.iter == number:
            action(self)
        return step(self)

    Trainer.run_step = run_step


def at_call(owner, name, number, action):
    """Do ``action`` at the given call of a method, counted from 1."""
    method, calls = getattr(owner, name), [0]

    def call(*args, **keywords):
        calls[0] += 1
        if calls[0] == number:
            action(*args)
        return method(*args, **keywords)

    setattr(owner, name, call)


def send(number, delay=None):
    def action(*args):
        if delay is None:
            os.kill(os.getpid(), number)
        else:
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()

    return action


def raising(error):
    def action(*args):
        raise error

    return action


# ---------------------------------------------------------------------------- the faults
ROWS = []
GROUPS = []


def group(function):
    GROUPS.append(function)
    return function


def row(fault, ok, happened):
    ROWS.append((fault, happened, "good" if ok else "FAIL"))
    print(f"{'good' if ok else 'FAIL'} | {fault} | {happened}", flush=True)


@group
def kills():
    """kill -9, twenty times, each followed by --resume; then the weights are compared."""
    for stage in (1, 2):
        whole, folder = reference(stage), fresh(f"kills_{stage}")
        rng, last = random.Random(stage), -1
        for number in range(10):
            kind = ("at random", "while writing", "while evaluating")[number % 3]
            seconds, calls = rng.uniform(0.3, 2.0), rng.randint(1, 2)

            def hook(kind=kind, seconds=seconds, calls=calls):
                kill = send(signal.SIGKILL)
                if kind == "at random":
                    at_call(Trainer, "before_train", 1, send(signal.SIGKILL, seconds))
                elif kind == "while writing":
                    at_call(
                        torch, "save", calls, lambda content, file: (file.write(b"half"), kill())
                    )
                else:
                    at_call(AMWCPanopticEvaluator, "process", calls, kill)

            result = run(folder, *RUN, stage=stage, flags=["--resume"], hook=hook)
            begun, now = result.began[-1:], last_iteration(folder)
            ok = result.status in (-9, 0) and begun == [last + 1] and now >= last
            left = f"a whole checkpoint of iteration {now}" if now >= 0 else "no checkpoint yet"
            row(f"kill -9 {kind}, stage {stage} ({number + 1} of 10)", ok,
                f"began at {begun}, left {left}")  # fmt: skip
            last = now
        result = run(folder, *RUN, stage=stage, flags=["--resume"])
        row(f"stage {stage} after ten kills, run to its end",
            result.status == 0 and same_weights(whole, folder),
            "weights equal those of the undisturbed run to the bit"
            if same_weights(whole, folder) else "weights differ")  # fmt: skip


@group
def signals():
    """SIGTERM and Ctrl-C at every moment of a training."""
    moments = {
        "in a step": (1, lambda kill: at_step(5, kill)),
        "in the network": (1, lambda kill: at_call(AMWCPanoptic, "training_logits", 6, kill)),
        "in stage 2": (2, lambda kill: at_step(5, send(kill.number, 0.05))),
        "while a checkpoint is written": (
            1, lambda kill: at_call(torch, "save", 1, send(kill.number, 0.01))),
        "in an evaluation": (1, lambda kill: at_call(AMWCPanopticEvaluator, "process", 3, kill)),
    }  # fmt: skip
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for name, (stage, place) in moments.items():
            whole, folder = reference(stage), fresh("signal")
            kill = send(number)
            kill.number = number
            first = run(folder, *RUN, stage=stage, hook=lambda place=place, kill=kill: place(kill))
            saved = last_iteration(folder)
            second = run(folder, *RUN, stage=stage, flags=["--resume"])
            equal = second.status == 0 and same_weights(whole, folder)
            ok = first.status == status and equal and second.began == [saved + 1]
            row(f"{number.name} {name}", ok,
                f"status {first.status}, saved iteration {saved}, resumed: weights "
                f"{'equal to the bit' if equal else f'DIFFER ({second.status})'}")  # fmt: skip


@group
def two_stages():
    """tools/two_stages.py, killed five times and started again, against an undisturbed run."""
    options = [*TINY[:-2], "SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3"]
    script = [sys.executable, str(REPOSITORY / "tools/two_stages.py"), CONFIG.format("")]

    def start(output, log):
        return subprocess.Popen(
            [*script, "--output", str(output), "--panels", "0", *options], stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip

    def table(output):
        lines = (output / "table.md").read_text().splitlines()
        return [[c.strip() for c in line.split("|")][1:8] for line in lines]  # no times

    whole, folder = fresh("two_stages_whole"), fresh("two_stages_killed")
    with open(WORK / "log", "w") as log:
        start(whole, log).wait()
    for number in range(5):
        with open(WORK / "log", "w") as log:
            process = start(folder, log)
            limit, seen = time.time() + 300, 0
            while process.poll() is None and time.time() < limit:
                seen = (WORK / "log").read_text(errors="replace").count("Saving checkpoint")
                if seen > number % 2 or (folder / "table.md").exists():
                    break
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found = re.findall(r"training from iteration (\d+)", (WORK / "log").read_text())
        anew = (
            number > 0 and found[:1] == ["0"] and "amwc_R18_e2e" not in (WORK / "log").read_text()
        )
        row(f"two_stages.py killed after {seen} checkpoints ({number + 1} of 5)", not anew,
            f"went on from iterations {found}")  # fmt: skip
    with open(WORK / "log", "w") as log:
        start(folder, log).wait()
    equal = table(whole) == table(folder)
    row("two_stages.py run to its end", equal,
        "the table of the undisturbed run" if equal else "another table")  # fmt: skip


def _spoil(how):
    def spoil(path):
        content = bytearray(path.read_bytes())
        if how == "cut in half":
            path.write_bytes(content[: len(content) // 2])
        elif how == "without its last 100 bytes":
            path.write_bytes(content[:-100])
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "missing":
            path.unlink()
        elif how == "with one byte changed":
            content[len(content) // 2] ^= 255
            path.write_bytes(content)
        else:
            state = torch.load(path, weights_only=True)
            if how == "with NaN weights":
                state["model"]["sem_seg_head.predictor.weight"].fill_(float("nan"))
            else:
                del state["trainer"]
            torch.save(state, path)

    return spoil


@group
def checkpoints():
    """Damaged checkpoints and tags; --resume takes the newest whole one."""
    whole = reference(1, tuple(SHORT))
    faults = {
        how: (lambda folder, how=how: _spoil(how)(folder / "model_0000003.pth"))
        for how in ("cut in half", "without its last 100 bytes", "empty", "missing",
                    "with one byte changed", "with NaN weights", "without its training's state")
    }  # fmt: skip
    for name, spoil in faults.items():
        folder = fresh("damaged")
        for file in ("model_0000001.pth", "model_0000003.pth"):
            shutil.copy(whole / file, folder)
        (folder / "last_checkpoint").write_text("model_0000003.pth")
        spoil(folder)
        result = run(folder, *SHORT, flags=["--resume"])
        ok = result.status == 0 and result.began == [2] and same_weights(whole, folder)
        happened = f"began at {result.began} from the one before; the same weights"
        row(f"the last checkpoint is {name}", ok, happened if ok else result.said)
    for name, content in {"empty": b"", "binary": bytes(range(200, 256)),
                          "the name of a hostile .pkl": b"evil.pkl"}.items():  # fmt: skip
        folder = fresh("tag")
        shutil.copy(whole / "model_0000003.pth", folder)
        (folder / "last_checkpoint").write_bytes(content)
        (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch " + bytes(folder) + b"/RAN'\ntR.")
        result = run(folder, *SHORT, flags=["--resume"])
        ok = result.status == 0 and result.began == [4] and not (folder / "RAN").exists()
        row(f"last_checkpoint is {name}", ok and same_weights(whole, folder),
            f"began at {result.began} from the newest whole checkpoint")  # fmt: skip


@group
def disks():
    """Full and read-only disks, folders that go away."""
    whole = reference(1, tuple(SHORT))
    size = (whole / "model_final.pth").stat().st_size
    small = WORK / "small"
    small.mkdir(exist_ok=True)

    def mount(size, *more):
        subprocess.run(["umount", small], capture_output=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *more]), "tmpfs", small]
        return subprocess.run(command, capture_output=True).returncode == 0

    if mount(int(size * 1.6)):
        result = run(small / "run", *SHORT)
        tag = last_iteration(small / "run")
        row("the disk is full from the second checkpoint on", result.status == 1 and tag == 1,
            f"status 1: {result.said}; last_checkpoint: iteration {tag}, whole")  # fmt: skip
        subprocess.run(["mount", "-o", f"remount,size={size * 8}", small], check=True)
        result = run(small / "run", *SHORT, flags=["--resume"])
        row("... and has space again", result.began == [2] and same_weights(whole, small / "run"),
            f"--resume began at {result.began}; the same weights")  # fmt: skip
        mount("120k")
        options = [
            "MODEL.WEIGHTS",
            whole / "model_final.pth",
            "DATASETS.TEST",
            "('toy_panoptic_val',)",
        ]
        result = run(small / "run", *options, flags=["--eval-only"])
        row("the disk is full while predictions are written", result.status == 1
            and "No space" in result.text, f"status 1: {result.said}")  # fmt: skip
        mount("1m")
        (small / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        result = run(small / "run", *SHORT)
        row("OUTPUT_DIR is read-only", result.status == 1 and "Read-only" in result.text,
            f"status 1 after {result.seconds:.1f} s: {result.said}")  # fmt: skip
        subprocess.run(["umount", small])
    folder = fresh("limit")
    result = run(folder, *SHORT, limits=[(resource.RLIMIT_FSIZE, int(size * 0.7))])
    ok = result.status == 1 and "could not be written" in result.text
    row("ulimit -f below a checkpoint", ok, f"status 1: {result.said}")
    for file in ("metrics.json", "log.txt"):
        folder = fresh("full")
        (folder / file).symlink_to("/dev/full")
        result = run(folder, *SHORT)
        row(f"no space for {file}", result.status == 0 and same_weights(whole, folder),
            "logged once; the training goes on to the same weights")  # fmt: skip
    folder = fresh("deleted")
    result = run(folder, *SHORT, hook=lambda: at_step(3, lambda t: shutil.rmtree(folder)))
    row("OUTPUT_DIR is deleted while training", result.status == 0 and same_weights(whole, folder),
        "made again for the next checkpoint")  # fmt: skip
    folder = WORK / "a_file"
    folder.write_text("x")
    result = run(folder, *SHORT)
    row("OUTPUT_DIR is a file", result.status == 1, f"status 1: {result.said}")


@group
def numbers():
    """Weights and gradients that are not finite."""
    for stage in (1, 2):

        def spoil(trainer):
            weight = trainer.model.sem_seg_head.predictor.weight
            handle = weight.register_hook(lambda g: (handle.remove(), g * float("nan"))[1])

        folder = fresh("gradient")
        result = run(folder, *SHORT, stage=stage, hook=lambda: at_step(3, spoil))
        finite = result.status == 0 and all(
            torch.isfinite(v).all() for v in weights(folder).values()
        )
        row(f"a NaN gradient in a step, stage {stage}", finite and "1 steps refused" in result.text,
            "the step is refused and counted; all checkpoints are finite")  # fmt: skip
        folder = fresh("weights")

        def poison(trainer):
            trainer.model.sem_seg_head.predictor.weight.data.fill_(float("nan"))

        result = run(folder, *SHORT, stage=stage, hook=lambda: at_step(3, poison))
        row(f"NaN weights, stage {stage}", result.status == 1 and last_iteration(folder) == 1,
            f"status 1: {result.said}; the last checkpoint is finite")  # fmt: skip


@group
def evaluations():
    """An evaluation that fails in the middle of a training."""
    options = ["SOLVER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 9, "TEST.EVAL_PERIOD", 7]
    whole = reference(1, tuple(options))
    faults = {
        "the evaluator raises": lambda: at_call(
            AMWCPanopticEvaluator, "_summarize", 1, raising(RuntimeError("its own bug"))),
        "the evaluator raises in its thread": lambda: at_call(
            AMWCPanopticEvaluator, "_compare", 2, raising(ZeroDivisionError())),
        "the solver has no memory": lambda: at_call(
            AMWCPanoptic, "label", 1, raising(MemoryError("no memory in the solver"))),
    }  # fmt: skip
    for name, hook in faults.items():
        folder = fresh("evaluation")
        result = run(folder, *options, hook=hook)
        ok = result.status == 0 and same_weights(whole, folder) and "failed" in result.text
        row(f"{name} in a periodic evaluation", ok,
            "logged and counted; the training and the last evaluation go on")  # fmt: skip
    path = _copy_of_training_set("spoilt")[2]
    path.write_bytes(path.read_bytes()[:500])
    folder = fresh("evaluation")
    result = run(folder, *options, "DATASETS.TEST", "('spoilt',)")
    ok = result.status == 1 and same_weights(whole, folder) and path.name in result.text
    row("a validation image cannot be read", ok,
        f"the training goes on to model_final.pth; status 1 in the end: {result.said}")  # fmt: skip


def _copy_of_training_set(name):
    """A copy of the toy set's training images that may be spoilt; registered as ``name``."""
    root, folder = WORK / "datasets/toy", WORK / "copies" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "train", folder / "train")
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_panoptic_dataset(
        name, folder / "train", root / "panoptic_train", root / "panoptic_train.json"
    )
    return sorted((folder / "train").iterdir())


@group
def images():
    """Images that cannot be read, in the main process and in workers."""
    faults = {
        "empty": lambda p: p.write_bytes(b""),
        "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "a text": lambda p: p.write_text("<html>404</html>"),
        "another size": lambda p: __import__("PIL.Image").Image.new("RGB", (10, 7)).save(p),
        "random bytes": lambda p: p.write_bytes(random.Random(0).randbytes(3000)),
    }
    for workers, (name, spoil) in enumerate(faults.items()):
        paths = _copy_of_training_set("spoilt")
        for path in paths[::3]:
            spoil(path)
        folder = fresh("images")
        options = ["DATASETS.TRAIN", "('spoilt',)", "DATALOADER.NUM_WORKERS", workers % 2]
        result = run(folder, *SHORT, *options)
        named = any(f"{p.name} (truth" in result.text for p in paths[::3])
        row(f"a third of the training images is {name}", result.status == 0 and named,
            "named and counted; others take their places")  # fmt: skip


@group
def workers():
    """Data workers that are killed, stopped, or find no shared memory."""

    def hit(number):
        def action(trainer):
            os.kill(psutil.Process().children()[0].pid, number)

        return action

    loading.TICK = 3
    options = ["SOLVER.MAX_ITER", 2000, "SOLVER.CHECKPOINT_PERIOD", 3, "DATASETS.TEST", "()",
               "DATALOADER.NUM_WORKERS", 2]  # fmt: skip
    for name, number, said in (
        ("killed (memory)", signal.SIGKILL, "killed by signal 9"),
        ("stopped", signal.SIGSTOP, "was stopped"),
        ("ended by a bus error (shared memory)", signal.SIGBUS, "no room in shared memory"),
    ):
        folder = fresh("worker")
        result = run(
            folder, *options, hook=lambda number=number: at_step(5, hit(number)), timeout=90
        )
        ok = result.status == 1 and said in result.text and last_iteration(folder) >= 2
        row(f"a data worker is {name}", ok, f"status {result.status} after {result.seconds:.0f} s: "
            f"{result.said}")  # fmt: skip
    loading.TICK = 20


@group
def processes():
    """Two CPU processes of one run."""
    options = ["SOLVER.MAX_ITER", 400, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "()"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name, number, target in (
        ("kill -9 of the second process", signal.SIGKILL, 1),
        ("SIGTERM to the launcher", signal.SIGTERM, None),
    ):
        folder = fresh("processes")
        with open(WORK / "log", "w") as log:
            process = subprocess.Popen(
                command(folder, *options, gpus=2), env=env, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            limit = time.time() + 200
            while (
                process.poll() is None
                and time.time() < limit
                and not (folder / "last_checkpoint").exists()
            ):
                time.sleep(0.05)
            ranks = [
                p
                for p in psutil.Process(process.pid).children()
                if "spawn" in " ".join(p.cmdline())
            ]
            os.kill(process.pid if target is None else ranks[target].pid, number)
            try:
                status = process.wait(60)
            except subprocess.TimeoutExpired:
                status = "hang"
                os.killpg(process.pid, signal.SIGKILL)
        left = [p.pid for p in ranks if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        expected = status == 143 if number == signal.SIGTERM else status not in (0, "hang")
        row(f"two processes: {name}", expected and not left and last_iteration(folder) >= 1,
            f"status {status}, no process is left, last checkpoint whole (iteration "
            f"{last_iteration(folder)})")  # fmt: skip


@group
def folders():
    """Two runs and one OUTPUT_DIR."""
    folder = fresh("shared")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with open(WORK / "log", "w") as log:
        first = subprocess.Popen(command(folder, "SOLVER.MAX_ITER", 400, "DATASETS.TEST", "()"),
                                 env=env, stdout=log, stderr=subprocess.STDOUT)  # fmt: skip
        while first.poll() is None and not (folder / "config.yaml").exists():
            time.sleep(0.05)
        second = run(folder, *SHORT)
        first.kill()
        first.wait()
    row("a second run in an OUTPUT_DIR in use", second.status == 1 and "in use by" in second.text,
        f"status 1: {second.said}")  # fmt: skip
    folder = fresh("old")
    run(folder, *SHORT)
    before = (folder / "model_final.pth").read_bytes()
    result = run(folder, *SHORT)
    ok = result.status == 1 and (folder / "model_final.pth").read_bytes() == before
    row("a new run where an old one is", ok, f"status 1: {result.said}")
    result = run(folder, *SHORT, flags=["--resume"])
    row("--resume of a finished run", result.status == 0, "evaluated again")
    result = run(
        folder, *SHORT, "MODEL.INS_EMBED_HEAD.DISTANCES", "[1,2,4,8,32]", flags=["--resume"]
    )
    row("--resume with other distances", result.status == 1 and "DISTANCES" in result.text,
        "refused; the differing key is named")  # fmt: skip


@group
def hostile():
    """Files from strangers: each of these tests holds a hostile file of a kind."""
    tests = REPOSITORY / "tests/engine/test_untrusted_input.py"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-q", str(tests)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    passed = re.findall(r"^PASSED \S+::(\S+)", result.stdout, re.MULTILINE)
    failed = re.findall(r"^FAILED \S+::(\S+)", result.stdout, re.MULTILINE)
    for name in passed:
        row(f"hostile or damaged file: {name}", True, "refused, or read without running code")
    for name in failed or ([] if passed else ["all"]):
        row(f"hostile or damaged file: {name}", False, "its test fails")


# ---------------------------------------------------------------------------- the command
def write_table(path):
    head, _, rest = path.read_text().partition(TABLE_START)
    tail = rest.partition(TABLE_END)[2]
    table = tabulate(ROWS, ["fault", "what happens", ""], tablefmt="pipe")
    path.write_text(f"{head}{TABLE_START}\n{table}\n{TABLE_END}{tail}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="groups whose name contains this: "
                        + ", ".join(g.__name__ for g in GROUPS))  # fmt: skip
    parser.add_argument("--write", type=Path, help="a page whose table is renewed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_toy_dataset(WORK / "datasets/toy", num_train=12, num_val=4)
    start = time.time()
    try:
        for run_group in GROUPS:
            if any(name in run_group.__name__ for name in args.only.split(",")):
                run_group()
    finally:
        subprocess.run(["umount", WORK / "small"], capture_output=True)
        shutil.rmtree(WORK, ignore_errors=True)
    failed = sum(verdict == "FAIL" for *_, verdict in ROWS)
    seconds = time.time() - start
    print(f"{len(ROWS)} faults in {seconds / 60:.1f} minutes, {failed} of them FAIL")
    (Path("output") / "faults.json").parent.mkdir(exist_ok=True)
    (Path("output") / "faults.json").write_text(json.dumps(ROWS, indent=1))
    if args.write:
        write_table(args.write)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
