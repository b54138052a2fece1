"""What lies in the file of torch.export."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tests.exporting.conftest import Exports

ROOT = Path(__file__).parents[2]


def contents(exported: Exports) -> dict[str, bytes]:
    with zipfile.ZipFile(exported("torch")["path"]) as archive:
        return {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}


def test_nothing_in_it_is_a_pickle(exported: Exports) -> None:
    found = contents(exported)
    assert not [name for name in found if name.endswith(".pkl")]
    assert found["data/sample_inputs/model.pt"] == b""
    for part in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        assert not any(entry["use_pickle"] for entry in json.loads(found[part])["config"].values())


def test_no_path_of_the_machine_is_in_it_but_the_description_is(exported: Exports) -> None:
    found = contents(exported)
    assert not [name for name, content in found.items() if str(ROOT).encode() in content or b"site-packages" in content]
    assert json.loads(found["extra/raydistill.json"])["model"] == "resnet8"
