"""SIGTERM and SIGINT (Ctrl-C), kept until the work is safe."""

import os
import signal
import threading
import time
from contextlib import contextmanager

from detectron2.utils import comm

PATIENCE = 5  # seconds


class Interruption:
    """Notes SIGTERM and SIGINT instead of ending the process; one that comes later ends it at once.

    A signal often comes twice, to the process and by way of its launcher: within ``PATIENCE``
    seconds it counts as one.

    ::

        with Interruption() as interruption:
            for step in steps:
                step()
                if interruption.agreed():
                    save()
                    interruption.leave()
            with interruption.at_once():
                evaluate()

    Outside the main thread, where Python takes no signals, it does nothing.

    Attributes:
        number: of the signal that has come, or None.
    """

    def __init__(self):
        self.number = None
        self._since = 0.0
        self._at_once = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number, frame):
        again = self.number is not None
        if again and time.monotonic() - self._since < PATIENCE and not self._at_once:
            return
        self.number, self._since = number, time.monotonic()
        if again or self._at_once:
            os.write(2, f"{self.name}: ending at once; checkpoints are whole\n".encode())
            self.leave()
        # The logger may be in use just now.
        message = f"{self.name}: ending after this step (again, after {PATIENCE} s: at once)\n"
        os.write(2, message.encode())

    @property
    def name(self):
        """Such as "SIGTERM"."""
        return signal.Signals(self.number).name

    def agreed(self):
        """Whether any process of the run was interrupted; all of them must ask together."""
        numbers = comm.all_gather(self.number)
        self.number = next((n for n in numbers if n is not None), None)
        return self.number is not None

    @contextmanager
    def at_once(self):
        """A block with nothing to lose: a signal ends the process there and then."""
        if self.number is not None:
            self.leave()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def leave(self):
        """Raise SystemExit with the status that shells give: 143 for SIGTERM, 130 for SIGINT."""
        raise SystemExit(128 + self.number)
