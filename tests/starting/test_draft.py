"""Drafts: each loads, says what is missing, and names commands that go from it to a report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from raydistill.config import Experiment, load_experiment
from raydistill.errors import ConfigError
from raydistill.methods.registry import METHODS, method_class
from raydistill.starting.draft import Choices, Draft, draft, goals
from raydistill.tuning.space import parse_space

TAUGHT = sorted(name for name in METHODS if method_class(name)().needs().teacher)


def drafted(goal: str = "compress", path: Path = Path("photos.yaml"), **choices: object) -> Draft:
    return draft(Choices(goal, **({"root": "photos"} | choices if goal != "digits" else choices)), path)  # type: ignore[arg-type]


def loaded(found: Draft, folder: Path) -> Experiment:
    file = folder / "photos.yaml"
    file.write_text(found.text)
    return load_experiment(file)


@pytest.mark.parametrize("goal", goals())
@pytest.mark.parametrize("tune", [False, True])
def test_a_draft_for_every_goal_loads(tmp_path: Path, goal: str, tune: bool) -> None:
    found = drafted(goal, tune=tune)
    experiment = loaded(found, tmp_path)
    assert experiment == found.experiment
    assert experiment.name == "photos"
    assert (experiment.tune is not None) == (tune or goals()[goal].tune)
    if experiment.tune is not None:
        assert len(parse_space(experiment)) >= 2
    assert ("ce" in experiment.methods) == goals()[goal].labels


@pytest.mark.parametrize("method", TAUGHT)
@pytest.mark.parametrize("labels", [True, False])
def test_a_draft_with_any_method_that_has_a_teacher_loads(tmp_path: Path, method: str, labels: bool) -> None:
    if not labels and not method_class(method)().weight:  # it teaches in a stage of its own, before distillation
        with pytest.raises(ConfigError, match="at least one needs a weight above 0"):
            drafted(method=method, labels=labels, weights="teacher.pt")
        return
    found = drafted(method=method, labels=labels, weights="teacher.pt", tune=True)
    experiment = loaded(found, tmp_path)
    assert method in experiment.methods
    assert experiment.methods[method] == method_class(method)()
    assert parse_space(experiment)
    assert not experiment.reads_cache or set(experiment.cache.outputs) <= {"logits", "embedding"}


def test_every_key_is_explained() -> None:
    """But for sections, whose keys are, ranges, and the words before the experiment."""
    lines = drafted("tune").text.partition("\nname:")[2].splitlines()
    keys = [line for line in lines if re.match(r" +[A-Za-z_]+: \S", line)]
    assert len(keys) > 15
    assert [line for line in keys if "  # " not in line] == []


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"goal": "compres"}, "did you mean 'compress'"),
        ({"data": "fashon_mnist"}, "did you mean 'fashion_mnist'"),
        ({"teacher": "torchvision/resnet81"}, "did you mean 'torchvision/resnet"),
        ({"student": "resnett8"}, "did you mean 'resnet8"),
        ({"method": "kdd"}, "did you mean 'kd"),
        ({"layout": "moco2"}, "did you mean 'moco_v2'"),
        ({"method": "ce"}, "learns without a teacher"),
        ({"labels": False}, "without labels no teacher can be trained"),
    ],
)
def test_what_is_unknown_or_cannot_be_is_told(choices: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        drafted(**choices)  # type: ignore[arg-type]
    assert said in str(caught.value)


@pytest.mark.parametrize("root", ["my photos", "a: b", "c#d", "'quoted\"", "true", "12", "- x", "{y}", "größe", "@z"])
def test_any_folder_comes_back_as_it_was_given(tmp_path: Path, root: str) -> None:
    assert loaded(drafted(root=root), tmp_path).data.root == root


def test_a_teacher_that_has_weights_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    untrained = drafted()
    assert untrained.next[0] == "raydistill teacher photos.yaml"
    (line,) = untrained.missing
    assert line.startswith("teacher.weights: no file runs/photos-teacher/model.safetensors yet; the first command")
    absent = drafted(weights="own.pt")
    assert absent.missing == ("teacher.weights: no file own.pt yet; put the checkpoint there",)
    (tmp_path / "own.pt").touch()
    there = drafted(weights="own.pt")
    assert there.missing == ()
    assert there.next == absent.next
    assert not any("teacher photos.yaml" in command for command in there.next)
    published = drafted("unlabelled")
    assert published.missing == ("teacher.weights: no file weights/moco_v2.pth.tar yet; put the checkpoint there",)


def test_a_network_of_ones_own_may_load_its_weights_itself(tmp_path: Path) -> None:
    experiment = loaded(drafted(teacher="my.networks:large"), tmp_path)
    assert experiment.teacher is not None
    assert (experiment.teacher.model, experiment.teacher.weights) == ("my.networks:large", None)


def test_whole_maps_are_not_cached() -> None:
    found = drafted(method="at")
    assert found.experiment.teacher is not None
    assert found.experiment.teacher.source == "live"
    assert not any("cache" in command for command in found.next)


def test_commands_name_the_file_as_a_shell_reads_it() -> None:
    found = drafted("tune", path=Path("some where/photos.yaml"))
    words = [shlex.split(command) for command in found.next]
    assert ["raydistill", "tune", "some where/photos.yaml"] in words
    assert ["raydistill", "train", "runs/photos/best.yaml", "name=photos-best"] in words
    assert words[-1][1] == "report"
