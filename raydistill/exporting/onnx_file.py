"""The student as an ONNX graph: ``student.onnx``. Needs an ONNX runtime alone where it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.exporting.deployed import IMAGES, Deployed, Description
from raydistill.exporting.parity import Predictor
from raydistill.exporting.torch_program import program_of
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = "student.onnx"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
PROVIDERS = ("CPUExecutionProvider",)
_ERRORS_ONLY = 3


def write(deployed: Deployed, path: Path) -> None:
    """Write a graph in which batch normalisation is folded into the convolutions, checked by ONNX's own checker."""
    import onnx

    outputs = deployed.description.outputs
    program = torch.onnx.export(
        program_of(deployed), dynamo=True, input_names=[IMAGES], output_names=list(outputs), verbose=False
    )
    assert program is not None
    model: Any = program.model_proto
    _tidy(model)
    onnx.helper.set_model_props(model, {"raydistill": deployed.description.model_dump_json()})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def load(path: Path) -> Predictor:
    """Load the file back to be compared, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS))
    names = [output.name for output in session.get_outputs()]

    def predict(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {IMAGES: images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return predict


def lines(description: Description) -> str:
    """Return the three lines that load and run it."""
    shape = ", ".join(map(str, description.image_shape))
    names = list(description.outputs)
    return (
        "import numpy, onnxruntime\n"
        f'student = onnxruntime.InferenceSession("{FILE}", providers={list(PROVIDERS)})\n'
        f'outputs = student.run({names}, {{"{IMAGES}": numpy.zeros((1, {shape}), "float32")}})'
    ).replace("'", '"')


def _tidy(model: Any) -> None:
    """Drop what the exporter notes of its sources, name the free dimension, and leave inner shapes to be inferred."""
    graph = model.graph
    _forget(model.functions)
    _forget([graph, *graph.node, *graph.input, *graph.output, *graph.initializer])
    del graph.value_info[:]  # of the graph before it was optimised, which quantisation would believe
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _forget(parts: Iterable[Any]) -> None:
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
