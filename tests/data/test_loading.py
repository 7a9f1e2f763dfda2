"""Training batches: the same whatever the workers do; workers that die or stop are reported."""

import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from amwc_d2.data import loading
from amwc_d2.data.loading import TrainingLoader, WatchedLoader, explain_dead_worker, seeded

SAMPLES = [{"file_name": f"{i}.png", "width": 3 + i % 2, "height": 3} for i in range(7)]


def draw(sample):
    if sample["file_name"] == "5.png":
        raise SyntaxError("broken PNG file")
    return {**sample, "drawn": float(np.random.rand()) + float(torch.rand(()))}


def batches(count, start=0, mapper=draw, **options):
    loader = TrainingLoader(SAMPLES, mapper, **{"batch_size": 2, "seed": 3, **options})
    loader.start = start
    return [[(x["file_name"], x["drawn"]) for x in b] for b, _ in zip(loader, range(count))], loader


@pytest.mark.parametrize("group", [False, True])
def test_batches_depend_on_seed_and_position_alone(group):
    found, loader = batches(9, group_by_aspect=group)
    assert list(loader.unreadable) == ["5.png"]
    later, _ = batches(4, start=5, group_by_aspect=group)
    assert later == found[5:]
    by_workers, loader = batches(9, group_by_aspect=group, num_workers=2)
    assert by_workers == found and list(loader.unreadable) == ["5.png"]
    assert batches(9, group_by_aspect=group, seed=4)[0] != found
    drawn = [d for batch in found for _, d in batch]
    assert len(set(drawn)) == len(drawn)  # an image that comes again is drawn anew
    if group:
        wide = {s["file_name"]: s["width"] > s["height"] for s in SAMPLES}
        batches_of = [{wide[f] for f, _ in b if f != "6.png"} for b in found]
        assert all(len(kinds) <= 1 for kinds in batches_of)  # 6.png takes the place of 5.png


def test_rare_classes_come_more_often():
    factors = torch.tensor([3.0] + [1.0] * (len(SAMPLES) - 1))
    found, _ = batches(60, repeat_factors=factors, mapper=lambda s: {**s, "drawn": 0.0})
    names = [name for batch in found for name, _ in batch]
    assert names.count("0.png") > 1.5 * len(names) / 7


def test_strict_and_hopeless_loaders_raise():
    with pytest.raises(ValueError, match=r"5.png \(truth None\) cannot be used: SyntaxError"):
        batches(9, strict=True)
    with pytest.raises(ValueError, match=r"cannot be used.*7 in a row"):
        batches(1, mapper=lambda sample: 1 / 0)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 0"):
        batches(1, batch_size=0)


def test_random_numbers_go_on_afterwards():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(())
    np.random.seed(0)
    torch.manual_seed(0)
    with seeded(1, 2):
        inside = np.random.rand(), torch.rand(())
    with seeded(1, 2):
        assert inside == (np.random.rand(), torch.rand(()))
    assert (np.random.rand(), torch.rand(())) == expected


# ---------------------------------------------------------------------------- workers
class Numbers(Dataset):
    """Does something to its worker at item 3."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3 and self.what == "lock":
            time.sleep(60)
        elif index == 3 and self.what is not None:
            os.kill(os.getpid(), self.what)
        return torch.full((4,), index)


@pytest.mark.parametrize(
    "what, said",
    [
        (signal.SIGKILL, "killed by signal 9. Most often .* memory"),
        (signal.SIGBUS, "no room in shared memory"),
        (signal.SIGSTOP, r"was stopped \(SIGSTOP\) for 1 s and gave nothing"),
        ("lock", r"gave no batch for \d s.*DATALOADER.TIMEOUT"),
    ],
)
def test_workers_in_trouble_are_reported(what, said, monkeypatch):
    monkeypatch.setattr(loading, "TICK", 1)
    loader = WatchedLoader(DataLoader(Numbers(what), num_workers=2), timeout=4)
    start = time.monotonic()
    # PyTorch itself reports a worker that was killed wherever the main thread happens to be.
    with pytest.raises(RuntimeError) as error:
        list(loader)
    assert time.monotonic() - start < 20
    assert re.search(said, explain_dead_worker(str(error.value)) or str(error.value))


def test_ctrl_c_and_sigterm_leave_the_workers_alone():
    loader = DataLoader(Numbers(signal.SIGTERM), num_workers=1)
    assert len(list(WatchedLoader(loader))) == 8
    loader = DataLoader(Numbers(signal.SIGINT), num_workers=1)
    assert len(list(WatchedLoader(loader))) == 8


def test_a_batch_without_shared_memory_ends_in_an_error():
    """The queue's thread cannot pass it on; PyTorch alone would wait for ever."""

    class Stuck(Numbers):
        def __getitem__(self, index):
            return Unpicklable() if index == 3 else index

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

    loader = DataLoader(Stuck(None), num_workers=1, collate_fn=lambda x: x)
    with pytest.raises(RuntimeError) as error:
        list(WatchedLoader(loader))
    text = str(error.value)
    assert "no room in shared memory" in (explain_dead_worker(text) or text)


def test_errors_of_the_dataset_are_passed_on():
    loader = WatchedLoader(DataLoader(Numbers(None), num_workers=1, collate_fn=lambda x: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        list(loader)
