"""torch.compile for the student alone."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from raydistill.errors import ConfigError


def compile_student(student: nn.Module, device: torch.device) -> None:
    """Let the student's forward pass be compiled at its first call; names and tensors of its state stay as they are.

    Raises:
        ConfigError: where there is no C++ compiler, which a CPU needs.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile = true: needs the C++ compiler {compiler} on a CPU, which is not installed; "
            "install it, or set train.compile=false"
        )
    student.compile()
