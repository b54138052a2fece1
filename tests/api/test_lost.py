"""A notebook that is lost in the middle, and the same cells run once more: one student, as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands import PATIENCE

EPOCHS = 60
CELLS = f"""
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import raydistill


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.fc = nn.Linear(width, 10)

    def forward(self, images):
        return self.fc(self.body(images))


if __name__ == "__main__":
    name, resume = sys.argv[1], sys.argv[2:] == ["resume"]
    torch.manual_seed(0)
    teacher, student = Net(64), Net(8)
    digits = load_digits()
    images, labels = (digits.images[:200] * 15.9).astype("uint8"), digits.target[:200]
    result = raydistill.distill(
        teacher, student, (images, labels), ["ce", "kd"], epochs={EPOCHS}, workers=2, name=name, resume=resume
    )
    print(len(result.history), result.run)
"""


@pytest.mark.slow
def test_a_notebook_that_was_killed_goes_on_to_the_same_student_with_two_workers(tmp_path: Path) -> None:
    script = tmp_path / "cells.py"
    script.write_text(CELLS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def begin(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    whole = begin("whole")
    assert whole.communicate(timeout=PATIENCE)[0].split() == [str(EPOCHS), "runs/whole"]

    lost, metrics = begin("lost"), tmp_path / "runs" / "lost" / "metrics.jsonl"
    while lost.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    os.killpg(lost.pid, signal.SIGKILL)
    lost.communicate()
    assert not (metrics.parent / "_SUCCESS").exists()

    again = begin("lost", "resume")
    assert again.communicate(timeout=PATIENCE)[0].split() == [str(EPOCHS), "runs/lost"]
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == list(range(1, EPOCHS + 1))
    students = [load_file(tmp_path / "runs" / name / "student.safetensors") for name in ("whole", "lost")]
    assert students[0].keys() == students[1].keys()
    assert all(students[0][key].equal(students[1][key]) for key in students[0])
