"""Detectron2's ``launch``, whose processes leave their process groups before they end."""

import torch.distributed as dist
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm


def launch(main_func, *launch_args, args=(), **launch_kwargs):
    """As :func:`detectron2.engine.launch`, and every process leaves its process groups at the end.

    A process that ends in a process group may die with SIGABRT ("terminate called without an active
    exception") although its work is done: gloo's threads still run, and one that lets go of a
    tensor while the interpreter shuts down aborts the process. The launcher then reports a failed
    run. An exception in ``main_func`` is passed on with the groups as they are, because leaving
    them could wait for a process that is stuck.

    Args:
        main_func (callable): what every process runs, ``main_func(*args)``.
        launch_args, launch_kwargs: the other arguments of :func:`detectron2.engine.launch`.
        args (tuple): arguments of ``main_func``.
    """
    launch_detectron2(_work_and_leave, *launch_args, args=(main_func, args), **launch_kwargs)


def _work_and_leave(main_func, args):
    main_func(*args)
    if dist.is_initialized():
        # A group's threads end with its last reference, and Detectron2 keeps two of them.
        comm._get_global_gloo_group.cache_clear()
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
