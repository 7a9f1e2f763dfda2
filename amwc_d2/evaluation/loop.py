"""Evaluation in which network, solver and metrics work on different batches at the same time.

While the network computes a batch, other threads load the next one, solve and post-process the one
before (``AMWCPanoptic.label``) and evaluate the one before that. Solver, PyTorch and NumPy
release Python's lock while they compute. Every part is one thread, so the order is kept; the
number of batches on the way, and with it the memory, is bounded.
"""

import logging
import time
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import torch
from detectron2.evaluation import inference_context
from detectron2.utils import comm

logger = logging.getLogger(__name__)

MAX_WAITING = 2  # batches that the network may be ahead of the evaluator
LOG_PERIOD = 10.0  # seconds


class Stopwatch:
    """Adds up wall seconds by part: ``with watch("network"): ...``.

    Threads may share a watch if each part belongs to one thread.
    """

    def __init__(self):
        self.seconds = defaultdict(float)

    @contextmanager
    def __call__(self, part: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start


def run_inference(model, data_loader, evaluator) -> tuple[int, float, dict[str, float]]:
    """Show a dataset to a model and its outputs to an evaluator, in order.

    Args:
        model (AMWCPanoptic): or ``DistributedDataParallel`` around one.
        data_loader: iterable of batches, lists of dicts; stays on one thread.
        evaluator (DatasetEvaluator): ``process`` is called for one batch after the other.

    Returns:
        the number of images, wall seconds, and seconds by part: ``data``, ``network``, ``labels``
        (solver and post-processing) and ``evaluator``. The parts overlap.

    Raises:
        whatever one of the parts raised.
    """
    network = getattr(model, "module", model)
    watch = Stopwatch()
    batches = iter(data_loader)

    def load():
        with watch("data"):
            return next(batches, None)

    @torch.no_grad()
    def label(inputs, prediction):
        with watch("labels"):
            return network.label(inputs, prediction)

    @torch.no_grad()
    def process(inputs, labelled):
        outputs = labelled.result()
        with watch("evaluator"):
            evaluator.process(inputs, outputs)

    start = last_log = time.perf_counter()
    done, waiting = 0, deque()
    with ExitStack() as stack:
        loading, labelling, evaluating = (
            stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix=name))
            for name in ("data", "labels", "evaluator")
        )
        stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        upcoming = loading.submit(load)
        while (inputs := upcoming.result()) is not None:
            upcoming = loading.submit(load)
            with watch("network"):
                prediction = network.predict(inputs)
            labelled = labelling.submit(label, inputs, prediction)
            waiting.append(evaluating.submit(process, inputs, labelled))
            del prediction, labelled
            if len(waiting) > MAX_WAITING:
                waiting.popleft().result()
            done += len(inputs)
            if time.perf_counter() - last_log > LOG_PERIOD:
                last_log = time.perf_counter()
                logger.info("%d images, %.3f s per image", done, (last_log - start) / done)
        while waiting:
            waiting.popleft().result()
    return done, time.perf_counter() - start, watch.seconds


def together(function, *args):
    """Call a function on every process of the run; where one raises, all do, and none waits.

    Returns:
        what it returned on this process.

    Raises:
        what the function raised here; RuntimeError where it did so on another process only.
    """
    result, failure = None, None
    try:
        result = function(*args)
    except Exception as error:
        failure = error
    failures = comm.all_gather(failure and repr(failure))
    if failure:
        raise failure
    for rank, text in enumerate(failures):
        if text:
            raise RuntimeError(f"process {rank} of {len(failures)} failed: {text}")
    return result


def evaluate(model, data_loader, evaluator) -> dict:
    """Evaluate a model on a dataset; log the time of each part.

    Does what ``detectron2.evaluation.inference_on_dataset`` does, with the parts side by side.

    Args:
        model, data_loader, evaluator: see :func:`run_inference`.

    Returns:
        the evaluator's results; empty except in the main process.
    """
    evaluator.reset()
    count, seconds, parts = together(run_inference, model, data_loader, evaluator)
    logger.info(
        "%d images in %.1f s: %.4f s per image; the parts, which overlap: %s",
        count,
        seconds,
        seconds / max(count, 1),
        ", ".join(f"{part} {value / max(count, 1):.4f}" for part, value in parts.items()),
    )
    return together(evaluator.evaluate) or {}
