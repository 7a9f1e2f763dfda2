"""Where the time goes."""

import logging
import time
from collections import defaultdict
from contextlib import contextmanager

from detectron2.utils.events import EventWriter, get_event_storage

logger = logging.getLogger(__name__)


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


class PartTimeWriter(EventWriter):
    """Logs the median seconds of each part of a training step, whatever was put as ``time/...``."""

    def __init__(self, window: int = 20):
        """
        Args:
            window: the last steps that count.
        """
        self.window = window

    def write(self):
        histories = get_event_storage().histories()
        parts = {"data": histories.get("data_time")}
        parts.update(
            {k.removeprefix("time/"): h for k, h in histories.items() if k.startswith("time/")}
        )
        logger.info(
            "seconds a step: %s",
            ", ".join(
                f"{k} {h.median(self.window):.4f}" for k, h in parts.items() if h is not None
            ),
        )
