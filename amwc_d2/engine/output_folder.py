"""``OUTPUT_DIR`` belongs to one run at a time."""

import logging
import os
import socket
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def claim(folder):
    """Hold a folder for this process; the lock goes with the process, however it ends.

    Args:
        folder (str or Path): created if need be.

    Raises:
        RuntimeError: another process holds it.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        if not _lock(file):
            file.seek(0)
            raise RuntimeError(
                f"OUTPUT_DIR '{folder}' is in use by another run ({file.read().strip()}). Give "
                "this one another OUTPUT_DIR, or wait for it."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock(file):
    """Lock an open file; whether that worked. Children do not inherit the lock."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # a file system without locks
        logger.warning("OUTPUT_DIR cannot be locked (%s): start one run only in it.", error)
    return True


def check_unused(folder):
    """Check that a folder holds no checkpoints, which a new run would mix with its own.

    Raises:
        FileExistsError: it does.
    """
    found = sorted(p.name for p in Path(folder).glob("model_*.pth"))
    if found:
        raise FileExistsError(
            f"OUTPUT_DIR '{folder}' holds a run that exists already ({len(found)} checkpoints, "
            f"the last is {found[-1]}), and a new one would overwrite it. --resume continues it; "
            "otherwise give another OUTPUT_DIR, or remove the old run."
        )
