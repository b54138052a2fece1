"""The one command that a newcomer types."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pages import ROOT, follow


@pytest.mark.slow
def test_the_demo_goes_from_a_teacher_to_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raydistill.cli", "demo", "--json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert set(answer) == {"run", "report", "teacher_top1", "baseline_top1", "student_top1"}
    assert answer["teacher_top1"] > 85.0
    assert min(answer["baseline_top1"], answer["student_top1"]) > 60.0
    page = (tmp_path / answer["report"]).read_text()
    assert "Sweep" in page
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    for name in ("teacher", "sweep", "student", "alone"):
        assert (tmp_path / answer["run"] / name / "_SUCCESS").is_file()
    follow(ROOT / "docs" / "tutorials" / "demo.md", tmp_path, done=["raydistill demo"])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: x\ndata: {name: digits}\nstudent: {model: resnet8}\nmethods: {ce: {}}\ntrain: {epochs: 400}\n"
    )
    command = [sys.executable, "-m", "raydistill.cli", "train", "x.yaml"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "x" / "metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130, said
    assert "--resume goes on" in said
    assert "Traceback" not in said
    done = len(metrics.read_text().splitlines())
    assert not (tmp_path / "runs" / "x" / "_SUCCESS").exists()

    # The finish line is moved, so that the rest is short.
    ended = subprocess.run(
        [*command, f"train.epochs={done + 2}", "--resume", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["epochs"] == done + 2
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == list(range(1, done + 3))
