"""Images in a report: which ones are chosen, and what is said where they are gone."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train
from raydistill.errors import DataError
from raydistill.evaluation.card_files import CORRELATION, PANELS, PREDICTIONS
from raydistill.evaluation.panels import Panels, Query
from raydistill.reporting.page import write_report
from raydistill.reporting.pictures import Album
from raydistill.reporting.runs import load_runs
from raydistill.reporting.tables import changes
from tests.data_room.files import write_folder
from tests.reporting.folders import make_run
from tests.reporting.test_page import Page

DIGITS = {"name": "digits"}


def saying(folder: Path, wrong: set[int]) -> Path:
    """Leave predictions beside a run: right everywhere but at some positions of the test images."""
    test = load_test(DataConfig(name="digits"))
    assert test.labels is not None
    said = test.labels.clone()
    for position in wrong:
        said[position] = (said[position] + 1) % 10
    frame = pd.DataFrame({"id": test.ids.numpy(), "label": test.labels.numpy(), "student": said.numpy()})
    frame.to_parquet(folder / PREDICTIONS)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    alone = make_run(tmp_path / "alone", 80.0, data=DIGITS)
    distilled = make_run(tmp_path / "kd", 82.0, ("ce", "kd"), data=DIGITS)
    return [saying(alone, {3, 4, 5}), saying(distilled, {5, 6})]


def addresses(page: Page) -> list[str]:
    return [reference for reference in page.references if reference.startswith("data:image/png;base64,")]


def test_what_changed_is_found_image_by_image(runs: list[Path]) -> None:
    (change,) = changes(load_runs(runs))
    ids = load_test(DataConfig(name="digits")).ids
    assert {int(number) for number in change.gain.index[change.gain > 0]} == {int(ids[3]), int(ids[4])}
    assert [int(number) for number in change.gain.index[change.gain < 0]] == [int(ids[6])]


def test_the_page_shows_them(runs: list[Path], tmp_path: Path) -> None:
    text = write_report(runs, tmp_path / "report.html").read_text()
    page = Page(text)
    assert "right with the teacher, wrong without: 2 images" in text
    assert "wrong with the teacher, right without: 1 images" in text
    assert len(addresses(page)) == 3
    test = load_test(DataConfig(name="digits"))
    shown = {Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))).tobytes() for one in addresses(page)}
    assert shown == {test.images[position].numpy().tobytes() for position in (3, 4, 6)}


def test_neighbours_clusters_and_correlations_are_shown(runs: list[Path], tmp_path: Path) -> None:
    test, train = (load(DataConfig(name="digits")).ids.tolist() for load in (load_test, load_train))
    panels = Panels(
        neighbours=[Query(query=test[0], nearest={"student": train[:3], "teacher": train[2:5]})],
        clusters=[train[10:14]],
    )
    (runs[1] / PANELS).write_text(panels.model_dump_json())
    pd.DataFrame([[0.0, 0.5], [0.5, 0.0]]).to_csv(runs[1] / CORRELATION, index=False)
    page = Page(write_report(runs[1:], tmp_path / "report.html").read_text())
    assert len(addresses(page)) == 4 + 4 + 4 + 2  # the heat map and its scale are pictures, too
    text = " ".join(page.words)
    for words in ("query:", "teacher", "cluster 1", "Correlations of the logits"):
        assert words in text


def test_images_that_are_gone_are_said_to_be(runs: list[Path], tmp_path: Path) -> None:
    for run in runs:
        config = (run / "config.yaml").read_text().replace("name: digits", "name: fashion_mnist\n  root: gone")
        (run / "config.yaml").write_text(config)
    text = write_report(runs, tmp_path / "report.html").read_text()
    assert "The images cannot be shown: " in text
    assert "data:image/png" not in text


@pytest.mark.parametrize(
    ("name", "content"), [(PREDICTIONS, "x"), (PANELS, '{"clusters": 3}'), (CORRELATION, "0,1\n0.5,0.5\n")]
)
def test_a_damaged_file_is_named(runs: list[Path], name: str, content: str) -> None:
    (runs[0] / name).write_text(content)
    with pytest.raises(DataError, match=f"the run is damaged: {name} cannot be read"):
        load_runs(runs)


def test_an_image_that_is_not_there_any_more_is_said(tmp_path: Path) -> None:
    album = Album.of_test_images(DIGITS)
    with pytest.raises(DataError, match="image -1 is not in the data set any more"):
        album.pictures([-1])
    with pytest.raises(DataError, match="the run's section data"):
        Album.of_test_images({"name": "nothing"})


def test_large_images_are_made_small() -> None:
    class Large:
        ids = torch.tensor([7])

        def pixels(self, positions: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(positions), 3, 500, 300, dtype=torch.uint8)

    (address,) = Album(Large()).pictures([7])  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).size == (58, 96)


def test_images_of_folders_are_called_by_their_names(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=("cat", "dog"), each=2)
    data = {"name": "image_folder", "root": str(tmp_path), "image_size": 8}
    ids = load_test(DataConfig.model_validate(data)).ids.tolist()
    assert sorted(Album.of_test_images(data).labels(ids)) == ["cat", "cat", "dog", "dog"]


def test_an_image_of_several_classes_is_called_by_all_of_them() -> None:
    class Several:
        ids = torch.tensor([7, 3])
        labels = None
        targets = torch.tensor([[1, -1, 0], [1, -1, 1]], dtype=torch.int8)

    assert Album(Several()).labels([3, 7]) == ["0, 2", "0"]  # type: ignore[arg-type]
