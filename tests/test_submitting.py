"""Commands that run elsewhere: what may be sent, and a real server of Ray Jobs on loopback that runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raydistill import access
from raydistill.access import Door
from raydistill.cli import app
from raydistill.errors import ConfigError
from raydistill.ray_client import FORKS, ClientJobs
from raydistill.submitting import EXPERIMENT, pack, parse_job
from tests.commands import PATIENCE
from tests.conftest import digits, teaching
from tests.nodes import running_ray
from tests.s3 import free_port

HEAD = """
import os, sys
from pathlib import Path
from ray.cluster_utils import Cluster

cluster = Cluster()
# Both ports may be held already by another Ray on this machine.
head = cluster.add_node(
    num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1",
    dashboard_port=int(os.environ["DASHBOARD_PORT"]), dashboard_agent_listen_port=0,
    ray_client_server_port=int(os.environ["CLIENT_PORT"]),
    object_store_memory=200 * 2**20, node_ip_address="127.0.0.1",
)
# As `ray start` does: jobs would else join any Ray that they find on this machine.
(Path(os.environ["RAY_TMPDIR"]) / "ray" / "ray_current_cluster").write_text(cluster.address)
print("RAY", cluster.address, flush=True)
print(head.webui_url, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass
class Head:
    """A Ray with a server of jobs and one of Ray Client, which want the token that ``environment`` names."""

    address: str
    client: str
    environment: dict[str, str]

    def submit(self, *words: str) -> subprocess.Popen[str]:
        """Begin such a command, from a machine that knows nothing of the cluster but the address."""
        return self.begin("submit", "--address", self.address, "--python", sys.executable, *words)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Begin any command from there."""
        return subprocess.Popen(
            [sys.executable, "-m", "raydistill.cli", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def submitted(self, *words: str) -> tuple[int, str, str]:
        """Run such a command; return exit code, output and errors."""
        process = self.submit(*words)
        said, wrong = process.communicate(timeout=PATIENCE)
        return process.returncode, said, wrong


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a" * 64)
    patient = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", FORKS: "0"}  # it starts ten processes
    ports = {"DASHBOARD_PORT": str(free_port()), "CLIENT_PORT": str(free_port())}
    more = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **patient, **ports}
    with running_ray(HEAD, tmp_path, **more) as (process, environment):
        assert process.stdout
        address = f"http://{process.stdout.readline().strip()}"
        client = f"ray://127.0.0.1:{ports['CLIENT_PORT']}"
        yield Head(address, client, {name: value for name, value in environment.items() if name != "RAY_ADDRESS"})


@pytest.mark.slow
def test_a_run_is_sent_watched_and_ends_as_it_would_here(head: Head, tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 1, "batch_size": 48}, scale={"use_gpu": False})
    config = tmp_path / "digits.yaml"
    config.write_text(experiment.to_yaml())

    code, said, wrong = head.submitted("train", str(config), "seed=3", "--json")
    assert code == 0, said + wrong
    assert "epoch 1/1" in said
    assert "ray job stop" in wrong
    assert json.loads(said.splitlines()[-1])["exit_code"] == 0
    assert json.loads((experiment.folder / "result.json").read_text())["seed"] == 3
    command = json.loads((experiment.folder / "environment.json").read_text())["command"]
    assert "working_dir" in command[0], "the code that ran is not what was sent"

    code, said, wrong = head.submitted("train", str(config), "data.name=fashion_mnist", f"data.root={tmp_path}/nowhere")
    assert (code, "nowhere" in said) == (2, True), said + wrong

    head.environment.pop("RAY_AUTH_MODE")
    code, said, wrong = head.submitted("train", str(config), "name=barred")
    assert (code, "wants its token" in wrong) == (2, True), said + wrong
    assert not (tmp_path / "runs" / "barred").exists()


@pytest.mark.slow
def test_an_interrupt_leaves_the_job_and_no_wait_does_not_watch_it(head: Head, tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 3, "batch_size": 48}, scale={"use_gpu": False})
    config = tmp_path / "digits.yaml"
    config.write_text(experiment.to_yaml())

    watching = head.submit(str(config))
    assert watching.stdout
    assert any("Running entrypoint" in line for line in watching.stdout)
    os.kill(watching.pid, signal.SIGINT)
    _, wrong = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 130
    assert "goes on without being watched" in wrong
    assert "Traceback" not in wrong

    code, said, wrong = head.submitted("train", str(config), "name=second", "train.epochs=1", "--no-wait", "--json")
    assert code == 0, wrong
    assert json.loads(said.splitlines()[-1])["submission_id"] in wrong
    deadline = time.monotonic() + PATIENCE
    ends = [folder / "_SUCCESS" for folder in (experiment.folder, tmp_path / "runs" / "second")]
    while not all(end.exists() for end in ends):
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_a_command_runs_where_ray_client_is_served(head: Head, tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 1, "batch_size": 48}, scale={"use_gpu": False})
    config = tmp_path / "digits.yaml"
    config.write_text(experiment.to_yaml())
    head.environment.pop("RAY_AUTH_MODE")  # the head's door tells that a token is wanted

    def run(*words: str) -> tuple[int, str, str]:
        process = head.begin("train", str(config), *words)
        said, wrong = process.communicate(timeout=PATIENCE)
        return process.returncode, said, wrong

    code, said, wrong = run("seed=3", "--address", head.client, "--json")
    assert code == 0, said + wrong
    assert "epoch 1/1" in said
    assert json.loads(said.splitlines()[-1])["seed"] == 3
    command = json.loads((experiment.folder / "environment.json").read_text())["command"]
    assert "working_dir" in command[0], "the code that ran is not what was sent"

    missing = ("data.name=fashion_mnist", f"data.root={tmp_path}/nowhere")
    code, said, wrong = run("name=second", *missing, "--address", head.client)
    assert (code, "nowhere" in said, "Traceback" in said + wrong) == (2, True, False), said + wrong

    head.environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "none")
    code, said, wrong = run("name=barred", "--address", head.client)
    assert (code, "asks for a token" in wrong) == (2, True), said + wrong
    assert not (tmp_path / "runs" / "barred").exists()


def test_a_head_that_ends_a_clients_process_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked = []

    def init(address: str, **options: object) -> None:
        asked.append(address)
        raise RuntimeError("Starting Ray client server failed. See ray_client_server_23000.err")

    monkeypatch.setattr(access, "knock", lambda address: Door.OPEN)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ConfigError, match=f"Ray Client .*23000.*; set {FORKS}=0 where the head is started$"):
        ClientJobs("ray://127.0.0.1:1")
    assert asked == ["ray://127.0.0.1:1"] * 4


def test_where_nobody_serves_ray_client_it_is_said(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["train", config, "--address", f"ray://127.0.0.1:{free_port()}"])
    assert ended.value.code == 2
    assert "no Ray Client answers there" in capsys.readouterr().err


@pytest.fixture
def config(tmp_path: Path, teacher_weights: Path) -> str:
    path = tmp_path / "kd.yaml"
    path.write_text(digits(tmp_path, teacher=teaching(teacher_weights), methods={"kd": {}}).to_yaml())
    return str(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the experiment's file"),
        (["trian", "x.yaml"], "did you mean 'train'"),
        (["eval", "x.yaml"], "cannot submit 'eval'"),
        (["cache", "build", "CONFIG", "--resume"], "no option '--resume'"),
        (["CONFIG", "--rezume"], "no option '--rezume'"),
        (["CONFIG", "train.epochz=1"], "did you mean 'epochs'"),
        (["CONFIG", "output=runs"], "output = runs: no absolute path"),
        (["CONFIG", "output=s3://bucket/runs"], "output = s3://bucket/runs: no absolute path"),
        (["CONFIG", "cache.root=cache"], "cache.root = cache: no absolute path"),
        (["CONFIG", "backup=copies"], "backup = copies: no absolute path"),
        (
            ["CONFIG", "teacher.weights=runs/model.safetensors"],
            "weights = runs/model.safetensors: no absolute",
        ),
    ],
)
def test_what_would_go_wrong_there_is_told_here(config: str, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("'", ".")):
        parse_job([config if word == "CONFIG" else word for word in words])


def test_a_file_alone_is_trained_and_urls_are_no_paths(config: str) -> None:
    job = parse_job([config, "cache.root=s3://bucket/caches", "backup=s3://bucket/runs", "--resume"])
    assert job.entrypoint("python3") == f"python3 -m raydistill.cli train {EXPERIMENT} --resume"
    build = parse_job(["cache", "build", config, "output=runs", "backup=copies"])  # it writes no run
    assert build.entrypoint("python") == f"python -m raydistill.cli cache build {EXPERIMENT}"


def test_only_the_package_and_the_experiment_travel(config: str, tmp_path: Path) -> None:
    folder = tmp_path / "travels"
    folder.mkdir()
    pack(parse_job([config, "seed=5"]), folder)
    assert {path.name for path in folder.iterdir()} == {"raydistill", EXPERIMENT}
    assert "seed: 5" in (folder / EXPERIMENT).read_text()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".py", ".yaml", ".j2", ".typed"}
    assert sum(path.stat().st_size for path in files) < 5 * 2**20
