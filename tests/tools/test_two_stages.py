"""The demo's command: both stages, evaluated, in one table, with panels."""

import os
import subprocess
import sys

import pytest


def run(repository, output, *options):
    return subprocess.run(
        [sys.executable, "tools/two_stages.py"]
        + ["configs/Toy-PanopticSegmentation/amwc_R18.yaml", "--output", str(output)]
        + ["--panels", "1", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", *options],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_both_stages_table_and_panels(repository, toy_root, tmp_path):
    tests = "('toy_panoptic_val', 'toy_panoptic_train')"  # the table has the first
    result = run(repository, tmp_path, "--oracle", "both", "DATASETS.TEST", tests)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "table.md").read_text().splitlines()
    ]
    assert rows[0][:4] == ["toy_panoptic_val", "PQ", "PQ_th", "PQ_st"]
    assert [row[0] for row in rows[2:]] == [
        "stage 1 (amwc_R18)",
        "stage 1, calibrated",
        "stage 2 (amwc_R18_e2e)",
        "amwc_R18_e2e, oracle: both",
        "grid ceiling",
    ]
    assert all(0 < float(row[6]) <= 100 for row in rows[2:]), "mIoU"
    ceiling = float(rows[-1][1])
    assert all(0 <= float(row[1]) <= ceiling for row in rows[2:])
    assert float(rows[4][1]) < float(rows[5][1]) > 0.8 * ceiling
    assert 60 < ceiling < 100
    assert len(list((tmp_path / "panels").glob("*.png"))) == 1
    assert (tmp_path / "amwc_R18_e2e/model_final.pth").exists()

    # A failing stage is named, and nothing after it runs.
    result = run(repository, tmp_path / "other", "MODEL.AMWC.COST_DROPOUT", "2.0")
    assert result.returncode != 0
    assert "COST_DROPOUT must be in [0, 1), got 2.0" in result.stdout + result.stderr
    assert "tools/train_net.py failed" in result.stderr
    assert not (tmp_path / "other/amwc_R18_e2e").exists()


def test_the_config_of_stage_two_is_looked_for_first(repository, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(f"_BASE_: {repository}/configs/Toy-PanopticSegmentation/amwc_R18.yaml\n")
    command = [sys.executable, "tools/two_stages.py", str(config), "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert result.returncode and "mine_e2e.yaml does not exist" in result.stderr
    assert not (tmp_path / "mine").exists()
