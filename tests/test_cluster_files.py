"""cluster.yaml and experiments/cluster/: checked by what reads them as far as that goes offline, and pinned."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "cluster"
LAUNCHER = ROOT / "cluster.yaml"
FILES = [LAUNCHER, *sorted(path for path in FOLDER.iterdir() if path.is_file())]
PLACEHOLDER = re.compile(r"ami-0{17}|sg-0{17}|fs-0{17}|YOUR-|REGISTRY/raydistill:")
BIN = Path(sys.executable).parent


def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(LAUNCHER.read_text())
    return loaded


def tool(name: str) -> str:
    """Return the path of a program that a package of the extra ``dev`` brings."""
    found = shutil.which(name, path=f"{BIN}:/usr/bin:/bin") or shutil.which(name)
    assert found, f"{name} is not installed"
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_versions_are_those_of_the_constraints(path: Path) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    text = path.read_text()
    images = re.findall(r"rayproject/ray:([\w.]+)-py(\d)(\d+)", text)
    tags = re.findall(r"REGISTRY/raydistill:([\w.]+)", text) + re.findall(r"rayVersion: ([\w.]+)", text)
    assert {version for version, *_ in images} | set(tags) <= {pins["ray"]}
    assert {(major, minor) for _, major, minor in images} <= {("3", "11")}
    if path.name in ("cluster.yaml", "Dockerfile"):
        assert images
        assert "constraint" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_has_to_be_changed_says_so(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if PLACEHOLDER.search(line) and not line.lstrip().startswith("#"):
            assert "CHANGE" in line or "CHANGE" in lines[number - 1], f"{path.name}:{number + 1}"


def test_rays_launcher_takes_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher())
    validate_config(prepared)
    broken = copy.deepcopy(prepared) | {"max_wrokers": 3}
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(broken)


def test_workers_come_from_nothing_on_spot_and_the_head_stays() -> None:
    types = launcher()["available_node_types"]
    head = types.pop(launcher()["head_node_type"])
    assert head["resources"]["CPU"] == head["resources"]["GPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["min_workers"] == 0
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_nothing_is_open_to_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own preparation of an account, on an imitation of one, opens no port beside those of the user's group."""
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    config = launcher()
    with moto.mock_aws():
        client = boto3.client("ec2", region_name=config["provider"]["region"])
        own = client.create_security_group(GroupName="own", Description="of the user")["GroupId"]
        before = [group["GroupId"] for group in client.describe_security_groups()["SecurityGroups"]]
        for kind in config["available_node_types"].values():
            kind["node_config"]["SecurityGroupIds"] = [own]
        prepared = bootstrap_aws(prepare_config(config))
        after = [group["GroupId"] for group in client.describe_security_groups()["SecurityGroups"]]
    assert sorted(after) == sorted(before)
    profiles = set()
    for kind in prepared["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == [own]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        profiles.add(kind["node_config"]["IamInstanceProfile"]["Name"])
    assert len(profiles) == 2, "workers must not be able to start instances"
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, " ".join(config["worker_start_ray_commands"])):
        assert re.search(r"RAY_AUTH_MODE=token ray start", command)
    assert any("auth_token" in path for path in config["file_mounts"])


class Part(BaseModel):
    """A part of a manifest whose fields are all known: those of KubeRay's v1 types that are used here."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ContainerSecurity(Part):
    allowPrivilegeEscalation: Literal[False]  # noqa: N815  Kubernetes' names
    capabilities: dict[Literal["drop"], list[Literal["ALL"]]]


class PodSecurity(Part):
    runAsNonRoot: Literal[True]  # noqa: N815
    runAsUser: int  # noqa: N815
    runAsGroup: int  # noqa: N815
    fsGroup: int | None = None  # noqa: N815
    seccompProfile: dict[Literal["type"], Literal["RuntimeDefault"]]  # noqa: N815


class Resources(Part):
    limits: dict[str, str]
    requests: dict[str, str]


class Container(Part):
    name: str
    image: str
    securityContext: ContainerSecurity  # noqa: N815
    resources: Resources
    ports: list[dict[Literal["containerPort", "name"], int | str]] = []
    volumeMounts: list[dict[Literal["mountPath", "name"], str]] = []  # noqa: N815


class PodSpec(Part):
    securityContext: PodSecurity  # noqa: N815
    restartPolicy: Literal["Never"]  # noqa: N815
    containers: list[Container] = Field(min_length=1)
    automountServiceAccountToken: Literal[False] | None = None  # noqa: N815
    nodeSelector: dict[str, str] = {}  # noqa: N815
    tolerations: list[dict[Literal["key", "operator", "effect"], str]] = []
    volumes: list[dict[str, Any]] = []


class Template(Part):
    spec: PodSpec


class HeadGroup(Part):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: Literal[0]
    minReplicas: Literal[0]  # noqa: N815
    maxReplicas: int  # noqa: N815


class AutoscalerOptions(Part):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int  # noqa: N815
    resources: Resources


class ClusterSpec(Part):
    rayVersion: str  # noqa: N815
    authOptions: dict[Literal["mode"], Literal["token"]]  # noqa: N815
    enableInTreeAutoscaling: Literal[True]  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class JobSpec(Part):
    clusterSelector: dict[Literal["ray.io/cluster"], str]  # noqa: N815
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]  # noqa: N815
    backoffLimit: int  # noqa: N815
    shutdownAfterJobFinishes: Literal[False]  # noqa: N815  KubeRay's rule for a selected cluster
    submitterPodTemplate: Template  # noqa: N815


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_the_cluster_on_kubernetes_has_known_fields_and_rays_autoscaler_takes_it() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster, policy = manifests("raycluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = ClusterSpec.model_validate(cluster["spec"])
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        volumes = {volume["name"] for volume in group.template.spec.volumes}
        (container,) = group.template.spec.containers
        assert {mount["name"] for mount in container.volumeMounts} == volumes
    cluster["metadata"]["namespace"] = "default"  # the API server fills these in
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    kinds = derived["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    worker = kinds["gpu"]
    assert (worker["min_workers"], worker["resources"]["CPU"], worker["resources"]["GPU"]) == (0, 16, 1)
    assert policy["spec"]["podSelector"]["matchLabels"]["ray.io/cluster"] == cluster["metadata"]["name"]
    assert all("from" in rule for rule in policy["spec"]["ingress"])


def test_the_job_on_kubernetes_is_a_command_on_that_cluster() -> None:
    from raydistill.submitting import parse_job

    (job,), (cluster, _) = manifests("rayjob.yaml"), manifests("raycluster.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = JobSpec.model_validate(job["spec"])
    assert spec.clusterSelector["ray.io/cluster"] == cluster["metadata"]["name"]
    program, command, config, *overrides = spec.entrypoint.split()
    assert program == "raydistill"
    here = ROOT / "experiments" / "imagenet" / Path(config).name
    weights = ["teacher.weights=/shared/teacher.safetensors"]
    assert parse_job([command, str(here), *overrides, *weights]).command == "train"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    done = subprocess.run([tool("shellcheck"), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    assert "umask 077" in text
    assert "RAY_AUTH_MODE=token" in text
    assert "finish EXIT" in text


def test_the_image_is_sound() -> None:
    done = subprocess.run([tool("hadolint"), str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:100"
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]}
    allowed = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_extras_that_are_installed_there_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    for path in (LAUNCHER, FOLDER / "Dockerfile"):
        for extras in re.findall(r"\[((?:\w+,)*\w+)\]'", path.read_text()):
            assert set(extras.split(",")) <= known
