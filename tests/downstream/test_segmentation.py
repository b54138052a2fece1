"""Segmentation that begins with a run's student, and the reader of NYU-Depth V2 on small files of its layout."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.io import savemat

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_sides
from raydistill.errors import DataError
from raydistill.evaluation.segmentation import pixel_accuracy, pixel_counts
from raydistill.models.backbone import backbone_of
from raydistill.reporting.runs import load_run

h5py = pytest.importorskip("h5py")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "downstream"))

import nyu  # noqa: E402  scripts
import nyu_folders  # noqa: E402
import segmentation  # noqa: E402
import students  # noqa: E402

COUNT, HEIGHT, WIDTH = 5, 12, 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of 12 x 16: image n is n in red, (row, column) in green and blue, row / 2 metres deep."""
    folder = tmp_path_factory.mktemp("nyu")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with h5py.File(folder / "labeled.mat", "w") as file:
        images = np.stack([np.stack([np.full_like(rows, n), rows, columns]) for n in range(COUNT)]).astype(np.uint8)
        file["images"] = images.transpose(0, 1, 3, 2)
        file["depths"] = np.stack([rows / 2 + 7 * (n == 4) for n in range(COUNT)]).astype(np.float32).transpose(0, 2, 1)
        file["labels"] = np.stack([(columns >= 8) * (n + 1) for n in range(COUNT)]).astype(np.uint16).transpose(0, 2, 1)
    savemat(folder / "splits.mat", {"trainNdxs": np.array([[1], [2], [5]]), "testNdxs": np.array([[3], [4]])})
    savemat(folder / "classes.mat", {"mapClass": np.array([[1, 2, 2, 1, 2]])})
    return folder


def test_images_depths_and_labels_come_upright(files: Path) -> None:
    found = dict(zip([2, 4], nyu.scenes(files / "labeled.mat", [2, 4], "rgb"), strict=True))
    pixels, labels = found[2]
    assert pixels.shape == (3, HEIGHT, WIDTH) and pixels.dtype == torch.uint8
    assert (pixels[0] == 2).all() and pixels[1, :, 0].tolist() == list(range(HEIGHT))
    assert pixels[2, 0].tolist() == list(range(WIDTH))
    assert labels.tolist() == [[0] * 8 + [3] * 8] * HEIGHT
    (depth, _), (deep, _) = nyu.scenes(files / "labeled.mat", [2, 4], "depth")
    assert depth.shape == (1, HEIGHT, WIDTH)
    assert depth[0, :, 3].tolist() == [round(row / 2 * 25.5) for row in range(HEIGHT)]
    assert deep[0, 6:].unique().tolist() == [255]  # ten metres and more


def test_splits_and_mappings_count_from_zero(files: Path) -> None:
    assert nyu.read_splits(files / "splits.mat") == ([0, 1, 4], [2, 3])
    assert nyu.read_mapping(files / "classes.mat").tolist() == [-1, 0, 1, 1, 0, 1]


def test_labels_are_scaled_without_mixing_and_mapped(files: Path) -> None:
    mapping = nyu.read_mapping(files / "classes.mat")
    part = segmentation.gathered(nyu.scenes(files / "labeled.mat", [1, 3], "depth"), 6, mapping)
    assert part.images.shape == (2, 1, 6, 8) and part.classes.shape == (2, 6, 8)
    assert part.classes[0, 0].tolist() == [-1] * 4 + [1] * 4 and part.classes[1, 0].tolist() == [-1] * 4 + [0] * 4
    plain = segmentation.gathered(nyu.scenes(files / "labeled.mat", [3], "depth"), 6, None)
    assert plain.classes.unique().tolist() == [-1, 3]
    with pytest.raises(DataError, match="2 labels have a class, but there is a label 4"):
        segmentation.gathered(nyu.scenes(files / "labeled.mat", [3], "rgb"), 6, mapping[:3])


def test_what_is_not_the_file_is_told_in_a_line(files: Path, tmp_path: Path) -> None:
    def first(path: Path, position: int = 0) -> object:
        return next(nyu.scenes(path, [position], "rgb"))

    with pytest.raises(DataError, match=r"no such file; nyu_depth_v2_labeled.mat is at https"):
        first(tmp_path / "none.mat")
    with pytest.raises(DataError, match="not the HDF5"):
        first(files / "splits.mat")
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["images"] = np.zeros((1, 3, 2, 2))
    with pytest.raises(DataError, match="no depths, labels in it"):
        first(tmp_path / "other.mat")
    with pytest.raises(DataError, match="it has 5 images, but image 9 is asked for"):
        first(files / "labeled.mat", 8)
    with pytest.raises(DataError, match="no 'trainNdxs' in it"):
        nyu.read_splits(files / "classes.mat")
    with pytest.raises(DataError, match="no 'mapClass' in it"):
        nyu.read_mapping(files / "splits.mat")


def test_the_folders_are_pairs_that_a_student_can_be_distilled_on(files: Path, tmp_path: Path) -> None:
    assert nyu_folders.write(files / "labeled.mat", files / "splits.mat", tmp_path) == 3
    data = DataConfig.model_validate(
        {
            "name": "image_folder",
            "root": str(tmp_path / "depth"),
            "image_size": 12,
            "num_classes": 4,
            "modalities": {"student": "grey", "teacher": "rgb", "teacher_root": str(tmp_path / "rgb")},
        }
    )
    student, teacher = load_sides(data)
    assert (student.shape, teacher.shape) == ((1, 12, 12), (3, 12, 12))
    assert student.ids.tolist() == teacher.ids.tolist() and len(student) == 3
    reds = sorted(int(teacher.pixels(torch.tensor([position]))[0, 0, 0, 0]) for position in range(3))
    assert reds == [0, 1, 4]


def test_a_model_begins_with_the_runs_weights_and_learns(run: Path) -> None:
    network, description = students.beginning(run, fresh=False, seed=0)
    body = backbone_of(network, 3, levels=1, train_batch_norm=True)
    model = segmentation.Segmenter(body, description, 4)
    saved = load_file(run / "student.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in body.network.state_dict().items())
    train = segmentation.synthetic(24, 3, seed=1, side=32)
    losses = segmentation.fit(model, train, epochs=8, batch_size=4, lr=0.05, seed=0)
    assert losses[-1] < 0.8 * losses[0]
    predicted = segmentation.segmented(model, train)
    assert predicted.shape == train.classes.shape
    ground = 100 * float((train.classes == 0).float().mean())
    assert pixel_accuracy(pixel_counts(predicted, train.classes, num_classes=4)) > ground


def test_the_frozen_network_stays_as_it_was(run: Path) -> None:
    network, description = students.beginning(run, fresh=False, seed=0)
    model = segmentation.Segmenter(backbone_of(network, 3, levels=1, train_batch_norm=True), description, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train, test = (segmentation.synthetic(6, 3, seed=seed, side=32) for seed in (1, 2))
    predicted = segmentation.probed(model, train, test, 4, seed=0)
    assert predicted.shape == test.classes.shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_results_are_noted_side_by_side(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    official = ["--data", "nyu_depth_v2", "--root", str(files / "labeled.mat"), "--splits", str(files / "splits.mat")]
    few = ["--epochs", "1", "--height", "12"]
    for given in ([*official, *few], [*official, *few, "--fresh"], ["--data", "synthetic", "--frozen"]):
        monkeypatch.setattr(sys, "argv", ["segmentation.py", str(folder), *given])
        segmentation.main()
    assert "student on nyu_depth_v2: segmentation_pixel_accuracy " in capsys.readouterr().out
    noted = json.loads((folder / "segmentation.json").read_text())
    measures = {f"nyu_depth_v2/segmentation_{name}" for name in ("pixel_accuracy", "miou")}
    assert noted["fresh"].keys() == measures
    assert noted["student"].keys() == measures | {"synthetic/probe_pixel_accuracy", "synthetic/probe_miou"}
    assert noted["settings"].keys() == {"nyu_depth_v2, student", "nyu_depth_v2, fresh", "synthetic, student"}
    assert noted["settings"]["nyu_depth_v2, fresh"]["segmentation"]["classes"] == 5
    assert load_run(folder).card["student"] == noted["student"]


def test_a_missing_file_is_told_without_a_traceback(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["segmentation.py", str(run), "--data", "nyu_depth_v2"])
    with pytest.raises(SystemExit) as ended:
        segmentation.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "segmentation: --root: --data nyu_depth_v2 needs nyu_depth_v2_labeled.mat\n"
