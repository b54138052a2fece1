"""torch.compile for the student alone."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from raydistill.errors import ConfigError


def compile_student(student: nn.Module, device: torch.device, *, graphs: bool) -> None:
    """Let the student's forward pass be compiled at its first call; names and tensors of its state stay as they are.

    With ``graphs`` its kernels are recorded and replayed. What it returns is then overwritten by its next pass, so
    every micro-batch has to begin with ``new_micro_batch``.

    Raises:
        ConfigError: where there is no C++ compiler, which a CPU needs, or no GPU to record on.
    """
    if graphs and device.type != "cuda":
        raise ConfigError("train.compile = cuda_graphs: needs a CUDA device; set it to true or false on a CPU")
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile = true: needs the C++ compiler {compiler} on a CPU, which is not installed; "
            "install it, or set train.compile=false"
        )
    student.compile(mode="reduce-overhead" if graphs else "default")


def new_micro_batch() -> None:
    """Say that nothing needs the outputs of the recorded passes so far any more."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
