"""What `raydistill cache plan` foretells against what `raydistill cache build` then takes, on two real cases.

    python experiments/benchmarks/plan.py [--json]

Needs Fashion-MNIST (Debian's dataset-fashion-mnist, or --root). The second case reads some of its images as JPEG files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model

AT_MOST_OFF = 0.30
COMMAND = [sys.executable, "-m", "raydistill.cli"]
JPEGS, SIDE = 1500, 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cases = {
            "fashion-mnist, wrn_16_2, 5 views": fashion(Path(name), given.root),
            f"{JPEGS} JPEGs of {SIDE} pixels, torchvision/resnet18": jpegs(Path(name), given.root),
        }
        found = {case: compared(config) for case, config in cases.items()}
    if given.json:
        print(json.dumps(found))
        return
    for case, about in found.items():
        print(case)
        for what in ("seconds", "bytes"):
            foretold, taken, off = (about[what][key] for key in ("foretold", "taken", "off"))
            verdict = "met" if abs(off) <= AT_MOST_OFF else "MISSED"
            print(f"  {what:<8} foretold {foretold:>12,.1f}  taken {taken:>12,.1f}  off by {off:+.0%} ({verdict})")


def compared(config: Path) -> dict[str, Any]:
    plan, build = (command("cache", word, str(config)) for word in ("plan", "build"))
    taken = {"seconds": build["seconds"], "bytes": build["bytes_per_row"] * build["rows"]}
    return {
        what: {"foretold": plan[what], "taken": taken[what], "off": plan[what] / taken[what] - 1.0} for what in taken
    }


def command(*words: str) -> dict[str, Any]:
    done = subprocess.run([*COMMAND, *words, "--json"], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def fashion(folder: Path, root: str) -> Path:
    data = {"name": "fashion_mnist", "root": root, "subset": 6000, "augment": {"crop": 2, "flip": 0.5}}
    return written(folder / "fashion", "wrn_16_2", 1, data, views=4)


def jpegs(folder: Path, root: str) -> Path:
    images = load_train(DataConfig(name="fashion_mnist", root=root, subset=JPEGS))
    assert images.labels is not None
    for position, label in enumerate(images.labels.tolist()):
        path = folder / "images" / "train" / str(label) / f"{position}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = images.pixels(torch.tensor([position]))[0, 0].numpy()
        Image.fromarray(pixels).convert("RGB").resize((SIDE, SIDE)).save(path)
    data = {"name": "image_folder", "root": str(folder / "images"), "image_size": SIDE}
    return written(folder / "jpegs", "torchvision/resnet18", 3, data, views=0)


def written(folder: Path, model: str, channels: int, data: dict[str, Any], *, views: int) -> Path:
    """Write an experiment whose teacher has fresh weights, which cost the same as trained ones."""
    folder.mkdir()
    save_weights(build_model(model, 10, in_channels=channels), folder / "teacher.safetensors")
    experiment = {
        "name": "plan",
        "data": data,
        "teacher": {"model": model, "weights": str(folder / "teacher.safetensors")},
        "student": {"model": "resnet8"},
        "methods": {"kd": {}},
        "cache": {"root": str(folder / "cache"), "views": views},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


if __name__ == "__main__":
    main()
