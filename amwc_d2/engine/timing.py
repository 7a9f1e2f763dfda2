"""The times of a training step, in the log."""

import logging
import time

import torch
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


def time_forward(model) -> None:
    """Put ``time/network`` and ``time/criterion`` of every training step into the event storage.

    The network ends with its affinity head, the last part that runs; the criterion is what then
    remains of ``forward`` without the solver, which ``AMWCPanoptic`` times itself.

    Args:
        model: an ``AMWCPanoptic``.
    """
    seconds = {}

    def now():
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # reading the losses would wait for it as well
        return time.perf_counter()

    def start(module, inputs):
        seconds["start"] = time.perf_counter()

    def network_done(module, inputs, output):
        if model.training:
            seconds["network"] = now()

    def done(module, inputs, output):
        if model.training:
            storage = get_event_storage()
            solver = storage.latest().get("time/solver_forward", (0.0, 0))[0]
            storage.put_scalars(
                **{
                    "time/network": seconds["network"] - seconds["start"],
                    "time/criterion": time.perf_counter() - seconds["network"] - solver,
                }
            )

    model.register_forward_pre_hook(start)
    model.ins_embed_head.register_forward_hook(network_done)
    model.register_forward_hook(done)
