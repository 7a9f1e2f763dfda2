"""The times of a training step, in the log."""

import logging

from detectron2.utils.events import EventWriter, get_event_storage

logger = logging.getLogger(__name__)


class PartTimeWriter(EventWriter):
    """Logs the median seconds per training step of each part: every scalar under ``time/``."""

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
            "seconds per step: %s",
            ", ".join(
                f"{k} {h.median(self.window):.4f}" for k, h in parts.items() if h is not None
            ),
        )
