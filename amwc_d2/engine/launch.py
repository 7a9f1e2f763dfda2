"""Detectron2's ``launch``, whose processes leave their process groups before they end."""

import multiprocessing
import os
import signal

import torch.distributed as dist
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

INTERRUPTED = (130, 143)  # exit status after SIGINT and SIGTERM


def launch(main_func, num_gpus_per_machine, num_machines=1, *launch_args, args=(), **launch_kwargs):
    """As :func:`detectron2.engine.launch`, and every process leaves its process groups at the end.

    A process that ends in a process group may die with SIGABRT ("terminate called without an active
    exception") although its work is done: gloo's threads still run, and one that lets go of a
    tensor while the interpreter shuts down aborts the process. The launcher then reports a failed
    run. An exception in ``main_func`` is passed on with the groups as they are, because leaving
    them could wait for a process that is stuck.

    Args:
        main_func (callable): what every process runs, ``main_func(*args)``.
        num_gpus_per_machine, num_machines (int): processes, when multiplied.
        launch_args, launch_kwargs: the other arguments of :func:`detectron2.engine.launch`.
        args (tuple): arguments of ``main_func``.

    Raises:
        SystemExit: the processes were interrupted (status 143 or 130) and have saved their work.
    """
    before = {}
    if num_gpus_per_machine * num_machines > 1:
        # Processes save what they have and leave; the launcher waits for them.
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, _pass_on)
    try:
        launch_detectron2(
            _work_and_leave, num_gpus_per_machine, num_machines, *launch_args,
            args=(main_func, args), **launch_kwargs,
        )  # fmt: skip
    except ProcessExitedException as error:
        if error.exit_code not in INTERRUPTED:
            raise
        raise SystemExit(error.exit_code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number, frame):
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)


def _work_and_leave(main_func, args):
    try:
        main_func(*args)
    except SystemExit:  # an interrupted training, whose processes agreed on leaving
        _leave_process_groups()
        raise
    _leave_process_groups()


def _leave_process_groups():
    if dist.is_initialized():
        # A group's threads end with its last reference, and Detectron2 keeps two of them.
        comm._get_global_gloo_group.cache_clear()
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
