"""What lies in the ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from tests.exporting.conftest import Exports

ROOT = Path(__file__).parents[2]


def test_inputs_and_outputs_have_names_and_one_free_dimension(exported: Exports) -> None:
    graph = onnx.load(exported("onnx")["path"]).graph
    shapes = {
        value.name: [part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 1, 8, 8], "logits": ["batch", 10], "embedding": ["batch", 64]}


def test_the_file_describes_itself_and_passes_the_checker(exported: Exports) -> None:
    model = onnx.load(exported("onnx")["path"])
    onnx.checker.check_model(model, full_check=True)
    described = json.loads({entry.key: entry.value for entry in model.metadata_props}["raydistill"])
    assert (described["model"], described["num_classes"]) == ("resnet8", 10)


def test_no_path_of_the_machine_is_in_it(exported: Exports) -> None:
    for path in (exported("onnx")["path"], exported("onnx")["quantised"]["path"]):
        content = Path(path).read_bytes()
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content
