"""Time, memory and yardsticks of the solver's benchmark."""

import re
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from solver_instances import Instance, make_instance


class Timed(NamedTuple):
    """A function's result and its CPU seconds in each turn, the mean of two runs."""

    result: object
    turns: np.ndarray

    @property
    def seconds(self):
        """The median."""
        return float(np.median(self.turns))

    @property
    def spread(self):
        """Half the distance between the quartiles."""
        low, high = np.percentile(self.turns, [25, 75])
        return float(high - low) / 2


def measure(functions, repeats):
    """Run the functions in turns; return {name: Timed}.

    A turn runs them once forwards and once backwards, or it would always be the same function that
    finds its input in the cache because the one before it read the same.
    """
    results, seconds = {}, {name: np.zeros(repeats) for name in functions}
    for turn in range(repeats):
        for name in [*functions, *reversed(functions)]:
            start = time.thread_time()
            results[name] = functions[name]()
            seconds[name][turn] += (time.thread_time() - start) / 2
    return {name: Timed(results[name], seconds[name]) for name in functions}


def ratio(one, other):
    """Quartiles of the ratio of two functions' times, turn by turn.

    What slows the machine for a while slows both.
    """
    return np.percentile(np.divide(one, other), [25, 50, 75])


def peak_extra(make_call, instance):
    """Memory that one call needs beyond its input, measured in a fresh process.

    Args:
        make_call: picklable function of an instance that returns the function to measure.
        instance: the :class:`Instance`.

    Returns:
        Bytes, or None where the system does not tell (it needs Linux's /proc).
    """
    with tempfile.TemporaryDirectory() as folder:
        for field in Instance._fields:
            np.save(Path(folder) / f"{field}.npy", getattr(instance, field))
        context = get_context("spawn")
        queue = context.SimpleQueue()
        process = context.Process(target=_peak_extra_child, args=(make_call, folder, queue))
        process.start()
        process.join()
        return None if process.exitcode else queue.get()


def _peak_extra_child(make_call, folder, queue):
    instance = Instance(*(np.load(Path(folder) / f"{field}.npy") for field in Instance._fields))
    instance = instance._replace(distances=instance.distances.tolist())
    make_call(make_instance("street", 8, 8, 0, "easy"))()  # all code is loaded now
    call = make_call(instance)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status("VmRSS")
        call()
        queue.put(_status("VmHWM") - before)
    except OSError:
        queue.put(None)


def _status(key):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024


def floor_seconds(instance):
    """Time to read all costs once on one core: the least that any solver needs."""
    arrays = [a.ravel().view(np.int32) for a in (instance.node_costs, instance.edge_costs)]
    return measure({"read": lambda: [np.bitwise_or.reduce(a) for a in arrays]}, 9)["read"].seconds


def trivial_bound(instance):
    """Every node its cheapest class and every repulsive edge cut."""
    edges = 0.0
    height, width = instance.classes.shape
    for d, layers in zip(instance.distances, instance.edge_costs):
        edges += np.minimum(layers[0, :, : max(width - d, 0)], 0).sum(dtype=float)
        edges += np.minimum(layers[1, : max(height - d, 0)], 0).sum(dtype=float)
    return float(instance.node_costs.min(0).sum(dtype=float) + edges)
