"""What holds of every command: help with an example that works, one line for what is wrong, and --quiet."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from raydistill.cli import app
from tests.conftest import digits

ROOT: Any = typer.main.get_command(app)
PROGRESS = [
    *("demo", "teacher", "train", "tune", "eval", "judge", "report", "compare", "export", "finetune", "submit", "pull"),
    *("doctor", "cache build", "cache plan", "cache verify", "cache export", "cache rank", "cache diff"),
]


CACHE = ROOT.commands["cache"].commands
COMMANDS = {name: command for name, command in ROOT.commands.items() if name != "cache"}
COMMANDS |= {f"cache {name}": command for name, command in CACHE.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(name: str) -> None:
    path = name.split()
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    (line,) = [line for line in shown.stdout.splitlines() if line.strip().startswith("Example: ")]
    words = shlex.split(line)[1:]
    assert words[: len(path) + 1] == ["raydistill", *path]
    COMMANDS[name].make_context(path[-1], words[len(path) + 1 :])


def test_help_tells_of_the_commands_as_a_user_meets_them() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    words = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.split()]
    told = [word for word in words if word in ROOT.commands]
    order = "init demo teacher cache train tune eval judge report compare export finetune submit pull list doctor"
    assert told == order.split()
    assert "Begin:" in shown
    assert "..." not in shown.partition("Begin:")[2]


def test_no_command_shows_the_help_and_ends_as_wrong_input() -> None:
    for path in ([], ["cache"]):
        ended = CliRunner().invoke(app, path)
        assert ended.exit_code == 2
        assert ended.stdout == ""
        assert "--help" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "raydistill: no command 'trian'; did you mean 'train'? (commands: init, demo, "),
        (["cache", "biuld"], "raydistill: no command 'biuld'; did you mean 'build'? (commands: build, plan, "),
        (["--jsn", "train"], "raydistill: no option '--jsn'"),
        (["train", "x.yaml", "--resum"], "raydistill: train: no option '--resum'; did you mean '--resume'?; see "),
        (
            ["train", "x.yaml", "--epochs", "3"],
            "raydistill: train: no option '--epochs'; keys of the experiment have no ",
        ),
        (["cache", "rank", "x.yaml"], "raydistill: cache rank: missing argument 'PATH...'; see "),
        (["train"], "raydistill: train: missing argument 'CONFIG'; see "),
        (["judge", "runs/x", "--seeds", "many"], "raydistill: judge: invalid value for '--seeds': "),
        (["doctor", "now"], "raydistill: doctor: got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, arguments, prog_name="raydistill")
    assert ended.exit_code == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("arguments", "loads", "said"),
    [
        (["train", "x.yaml"], "raydistill.commands.training.load", "the same command with --resume goes on"),
        (["cache", "build", "x.yaml"], "raydistill.commands.cache.load", "run the same command again"),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], loads: str, said: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loads, interrupt)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 130
    assert ended.stderr.splitlines() == [f"raydistill: interrupted; {said}"]


def test_the_version_is_that_of_the_package() -> None:
    ended = CliRunner().invoke(app, ["--version"])
    assert ended.exit_code == 0
    assert ended.stdout == f"raydistill {metadata.version('raydistill')}\n"


def test_list_alone_says_what_can_be_listed() -> None:
    ended = CliRunner().invoke(app, ["list", "--json"])
    assert ended.exit_code == 0
    *lines, last = ended.stdout.splitlines()
    names = json.loads(last)["names"]
    assert [line.split()[0] for line in lines] == names == ["methods", "models", "datasets", "protocols", "layouts"]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_shows_progress_can_be_quiet(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert ("--quiet" in options) == (name in PROGRESS)


def test_quiet_training_prints_its_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(digits(tmp_path, train={"epochs": 1, "batch_size": 48}).to_yaml())
    loud = CliRunner().invoke(app, ["train", "x.yaml", "--json"])
    assert loud.exit_code == 0, loud.stderr
    assert "epoch 1/1" in loud.stderr
    quiet = CliRunner().invoke(app, ["train", "x.yaml", "name=again", "--json", "--quiet"])
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout).keys() == json.loads(loud.stdout).keys()
    for option, said in (([], True), (["--quiet"], False)):
        measured = CliRunner().invoke(app, ["eval", "runs/digits", "--protocol", "top1", *option])
        assert measured.exit_code == 0, measured.stderr
        assert "top1" in measured.stdout
        assert "\x1b" not in measured.stderr
        assert said or measured.stderr == ""
