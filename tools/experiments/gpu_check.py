#!/usr/bin/env python3
"""Ten minutes of one GPU: the checks that need one, and both small recipes trained for long.

    DETECTRON2_DATASETS=... tools/experiments/gpu_check.py --output output/gpu --seconds 540

1. *parts*: how long data, network, copies and solver take, ResNet-50 at Cityscapes' crop, alone on
   the machine (random images and weights; the costs are planted, so that the solver has real work).
2. *agree*: CPU and GPU give the same losses, gradients and evaluation.
3. *nccl*: training under DistributedDataParallel over NCCL, with one rank.
4. *trainings*, side by side: both stages of the recipes with their calibration, another seed, one
   without the new augmentation, and the peers (panoptic_deeplab.py), of a data set all for the same
   number of steps. It follows from the step time that they measure together, so that they end in
   time; one that is late all the same takes the rest of its learning rate's decay faster.

Every part is a process of its own with a time limit, and writes its results as soon as it has them:
OUTPUT/NAME/result.json. The summary comes last.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent.parent
CONFIGS = {
    "dsb2018": "configs/DSB2018-PanopticSegmentation/amwc_R18{}.yaml",
    "toy": "configs/Toy-PanopticSegmentation/amwc_R18{}.yaml",
}
PLAIN = [
    *("INPUT.RANDOM_FLIP", "horizontal", "INPUT.QUARTER_TURNS", False, "INPUT.BRIGHTNESS", 0.0),
    *("INPUT.CONTRAST", 0.0, "INPUT.SATURATION", 0.0, "INPUT.MIN_SIZE_TRAIN", "(448,512,576)"),
]
# name: data set, peer or ours, seed, data workers, options
TRAININGS = {
    "dsb2018_1": ("dsb2018", "amwc", 1, 2, []),
    "toy_1": ("toy", "amwc", 1, 2, []),
    "dsb2018_peer": ("dsb2018", "peer", 1, 3, ["INPUT.GAUSSIAN_SIGMA", 8]),
    "toy_peer": ("toy", "peer", 1, 2, ["INPUT.GAUSSIAN_SIGMA", 5]),
    "dsb2018_2": ("dsb2018", "amwc", 2, 2, []),
    "dsb2018_plain": ("dsb2018", "amwc", 1, 2, PLAIN),
}
RETURNED = ("dsb2018_1", "toy_1", "dsb2018_2")  # whose checkpoints are packed
# Ends of the phases, as shares of the seconds that are left when the trainings start.
STAGE_1, CALIBRATED, STAGE_2, LAST = 0.64, 0.78, 0.92, 0.98
WARM_UP, MEASURED = 15, 40  # steps before MAX_ITER is decided
CALIBRATION_EVALUATIONS = 150

logger = logging.getLogger("amwc_d2.gpu_check")


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/gpu"))
    parser.add_argument("--pack", type=Path, help="gets checkpoints and results.tar.gz")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", metavar="PART", help="of the parts and trainings")
    parser.add_argument("--quick", action="store_true", help="two images a step: to rehearse")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def write(folder: Path, **values):
    """Add to a part's result.json, whole or not at all."""
    path = folder / "result.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    scratch = folder / "result.new"
    scratch.write_text(json.dumps({**content, **values}, indent=1, default=float) + "\n")
    scratch.replace(path)


# ---------------------------------------------------------------------------- trainings
def options(args, name):
    dataset, kind, seed, workers, opts = TRAININGS[name]
    opts = [*opts, "MODEL.DEVICE", args.device, "SEED", seed, "DATALOADER.NUM_WORKERS", workers,
            "MODEL.AMWC.SOLVER.NUM_THREADS", 3, "DATASETS.TEST", "()"]  # fmt: skip
    if args.quick:
        opts += ["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 1,
                 "MODEL.AMWC.CALIBRATION_IMAGES", 4]  # fmt: skip
    return dataset, kind, opts


def training(args, name, folder):
    """Both stages of one of ``TRAININGS``, or its peer; results after every step."""
    import cv2
    import torch
    from detectron2.engine import HookBase
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import EventStorage
    from panoptic_deeplab import PeerTrainer, finish, peer_config

    from amwc_d2 import Trainer
    from amwc_d2.config import load_config
    from amwc_d2.engine import calibration

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    calibration.EVALUATIONS = 20 if args.quick else CALIBRATION_EVALUATIONS
    dataset, kind, opts = options(args, name)
    total = args.end - args.start

    def maximize_in_time(function, size, evaluations, maximize=calibration.maximize):
        """As many evaluations as there is time for."""
        begin = time.time()
        function(np.zeros(size))
        left = args.start + CALIBRATED * total - time.time()
        return maximize(
            function, size, min(evaluations, max(20, int(left / (time.time() - begin))))
        )

    calibration.maximize = maximize_in_time

    class OutOfTime(Exception):
        pass

    class Deadline(HookBase):
        """Keeps the decay of the learning rate at least as far as the time is."""

        def __init__(self, end):
            self.begin, self.end = time.time(), end

        def after_step(self):
            late = (time.time() - self.begin) / (self.end - self.begin)
            step = int(late * self.trainer.max_iter)
            if step > self.trainer.iter + 1:
                self.trainer.scheduler.last_epoch = min(step, self.trainer.max_iter - 1)
            if late > 1.02:
                raise OutOfTime

    def train(cfg, trainer_class, end):
        """Train; return the trainer, the steps done and the seconds they took."""
        seed_all_rng(cfg.SEED)
        torch.backends.cudnn.benchmark = True
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=False)
        trainer.register_hooks([Deadline(end)])
        begin = time.time()
        try:
            trainer.train()
            steps = cfg.SOLVER.MAX_ITER
        except OutOfTime:
            steps = trainer.iter + 1
            for hook in trainer._hooks:
                if isinstance(hook, calibration.Calibration):
                    calibration.calibrate(cfg, trainer.model, hook.samples, calibration.EVALUATIONS)
            trainer.checkpointer.save("model_final")
        torch.backends.cudnn.benchmark = False
        release = cfg.clone()  # as the recipes have it
        values = {"DATASETS.TEST": (f"{dataset}_panoptic_val",), "MODEL.DEVICE": "cpu",
                  "DATALOADER.NUM_WORKERS": 0, "MODEL.AMWC.SOLVER.NUM_THREADS": 0}  # fmt: skip
        release.merge_from_list([x for pair in values.items() for x in pair])
        (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(release.dump())
        return trainer, steps, time.time() - begin

    def measure(cfg, trainer_class):
        """Seconds per step, beside all the others."""
        trainer = trainer_class(cfg)
        trainer.model.train()
        with EventStorage() as storage:
            for step in range(WARM_UP + MEASURED if not args.quick else 4):
                if step == (WARM_UP if not args.quick else 1):
                    begin, first = time.time(), step
                trainer._trainer.iter = step
                trainer._trainer.run_step()
                storage.step()
        return (time.time() - begin) / (step + 1 - first)

    def agree_on_steps(seconds):
        """The steps that the slowest training of this data set can make."""
        mates = [n for n, job in TRAININGS.items() if job[0] == dataset and chosen(args, n)]
        (folder.parent / f"{name}.step").write_text(str(seconds))
        until = time.time() + 45
        while len(found := list(folder.parent.glob(f"{dataset}*.step"))) < len(mates):
            time.sleep(0.3)
            if time.time() > until:
                break
        slowest = max(float(p.read_text()) for p in found)
        left = args.start + STAGE_1 * total - time.time() - 3
        return max(3, int(0.97 * left / slowest))

    def config(stage, **keys):
        cfg = load_config(ROOT / CONFIGS[dataset].format(stage), [*opts])
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return cfg

    def evaluate(cfg, trainer_class, model, row, **keys):
        cfg = cfg.clone()
        cfg.DATASETS.TEST = (f"{dataset}_panoptic_val",)
        cfg.OUTPUT_DIR = str(folder / row)
        begin = time.time()
        results = finish(cfg, model) if kind == "peer" else trainer_class.test(cfg, model)
        keep(folder / row / "inference", folder / row)
        numbers = {k: v for task in ("panoptic_seg", "amwc", "segm") for k, v in
                   ((f"{task}/{k}", v) for k, v in results[task].items())}  # fmt: skip
        write(folder, **{row: {**numbers, **keys, "evaluation_seconds": time.time() - begin}})

    stage_1_end = args.start + STAGE_1 * total
    if kind == "peer":
        cfg = peer_config(ROOT / CONFIGS[dataset].format(""), opts)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        cfg.OUTPUT_DIR = str(folder / "peer")
        step_seconds = measure(cfg, PeerTrainer)
        cfg.SOLVER.MAX_ITER = agree_on_steps(step_seconds)
        trainer, steps, seconds = train(cfg, PeerTrainer, stage_1_end)
        evaluate(cfg, PeerTrainer, trainer.model, "peer", steps=steps, planned=cfg.SOLVER.MAX_ITER,
                 seconds=seconds)  # fmt: skip
        return

    cfg = config("")
    cfg.OUTPUT_DIR = str(folder / "stage_1")
    step_seconds = measure(cfg, Trainer)
    cfg.SOLVER.MAX_ITER = agree_on_steps(step_seconds)
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_ITER
    trainer, steps, seconds = train(cfg, Trainer, stage_1_end)
    model = trainer.model
    fitted = {k: v.clone() for k, v in model.costs.state_dict().items()}
    write(folder, costs={k: v.tolist() for k, v in fitted.items()})
    facts = {"steps": steps, "planned": cfg.SOLVER.MAX_ITER, "seconds": seconds}
    evaluate(cfg, Trainer, model, "calibrated", **facts)
    del trainer
    gc.collect()

    weights = str(folder / "stage_1" / "model_final.pth")
    second = config("_e2e")
    second.OUTPUT_DIR, second.MODEL.WEIGHTS = str(folder / "stage_2"), weights
    if args.quick:
        second.SOLVER.MAX_ITER = 2
    trainer, steps, seconds = train(second, Trainer, args.start + STAGE_2 * total)
    evaluate(second, Trainer, trainer.model, "end_to_end", steps=steps,
             planned=second.SOLVER.MAX_ITER, seconds=seconds)  # fmt: skip

    calibration_off = type(model.costs)(len(fitted["class_offset"]), len(fitted["edge_offset"]))
    model.costs.load_state_dict(calibration_off.state_dict())
    evaluate(cfg, Trainer, model, "stage_1", **facts)
    model.upsampling = "nearest"
    evaluate(cfg, Trainer, model, "stage_1_nearest", **facts)


def keep(source, target):
    """Keep what an evaluation wrote, but not its pictures."""
    import shutil

    shutil.rmtree(source / "panoptic", ignore_errors=True)
    for path in source.glob("*"):
        if path.name in ("results.json", "segments.csv"):
            shutil.copyfile(path, target / path.name)


# ---------------------------------------------------------------------------- checks
def registered_toy():
    """The toy set, drawn if need be."""
    from detectron2.data import DatasetCatalog

    import amwc_d2  # noqa: F401

    return [len(DatasetCatalog.get(f"toy_panoptic_{split}")) for split in ("train", "val")]


def toy(args, name, folder):
    write(folder, images=registered_toy())


def agree(args, name, folder):
    """Losses and gradients of both stages, and an evaluation, on the CPU and on the GPU."""
    import torch
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import EventStorage

    from amwc_d2 import Trainer, model_zoo

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(2)
    for release in ("dsb2018_amwc_r18", "dsb2018_amwc_r18_e2e"):
        found = []
        for device in ("cpu", args.device):
            cfg = model_zoo.get_config(release)
            cfg.merge_from_list(["MODEL.DEVICE", device, "SOLVER.AMP.BFLOAT16", False,
                                 "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4,
                                 "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0,
                                 "MODEL.INS_EMBED_HEAD.ASPP_DROPOUT", 0.0, "SEED", 0])  # fmt: skip
            seed_all_rng(0)
            batch = next(iter(Trainer.build_train_loader(cfg)))
            model = Trainer.build_model(cfg)
            state = torch.load(
                model_zoo.get_checkpoint_path(release), map_location="cpu", weights_only=True
            )
            model.load_state_dict({k: v.float() for k, v in state["model"].items()}, strict=False)
            model.train()
            seed_all_rng(0)
            with EventStorage():
                losses = model(batch)
            sum(losses.values()).backward()
            gradient = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters()
                                  if p.grad is not None])  # fmt: skip
            found.append(({k: v.item() for k, v in losses.items()}, gradient))
        (a, g), (b, h) = found
        write(folder, **{release: {
            "losses_cpu": a, "losses_gpu": b,
            "gradient_cosine": torch.cosine_similarity(g, h, dim=0).item(),
            "gradient_relative_difference": ((g - h).norm() / g.norm()).item(),
        }})  # fmt: skip
    from detectron2.data import DatasetCatalog

    samples = DatasetCatalog.get("dsb2018_panoptic_val")[: 2 if args.quick else 24]
    same = []
    models = [model_zoo.get("dsb2018_amwc_r18_e2e", device=d) for d in ("cpu", args.device)]
    from amwc_d2.engine.calibration import inference_inputs

    for inputs in inference_inputs(model_zoo.get_config("dsb2018_amwc_r18_e2e"), samples):
        with torch.no_grad():
            one, two = (m.eval()([inputs])[0]["panoptic_seg"][0].cpu() for m in models)
        same.append((one == two).float().mean().item())
    write(folder, evaluation={"images": len(same), "equal_pixels": float(np.mean(same))})


def nccl(args, name, folder):
    """A few steps under DistributedDataParallel over NCCL (gloo on the CPU), one rank."""
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm
    from torch.nn.parallel import DistributedDataParallel

    from amwc_d2 import Trainer
    from amwc_d2.config import load_config

    backend = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{folder.resolve() / 'rendezvous'}", rank=0, world_size=1
    )
    comm.create_local_process_group(1)
    for stage in ("pretrain", "end_to_end"):
        cfg = load_config(ROOT / CONFIGS["dsb2018"].format(""))
        cfg.merge_from_list(["MODEL.DEVICE", args.device, "SOLVER.IMS_PER_BATCH", 2,
                             "DATALOADER.NUM_WORKERS", 0, "MODEL.AMWC.STAGE", stage,
                             "MODEL.AMWC.CALIBRATION_IMAGES", 0, "DATASETS.TEST", "()",
                             "SOLVER.MAX_ITER", 3, "OUTPUT_DIR", str(folder / stage)])  # fmt: skip
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        trainer = Trainer(cfg)
        ids = [0] if args.device == "cuda" else None
        trainer._trainer.model = DistributedDataParallel(
            trainer._trainer.model, device_ids=ids, broadcast_buffers=False
        )
        trainer.train()
        losses = {k: h.latest() for k, h in trainer.storage.histories().items() if "loss" in k}
        finite = all(bool(p.isfinite().all()) for p in trainer.model.parameters())
        write(folder, **{stage: {**losses, "finite": finite}}, backend=dist.get_backend())
    one = torch.ones(1, device=args.device)
    dist.all_reduce(one)
    write(folder, all_reduce=one.item())
    dist.destroy_process_group()


def parts(args, name, folder):
    """Seconds per step by part, ResNet-50, Cityscapes' crop, stages 1 and 2, batch 4."""
    import torch
    from detectron2.utils.events import EventStorage

    from amwc_d2.config import load_config, use_bfloat16
    from amwc_d2.data.target_generator import AMWCTargetGenerator
    from amwc_d2.edges import at_cell_centres, cut_edges
    from amwc_d2.engine.timing import time_forward
    from amwc_d2.engine.trainer import Trainer

    size, count, repeats = ((64, 128), 2, 2) if args.quick else ((512, 1024), 4, 8)
    rng = np.random.default_rng(0)
    synchronize = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    write(folder, torch=torch.__version__, cores=len(os.sched_getaffinity(0)), crop=size,
          batch=count, device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
          numpy=np.__version__, python=sys.version.split()[0])  # fmt: skip
    for stage in ("", "_e2e"):
        cfg = load_config(ROOT / f"configs/Cityscapes-PanopticSegmentation/amwc_R50{stage}.yaml")
        cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "",
                             "INPUT.CROP.SIZE", size, "SOLVER.AMP.BFLOAT16", True])  # fmt: skip
        for part in ("RESNETS", "SEM_SEG_HEAD", "INS_EMBED_HEAD"):
            cfg.MODEL[part].NORM = "BN"
        generator = AMWCTargetGenerator.from_config(cfg)
        model = Trainer.build_model(cfg).train()
        time_forward(model)
        optimizer = Trainer.build_optimizer(cfg, model)

        def scene():
            """Vertical bands of stuff with boxes of things on them."""
            h, w = size
            ids = (1 + np.arange(w) * 8 // w)[None].repeat(h, axis=0)
            info = [{"id": i + 1, "category_id": i, "iscrowd": 0} for i in range(8)]
            for i in range(40):
                y, x = rng.integers(0, h - 16), rng.integers(0, w - 16)
                ids[y : y + h // 10, x : x + w // 16] = 100 + i
                info.append({"id": 100 + i, "category_id": 11 + i % 8, "iscrowd": 0})
            return ids, info

        begin = time.time()
        batch = []
        for _ in range(count):
            image = torch.from_numpy(rng.integers(0, 255, (3, *size)).astype(np.uint8))
            batch.append({"image": image, **generator(*scene())})
        data = (time.time() - begin) / count
        logits, planted = model.logits, {}

        def plant(images, logits=logits, batch=batch, planted=planted, model=model):
            """The network's logits, and the truth with noise on them."""
            classes, affinities = logits(images)
            if not planted:
                segments = torch.stack([x["segments"] for x in batch])
                labels = torch.stack([x["sem_seg"] for x in batch])
                cells = at_cell_centres(labels, 4)
                one_hot = torch.nn.functional.one_hot(cells, classes.shape[1]).movedim(-1, 1)
                cut = cut_edges(at_cell_centres(segments, 4), model.solver.distances)
                noise = torch.Generator().manual_seed(0)
                planted["classes"] = (
                    4.0 * one_hot + 1.5 * torch.randn(one_hot.shape, generator=noise)
                ).to(classes.device)
                planted["edges"] = (
                    2.0 - 4.0 * cut.float() + 1.5 * torch.randn(cut.shape, generator=noise)
                ).to(classes.device)
            return classes + planted["classes"], affinities + planted["edges"]

        model.logits = plant
        seconds = {"forward": [], "backward": [], "optimizer": [], "solver_forward": [],
                   "solver_backward": [], "criterion": []}  # fmt: skip
        with EventStorage() as storage:
            for _ in range(repeats):
                synchronize()
                times = [time.time()]
                total = sum(model(batch).values())
                synchronize()
                times.append(time.time())
                optimizer.zero_grad()
                total.backward()
                synchronize()
                times.append(time.time())
                optimizer.step()
                synchronize()
                times.append(time.time())
                for part, value in zip(("forward", "backward", "optimizer"), np.diff(times)):
                    seconds[part].append(value)
                for part in ("forward", "backward"):
                    solver = storage.latest().get(f"time/solver_{part}", (0.0, 0))[0]
                    seconds[f"solver_{part}"].append(solver)
                seconds["criterion"].append(storage.history("time/criterion").latest())
                storage.step()
        medians = {k: float(np.median(v[repeats // 4 :])) for k, v in seconds.items()}
        costs = torch.zeros(count, 19 + 2 * len(model.solver.distances), size[0] // 4, size[1] // 4,
                            device=args.device)  # fmt: skip
        synchronize()
        begin = time.time()
        for _ in range(10):
            costs.cpu()
        copy = (time.time() - begin) / 10
        write(folder, **{f"stage{stage or '_1'}": {
            **medians, "copy_of_costs": copy, "targets_per_image": data,
            "bfloat16": use_bfloat16(cfg), "peak_GiB":
            torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None,
        }})  # fmt: skip
        del model, optimizer, planted
        gc.collect()


# ---------------------------------------------------------------------------- the whole
CHECKS = {"toy": toy, "parts": parts, "agree": agree, "nccl": nccl}


def chosen(args, name):
    return not args.only or name in args.only


class Part:
    """A process that runs one part, with its log and its time limit."""

    def __init__(self, args, name, start, end, threads=1):
        self.name, self.end = name, end
        self.folder = args.output / name
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--part", name, "--output", args.output, "--device",
                   args.device, "--start", start, "--end", end]  # fmt: skip
        command += ["--quick"] if args.quick else []
        command += ["--only", *args.only] if args.only else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self.log = open(self.folder / "log.txt", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(c) for c in command], stdout=self.log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def wait(self):
        """Wait for the end or the limit; return the exit status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, self.end - time.time()))
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.log.close()
        return self.process.returncode


def pack(args):
    """What comes back from the machine: checkpoints in half precision, and one archive."""
    import tarfile

    import torch

    args.pack.mkdir(parents=True, exist_ok=True)
    for name in RETURNED:
        for stage in ("stage_1", "stage_2"):
            source = args.output / name / stage / "model_final.pth"
            if not source.exists() or (name, stage) == ("dsb2018_2", "stage_2"):
                continue
            with contextlib.suppress(Exception):  # one that was being written
                state = torch.load(source, map_location="cpu", weights_only=True)["model"]
                half = {k: v.half() if v.dtype == torch.float32 and v.dim() > 1 else v
                        for k, v in state.items()}  # fmt: skip
                torch.save({"model": half}, args.pack / f"{name}_{stage}.pth")
    with tarfile.open(args.pack / "results.tar.gz", "w:gz") as tar:
        for path in sorted(args.output.rglob("*")):
            if path.suffix in (".json", ".csv", ".yaml", ".txt", ".step") and path.is_file():
                tar.add(path, path.relative_to(args.output))


def summary(args, status):
    """Everything that matters, in a few kilobytes."""
    for name, code in status.items():
        path = args.output / name / "result.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        print(f"== {name}: exit {code}")
        if name in CHECKS:
            print(json.dumps(content, default=lambda x: round(float(x), 4))[:1300])
        for row, values in content.items():
            if isinstance(values, dict) and "panoptic_seg/PQ" in values:
                short = {key.split("/")[-1]: round(float(values[key]), 2) for key in (
                    "panoptic_seg/PQ", "panoptic_seg/PQ_th", "panoptic_seg/PQ_st", "segm/AP",
                    "segm/AP50", "amwc/splits", "amwc/merges", "steps", "planned", "seconds",
                    "evaluation_seconds") if key in values and values[key] is not None}  # fmt: skip
                print(f"  {row}: " + " ".join(f"{k} {v:g}" for k, v in short.items()))
        if code:
            lines = (args.output / name / "log.txt").read_text(errors="replace").splitlines()
            print("\n".join("   | " + line[-160:] for line in lines[-8:]))


def main(args):
    begin = time.time()
    end = begin + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    status = {}

    def say(text):
        print(f"[{time.time() - begin:5.0f} s] {text}", flush=True)

    drawing = Part(args, "toy", begin, begin + 0.5 * args.seconds) if chosen(args, "toy") else None
    if chosen(args, "parts"):
        part = Part(args, "parts", begin, begin + 0.14 * args.seconds, len(os.sched_getaffinity(0)))
        status["parts"] = part.wait()
        say(f"parts: {status['parts']}")
    start = time.time()
    names = [n for n in (*TRAININGS, "agree", "nccl") if chosen(args, n)]
    running = [Part(args, n, start, end - 12) for n in names if not n.startswith("toy")]
    if drawing:  # the others need not wait for it
        drawing.end = begin + 0.3 * args.seconds
        status["toy"] = drawing.wait()
        say(f"toy set: {status['toy']}")
    running += [Part(args, n, start, end - 12) for n in names if n.startswith("toy")]
    for part in sorted(running, key=lambda p: p.name not in ("agree", "nccl")):
        status[part.name] = part.wait()
        say(f"{part.name}: {status[part.name]}")
    if args.pack:
        pack(args)
    summary(args, status)
    say("end")
    return int(any(status.values()))


def run_part(args):
    from detectron2.utils.logger import setup_logger

    setup_logger(name="detectron2")
    setup_logger(name="amwc_d2")
    logging.getLogger("detectron2.engine.defaults").setLevel(logging.WARNING)  # prints the model
    folder = args.output / args.part
    try:
        CHECKS.get(args.part, training)(args, args.part, folder)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    args = get_parser().parse_args()
    sys.path.insert(0, str(TOOLS))
    sys.exit(run_part(args) if args.part else main(args))
