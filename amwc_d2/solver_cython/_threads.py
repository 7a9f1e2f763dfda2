"""Runs problems on threads; every running problem has a working memory (arena) of its own."""

import os
import threading

from ._amwc import Arena

_arenas = []  # free working memories; list.append and list.pop are atomic


def release_memory():
    """Give back the working memories that are kept from solve to solve, but for those in use."""
    _arenas.clear()


def run(job):
    try:
        arena = _arenas.pop()
    except IndexError:
        arena = Arena()
    try:
        return job(arena)
    finally:
        _arenas.append(arena)


def run_batch(make_job, count, num_threads):
    threads = min(thread_count(num_threads), count)
    results, failures = [None] * count, {}
    todo = iter(range(count))
    stop = threading.Event()

    def work():
        for i in todo:  # next() of a range iterator is atomic
            if stop.is_set():
                return
            try:
                results[i] = run(make_job(i))
            except Exception as error:
                failures[i] = error
                stop.set()

    if threads <= 1:
        work()
    else:
        workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join()
        except BaseException:  # Ctrl-C: let the images in work finish, start no other
            stop.set()
            raise
    if failures:
        i = min(failures)
        error = failures[i]
        if isinstance(error, (TypeError, ValueError, MemoryError)):
            raise type(error)(f"image {i}: {error}") from error
        raise error
    return results


def thread_count(num_threads):
    """The threads that ``num_threads`` stands for: see :func:`solve_amwc_batch`."""
    if isinstance(num_threads, bool) or num_threads != int(num_threads) or num_threads < 0:
        raise ValueError(f"num_threads: expected an int >= 0 (0 = automatic), got {num_threads!r}")
    if num_threads:
        return int(num_threads)
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
