"""The student as a program of ``torch.export``: ``student.pt2``. Needs torch alone where it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.exporting.deployed import Deployed, Description
from raydistill.exporting.parity import Predictor
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "student.pt2"
_ABOUT = "raydistill.json"


def program_of(deployed: Deployed) -> ExportedProgram:
    """Trace the network for any number of images; nothing of this machine's paths stays in the program."""
    blank = torch.zeros(2, *deployed.description.image_shape)  # one image would fix the batch at one
    program = torch.export.export(deployed, (blank,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None  # the one part of the file that would be a pickle
    return program


def write(deployed: Deployed, path: Path) -> None:
    """Write the program, the description beside it as ``raydistill.json`` within the file."""
    torch.export.save(program_of(deployed), path, extra_files={_ABOUT: deployed.description.model_dump_json()})


def load(path: Path) -> Predictor:
    """Load the file back to be compared."""
    module = torch.export.load(path).module()

    def predict(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = module(images)
        return found

    return predict


def lines(description: Description) -> str:
    """Return the three lines that load and run it."""
    shape = ", ".join(map(str, description.image_shape))
    return f'import torch\nstudent = torch.export.load("{FILE}").module()\noutputs = student(torch.zeros(1, {shape}))'
