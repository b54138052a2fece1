from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import load_experiment, parse_experiment
from raydistill.errors import ConfigError

GOOD = """
name: good
data: {name: digits}
teacher: {model: resnet20, weights: teacher.safetensors}
student: {model: resnet8}
methods:
  ce: {weight: 0.5}
  soft: {name: kd, temperature: 2.0}
train: {epochs: 3}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


def test_overrides_win_over_the_file(good: Path) -> None:
    experiment = load_experiment(good, ["train.epochs=7", "methods.soft.temperature=8", "data.augment.flip=0.5"])
    assert experiment.train.epochs == 7
    assert experiment.methods["soft"].temperature == 8.0  # type: ignore[attr-defined]
    assert experiment.data.augment.flip == 0.5


def test_a_label_of_ones_own_names_its_method(good: Path) -> None:
    assert load_experiment(good).methods["soft"].name == "kd"


def test_null_takes_a_method_out(good: Path) -> None:
    assert list(load_experiment(good, ["methods.soft=null"]).methods) == ["ce"]


def test_the_resolved_experiment_is_an_input_that_resolves_to_itself(good: Path, tmp_path: Path) -> None:
    experiment = load_experiment(good)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(experiment.to_yaml())
    assert load_experiment(resolved) == experiment


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochz=3", "train.epochz: unknown key; did you mean 'epochs'?"),
        ("train.epochs=many", "train.epochs = 'many': must be a whole number"),
        ("train.epochs=0", "train.epochs = 0: must be greater than or equal to 1"),
        (
            "train.optimizer.name=sdg",
            "train.optimizer.name = 'sdg': must be one of sgd, adamw, lars; did you mean 'sgd'?",
        ),
        ("methods.ce.wieght=1", "methods.ce.wieght: unknown key; did you mean 'weight'?"),
        ("methods.ce.weight=-1", "methods.ce.weight = -1: must be greater than or equal to 0"),
        ("methods.ce.weight=.inf", "methods.ce.weight = inf: must be a finite number"),
        ("methods.cocrd.weight=1", "methods.cocrd: unknown method 'cocrd'; did you mean 'cocord'?"),
        ("methods.ce=3", "methods.ce = 3: must be a mapping (allowed keys: weight"),
        ("student.model=resnet9", "student.model = 'resnet9': unknown model 'resnet9'; did you mean 'resnet8'?"),
        ("student.head=fresh", "student: head: 'fresh' takes the rest of the network from 'weights'"),
        ("student.trains=head", "student: trains: 'head' leaves the features as they are, but no 'weights'"),
        ("student.trains=body", "student.trains = 'body': must be one of all, head"),
        ("student=3", "student = 3: must be a mapping (allowed keys: model, weights, taps, head, trains)"),
        ("data.name=digit", "data.name = 'digit': unknown data set 'digit'; did you mean 'digits'?"),
        ("data.name=cifar10", "root"),
        ("data.augment.flip=1.5", "data.augment.flip = 1.5: must be less than or equal to 1"),
        ("scale.workers=65", "train.batch_size = 64 is global and less than an image for each of scale.workers = 65"),
        ("train.accumulate=33", "train.accumulate = 33: train.batch_size = 64 is global and leaves less than two"),
        ("train.ema={decay: 1.0}", "train.ema.decay = 1.0: must be less than 1"),
        ("train.ema={dekay: 0.9}", "train.ema.dekay: unknown key; did you mean 'decay'?"),
        ("train.optimizer={name: lars, nesterov: true}", "nesterov belongs to 'sgd'; lars has plain momentum"),
        ("train.schedule={name: constant, floor: 0.1}", "floor is where 'cosine' ends"),
        ("train.precision=fp8", "train.precision = 'fp8': must be one of fp32, bf16, fp16, auto"),
        ("scale.min_workers=2", "scale: min_workers = 2: is more than workers = 1"),
        ("scale.use_gpu=maybe", "scale.use_gpu = 'maybe': must be true or false, or must be one of auto"),
        ("name=../escape", "name = '../escape': must begin with a letter or digit"),
        ("teacher=null", "methods.soft needs a teacher, but the experiment has no section 'teacher'"),
        ("evaluate.protocols=[top1,top]", "evaluate.protocols.1 = 'top': must be one of top1, top5"),
        ("train.schedule.name=multistep", "milestones are given exactly when name is 'multistep'"),
        ("methods.ce=[1]", "methods.ce=[1]: one is a list [...], the other a mapping"),
        ("tune.space={a.b: 4}", "tune.space.a.b = 4: must be a mapping, or must be one of auto"),
        ("cach.root=x", "cach: unknown key; did you mean 'cache'?"),
        ("epochs=3", "epochs: unknown key; did you mean 'train.epochs'?"),
        ("train.lr=0.1", "train.lr: unknown key; did you mean 'optimizer.lr'?"),
        ("zzz=1", "zzz: unknown key (allowed: "),
    ],
)
def test_a_mistake_is_named_with_path_value_and_choices(good: Path, override: str, expected: str) -> None:
    assert expected in message(good, override)


def test_a_head_is_trained_alone_where_something_trains_it_and_nothing_else_is(good: Path) -> None:
    frozen = ["student.weights=student.safetensors", "student.trains=head"]
    assert load_experiment(good, frozen).student.head == "keep"
    own = load_experiment(good, ["student.model=package:function", "student.trains=head"])
    assert own.student.weights is None  # the function may load them
    no_labels = [*frozen, "methods.ce=null", "methods.soft=null", "methods.compress={}"]
    assert "student.trains = 'head': no method trains the classifier" in message(good, *no_labels)
    peers = [*frozen, "teacher=null", "peers=[{model: resnet8}]"]
    assert "student.trains = 'head': peers are trained whole" in message(good, *peers)


def test_all_mistakes_are_told_at_once(good: Path) -> None:
    lines = message(good, "train.epochs=0", "methods.ce.weight=-1", "student.model=x", "nonsense=1").splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "mapping"),
        ("name: x", "data: required"),
        ("a: !!python/object:os.x {}", "YAML"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert expected in message(path)


def test_a_missing_file_and_a_malformed_override(good: Path, tmp_path: Path) -> None:
    assert "no such experiment file" in message(tmp_path / "absent.yaml")
    assert "key.path=value" in message(good, "train.epochs")


@given(
    st.dictionaries(st.text(max_size=8), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4))
)
def test_any_mapping_is_an_experiment_or_a_config_error(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        parse_experiment(values)


def test_checking_a_configuration_imports_neither_torch_nor_ray(good: Path) -> None:
    code = (
        "import sys\nfrom raydistill.config import load_experiment\n"
        f"load_experiment({str(good)!r})\nassert not {{'torch', 'ray', 'pandas'}} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
