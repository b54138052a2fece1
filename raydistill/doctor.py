"""Checks of the installation, the devices, Ray, who can reach it, and the disk."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from typing import Any

from raydistill.errors import RaydistillError

NEEDED = ("torch", "torchvision", "ray", "pyarrow", "pandas", "pydantic", "omegaconf", "scikit-learn")
FREE_GIB = 1.0


def examine() -> list[dict[str, Any]]:
    """Return one record a check: ``name``, ``ok`` and what was ``found``."""
    checks = [_python(), *(_package(name) for name in NEEDED), _disk()]
    if all(check["ok"] for check in checks):
        checks += [_torch_and_torchvision(), _devices(), _ray(), _security()]
    return checks


def _check(name: str, ok: bool, found: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found}


def _python() -> dict[str, Any]:
    return _check("python", sys.version_info >= (3, 11), sys.version.split()[0])


def _package(name: str) -> dict[str, Any]:
    try:
        return _check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return _check(name, False, f"not installed; pip install {name}")


def _disk() -> dict[str, Any]:
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    return _check("disk", free > FREE_GIB, f"{free:.1f} GiB free here")


def _torch_and_torchvision() -> dict[str, Any]:
    """Builds that do not belong together fail when torchvision registers its operators."""
    try:
        import torchvision.ops

        return _check("torchvision operators", callable(torchvision.ops.nms), "load")
    except (ImportError, RuntimeError, AttributeError) as error:
        return _check("torchvision operators", False, str(error).splitlines()[0])


def _devices() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return _check("devices", True, ", ".join(gpus) if gpus else f"no GPU; {os.cpu_count()} CPUs")


def _ray() -> dict[str, Any]:
    from raydistill.cluster import ensure_ray

    try:
        ensure_ray()
        import ray

        address = ray.get_runtime_context().gcs_address
        resources = ray.cluster_resources()
    except (RaydistillError, ConnectionError, RuntimeError, OSError) as error:
        return _check("ray", False, str(error).splitlines()[0])
    return _check("ray", True, f"{resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs at {address}")


def _security() -> dict[str, Any]:
    from raydistill.cluster import security

    ok, found = security()
    return _check("security", ok, found)
