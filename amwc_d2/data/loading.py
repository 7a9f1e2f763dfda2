"""Loading images for training: the same whatever the workers do, and never a hang.

Batch b holds the same images, augmented alike, whether the run came there in one go or was resumed,
with any number of workers: the order comes from the seed, and the random numbers of an image from
the seed and its position in that order. Workers that die, stop or find no shared memory end in an
error that says so.
"""

import atexit
import errno
import logging
import multiprocessing.queues
import os
import random
import re
import shutil
import signal
import threading
import time
import traceback
import weakref
from collections import defaultdict
from contextlib import contextmanager, suppress
from itertools import count, islice

import numpy as np
import psutil
import torch
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, Dataset

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 10  # images that cannot be read, one after the other, before something else is wrong
TICK = 10  # seconds after which workers that give nothing or stand still are looked at
NO_SHARED_MEMORY = errno.ENOSPC  # exit status of a worker
_STOPPED = set()  # process ids of workers that stood still and were ended
_WORKERS = []  # of all loaders


# ---------------------------------------------------------------------------- random numbers
def derive_seed(*numbers):
    """A seed, 32 bits, for a thing that the numbers (>= 0) name."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(*numbers):
    """Random numbers of Python, NumPy and torch (CPU) that ``numbers`` determine.

    Afterwards they go on as if nothing had been drawn.
    """
    generator = torch.random.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()
    seed = derive_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])


# ---------------------------------------------------------------------------- training
class TrainingLoader:
    """Endless batches of augmented images, from any batch on.

    Every process of a run makes one with the same arguments and gets its share of each batch.

    Attributes:
        seed: decides on order and augmentation; may be set until the loader is iterated.
        start: the first batch that is loaded, 0 for a new run; likewise.
        unreadable: error message by image file, of this process, filled while iterating.
    """

    def __init__(
        self, samples, mapper, *, batch_size, seed, num_workers=0, group_by_aspect=False,
        repeat_factors=None, strict=False, timeout=600,
    ):  # fmt: skip
        """
        Args:
            samples (list[dict]): dicts of the DatasetCatalog.
            mapper (callable): from such a dict to an augmented image.
            batch_size (int): images of a batch, over all processes; a multiple of their number.
            seed (int): >= 0.
            num_workers (int): processes that load; 0: none, this one does.
            group_by_aspect (bool): batches of upright or of wide images only, which need less
                padding.
            repeat_factors (Tensor, optional): how often each sample comes in a round (Detectron2's
                ``RepeatFactorTrainingSampler``); None: once.
            strict (bool): raise where an image cannot be read; otherwise another one takes its
                place, and the log says so.
            timeout (float): seconds to wait for a batch.

        Raises:
            ValueError: a batch size that the processes cannot share.
        """
        if batch_size < 1 or batch_size % comm.get_world_size():
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; expected a multiple of the number of "
                f"processes, {comm.get_world_size()}."
            )
        self.mapper = mapper
        self.batch_size = batch_size // comm.get_world_size()
        self.seed = seed
        self.num_workers = num_workers
        self.group_by_aspect = group_by_aspect
        self.strict = strict
        self.timeout = timeout
        self.start = 0
        self.unreadable = {}
        self._dataset = DatasetFromList(samples, copy=False)
        self._repeats = repeat_factors

    def __iter__(self):
        loader = DataLoader(
            _Augmented(self._dataset, self.mapper, self.seed, self.strict),
            batch_sampler=_Iterable(self.indices),
            num_workers=self.num_workers,
            collate_fn=_with_problems,
            generator=torch.Generator(),  # the global one is the step's
        )
        return self._report(iter(WatchedLoader(loader, self.timeout)))

    def indices(self):
        """Batches of this process from ``start`` on: lists of (position, index of the sample)."""
        return islice(self._all_indices(), self.start, None)

    def _all_indices(self):
        if self._repeats is None:
            sampler = TrainingSampler(len(self._dataset), seed=self.seed)
        else:
            sampler = RepeatFactorTrainingSampler(self._repeats, seed=self.seed)
        groups, wide = defaultdict(list), {}
        for place in zip(count(comm.get_rank(), comm.get_world_size()), sampler):
            index = place[1]
            if self.group_by_aspect and index not in wide:
                wide[index] = _is_wide(self._dataset[index])
            group = groups[wide.get(index)]
            group.append(place)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()

    def _report(self, batches):
        for batch, problems in batches:
            for file, problem in problems:
                if file not in self.unreadable:
                    logger.warning(
                        "%s Another image takes its place. (%d files so far; STRICT True stops.)",
                        problem,
                        len(self.unreadable) + 1,
                    )
                self.unreadable[file] = problem
            yield batch


class _Iterable:
    """``iter`` calls ``make`` anew."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return iter(self.make())


class _Augmented(Dataset):
    """Image by (position, index), and the problems on the way to it."""

    def __init__(self, samples, mapper, seed, strict):
        self.samples, self.mapper, self.seed, self.strict = samples, mapper, seed, strict

    def __getitem__(self, place):
        position, index = place
        problems = []
        with seeded(self.seed, position):
            while True:
                sample = self.samples[index]
                file = str(sample.get("file_name"))
                try:
                    return self.mapper(sample), problems
                except Exception as error:  # readers of images raise all sorts of them
                    truth = sample.get("pan_seg_file_name")
                    problem = f"{file} (truth {truth}) cannot be used: {error!r}."
                    problems.append((file, problem))
                    if self.strict or len(problems) == min(MAX_IN_A_ROW, len(self.samples)):
                        raise ValueError(
                            f"{problem} Mend or remove the file."
                            + ("" if self.strict else f" ({len(problems)} in a row.)")
                        ) from error
                index = (index + 1) % len(self.samples)


def _with_problems(pairs):
    samples, problems = zip(*pairs)
    return list(samples), [p for some in problems for p in some]


def _is_wide(sample):
    if "width" not in sample or "height" not in sample:
        try:
            with Image.open(sample["file_name"]) as image:
                return image.width > image.height
        except OSError:
            return False
    return sample["width"] > sample["height"]


# ---------------------------------------------------------------------------- workers
class WatchedLoader:
    """A ``DataLoader`` whose workers neither hang nor die without a word.

    Raises, while iterating:
        RuntimeError: a worker was killed (memory), stopped, found no shared memory, or gave no
            batch in time. What the dataset itself raises is passed on.
    """

    def __init__(self, loader, timeout=600):
        """
        Args:
            loader (DataLoader): its ``timeout`` and ``worker_init_fn`` are set here.
            timeout (float): seconds to wait for a batch.
        """
        self.loader = loader
        self.timeout = timeout
        if loader.num_workers:
            loader.timeout = min(TICK, timeout)
            loader.worker_init_fn = _start_worker

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        iterator = iter(self.loader)
        done = threading.Event()
        if self.loader.num_workers:
            _WORKERS[:] = [*(w for w in _WORKERS if w.exitcode is None), *iterator._workers]
            arguments = weakref.ref(iterator), done
            threading.Thread(target=_end_stopped, args=arguments, daemon=True).start()
        return self._watch(iterator, done)

    def _watch(self, iterator, done):
        start = time.monotonic()
        try:
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except (RuntimeError, OSError, EOFError) as error:
                    reason = _what_happened(iterator, error, time.monotonic() - start, self.timeout)
                    if reason is None:
                        raise
                    if reason == "":
                        continue  # still waiting
                    raise RuntimeError(reason) from error
                yield batch
                start = time.monotonic()
        finally:
            done.set()
            _stop_workers(iterator)


def _start_worker(worker_id):
    # Ctrl-C and SLURM signal all processes; the training decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    # Otherwise a batch that finds no shared memory is dropped, and the training waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_leave)


def _leave(error, obj):
    traceback.print_exception(error)
    os._exit(NO_SHARED_MEMORY)


def explain_dead_worker(error):
    """What the death of a data worker means; None where ``error`` (text) does not speak of one.

    PyTorch reports it wherever the training happens to be.
    """
    if "DataLoader worker" not in error:
        return None
    if _STOPPED & {int(number) for number in re.findall(r"\d+", error)}:
        return (
            f"a data worker was stopped (SIGSTOP) for {TICK} s and gave nothing, so it was ended. "
            "Start again with --resume; suspend the training as a whole, not its workers."
        )
    if f"exit code {NO_SHARED_MEMORY}" in error or "Bus error" in error:
        usage = shutil.disk_usage("/dev/shm")
        return (
            "a data worker found no room in shared memory: of /dev/shm's "
            f"{usage.total / 2**20:.0f} MB {usage.free / 2**20:.0f} are free. Give it more (docker "
            "run --shm-size 8g), or set DATALOADER.NUM_WORKERS 0."
        )
    if "signal: Killed" in error:
        return (
            "a data worker was killed by signal 9. Most often the machine (or the job) ran out of "
            "memory: set DATALOADER.NUM_WORKERS lower, or ask for more memory."
        )
    return error


def _what_happened(iterator, error, seconds, timeout):
    """Why no batch came: a message; "" to go on waiting; None for an error of the dataset."""
    workers = getattr(iterator, "_workers", [])
    for worker in workers:
        worker.join(0.5 if isinstance(error, (OSError, EOFError)) else 0)
    for worker in workers:
        code = worker.exitcode
        if code:
            how = (
                f"killed by signal: {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
            )
            return explain_dead_worker(
                f"DataLoader worker (pid {worker.pid}) ended, {how}: {error}"
            )
    if not str(error).startswith("DataLoader timed out"):
        return explain_dead_worker(str(error))
    if seconds < timeout:
        logger.warning("No batch from the data workers for %.0f s; waiting.", seconds)
        return ""
    return (
        f"the data workers gave no batch for {seconds:.0f} s: is the storage slow or gone? "
        "DATALOADER.TIMEOUT (seconds) allows more."
    )


def _end_stopped(reference, done):
    """End workers that stay stopped: PyTorch would wait for what they share without a limit."""
    before = set()
    while not done.wait(TICK):
        workers = getattr(reference(), "_workers", [])
        stopped = {worker.pid for worker in workers if _is_stopped(worker.pid)}
        for pid in stopped & before:
            _STOPPED.add(pid)
            os.kill(pid, signal.SIGKILL)
        before = stopped


def _is_stopped(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _stop_workers(iterator):
    """End the workers of an iterator, those too that PyTorch cannot end, because they are busy."""
    workers = list(getattr(iterator, "_workers", []))
    with suppress(RuntimeError):  # PyTorch's, about workers that were killed
        for worker in workers:
            if worker.is_alive() and _is_stopped(worker.pid):
                worker.kill()
    with suppress(RuntimeError):
        if workers:
            iterator._shutdown_workers()
    with suppress(RuntimeError):
        for worker in workers:
            if worker.is_alive():
                worker.kill()


@atexit.register
def _kill_workers():
    """Python waits at its end for workers that are left; they have nothing to lose."""
    if _WORKERS and _WORKERS[0]._parent_pid == os.getpid():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's raises an error for each of them
        for worker in _WORKERS:
            if worker.is_alive():
                worker.kill()
