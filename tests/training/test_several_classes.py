"""Images of several classes as training data: without labels, so for methods that need none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.errors import DataError
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from tests.conftest import digits
from tests.data_room.published import halves, write_voc
from tests.training.sessions import session_of

CONTRASTIVE = {"crd": {"negatives": 8, "dimension": 8, "exclude": "instance"}}


def of_voc(folder: Path, methods: dict[str, Any]) -> Experiment:
    write_voc(folder / "voc", *halves())
    torch.manual_seed(3)
    save_weights(build_model("resnet14", 20), folder / "teacher.safetensors")
    return digits(
        folder,
        data={"name": "voc07", "root": str(folder / "voc"), "image_size": 16, "validation": 0.25},
        teacher={"model": "resnet14", "weights": str(folder / "teacher.safetensors"), "source": "live"},
        methods=methods,
        train={"epochs": 3, "batch_size": 6, "optimizer": {"lr": 0.02}},
    )


@pytest.mark.parametrize(
    ("methods", "needy"),
    [({"kd": {}, "ce": {}}, "ce"), ({"kd": {}, "again": {"name": "dkd"}}, "again")],
)
def test_methods_that_need_labels_are_refused(tmp_path: Path, methods: dict[str, Any], needy: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(of_voc(tmp_path, methods))
    assert str(caught.value) == (
        f"methods.{needy} needs labels, but data set 'voc07' has several classes an image, and so none"
    )
    assert caught.value.exit_code == 2


def test_methods_that_need_none_learn_from_them(tmp_path: Path) -> None:
    session = session_of(of_voc(tmp_path, {"kd": {}} | CONTRASTIVE))
    assert session.student(session.draw(torch.arange(4), 0).views[0])["logits"].shape == (4, 20)
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert "val/top1" not in session.history[-1]
    assert session.history[-1]["train/kd"] < session.history[0]["train/kd"]
