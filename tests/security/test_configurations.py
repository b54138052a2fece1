"""Experiment files from anybody: plain values or one line, whatever stands in them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from raydistill.config import load_experiment
from raydistill.errors import ConfigError, InputError
from tests.security.attacks import LAUGHS, command, mutated_text, nothing_written, refused

SOUND = b"""name: sound
seed: 1
output: runs
data: {name: digits, validation: 0.2, augment: {crop: 1, flip: 0.5}}
teacher: {model: resnet20, weights: runs/teacher/model.safetensors}
student:
  model: resnet8
  taps: {embedding: blocks.1}
methods:
  ce: {weight: 1.0}
  soft: {name: kd, temperature: 4.0}
train: {epochs: 3, batch_size: 48, schedule: {name: multistep, milestones: [1, 2]}}
cache: {root: cache, outputs: [logits, embedding], views: 1}
tune: {samples: 2, space: {methods.soft.temperature: {loguniform: [1, 10]}}}
evaluate: {protocols: [top1, knn], transfer: {again: {name: digits}}}
track: {mlflow: {tags: {a: b}}}
"""


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "experiment.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name: !!python/object/apply:os.system ["touch {sprung}"]', "could not determine a constructor"),
        ("name: !!python/object/new:os.system [touch]", "could not determine a constructor"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ("name: !!python/module:antigravity", "could not determine a constructor"),
        ("name: !!timestamp x", "holds a value that is none|groupdict"),
        ("name: !!bool x", "'x'"),
        (f"name: {'9' * 5000}", "limit"),
        (LAUGHS, "stands for more than"),
        ("name: &a [*a]", "stands within what it stands for"),
        ("name: " + "[" * 100_000, "nested more than 50 deep"),
        ("name: " + "{a: " * 50_000, "nested more than 50 deep"),
        ("\n".join(f"{' ' * n}a:" for n in range(300)), "nested more than 50 deep"),
        ("a0: xxxxxxxxxx\n" + "\n".join(f"a{n + 1}: ${{a{n}}}${{a{n}}}" for n in range(40)), "references"),
        ("name: " + "${" * 10_000, "references"),
        ("name: ${name}", "interpolation"),
        ("#" * (1 << 20), "KiB"),
        (b"\xff\xfe\x00", "decode|codec"),
        (b"\x00", "not valid YAML"),
        ("- a", "an experiment is a mapping"),
    ],
    ids=range(19),
)
def test_what_is_no_experiment_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, text)
    with nothing_written(tmp_path):
        line = refused("train", path)
    assert any(each in line for each in said.split("|")), line


def test_a_moderate_use_of_aliases_and_references_stays_allowed(tmp_path: Path) -> None:
    text = "name: x\nseed: ${train.epochs}\ndata: &d {name: digits}\nstudent: {model: resnet8}\nmethods: {ce: {}}\n"
    text += "train: {epochs: 4}\nevaluate: {transfer: {again: *d}}\n"
    experiment = load_experiment(written(tmp_path, text))
    assert experiment.seed == 4
    assert experiment.evaluate.transfer["again"].name == "digits"


@pytest.mark.parametrize("name", ["../x", "/x", "..", ".", "x/y", "x\\ny", "-x", "", "x" * 101, "\\0", "x\\n"])
@pytest.mark.parametrize("key", ["name", "methods", "evaluate.transfer"])
def test_names_that_become_paths_or_tags_hold_nothing_that_leads_away(tmp_path: Path, key: str, name: str) -> None:
    values = {"name": "x", "methods": "ce", "evaluate.transfer": "again"} | {key: name}
    text = (
        f'name: "{values["name"]}"\ndata: {{name: digits}}\nstudent: {{model: resnet8}}\n'
        f'methods: {{"{values["methods"]}": {{name: ce}}}}\n'
        f'evaluate: {{transfer: {{"{values["evaluate.transfer"]}": {{name: digits}}}}}}\n'
    )
    line = refused("train", written(tmp_path, text))
    assert key.partition(".")[0] in line


@pytest.mark.parametrize("key", ["output", "teacher.weights", "cache.root", "data.root", "student.weights"])
@pytest.mark.parametrize("path", ["\\0", "x" * 300, "x/" * 2500])
def test_paths_that_no_file_system_can_hold_are_told_before_one_is_asked(tmp_path: Path, key: str, path: str) -> None:
    file = written(tmp_path, SOUND)
    line = refused("train", file, f'{key}="{path}"')
    assert key in line


def test_a_teacher_trained_into_a_folder_above_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    path = written(tmp_path, SOUND)
    with nothing_written(tmp_path):
        for weights in ("../model.safetensors", "model.safetensors", "../../model.safetensors"):
            assert "name" in refused("teacher", path, f"teacher.weights={weights}")


def check_mutations(folder: Path, count: int) -> None:
    """Whatever becomes of a sound file, it is an experiment or its mistakes are told."""
    draw = random.Random(count)
    path = folder / "experiment.yaml"
    outcomes = {True: 0, False: 0}
    for number in range(count):
        path.write_bytes(mutated_text(SOUND, draw))
        try:
            load_experiment(path)
            outcomes[True] += 1
        except InputError as error:
            assert isinstance(error, ConfigError)
            assert str(error).startswith(str(path))
            outcomes[False] += 1
            if number % 20 == 0:
                result = command("tune", str(path))
                assert (result.exit_code, result.stderr) == (2, f"raydistill: {error}\n")
        except BaseException as error:
            error.add_note(repr(path.read_bytes()))
            raise
    assert min(outcomes.values()) > count / 20  # mutations that are too coarse would show nothing


def test_mutated_experiments_are_experiments_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_mutations(tmp_path, 1_000)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


@pytest.mark.slow
def test_ten_thousand_mutated_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_mutations(tmp_path, 10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]
