"""The README's pictures: parts of a report, as Chromium shows them.

python docs/pictures/make.py RUN... [--sweep RUN] [--chromium chromium]

RUN are finished students, some of them alone and measured by `raydistill eval`, SWEEP is a finished sweep. The README's
are of `python experiments/papers/run.py crd-table1 --scale mini` and of a sweep.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from raydistill.reporting.page import write_report

HERE = Path(__file__).parent
WIDTH = 1000
COLOURS = 128


@dataclass(frozen=True)
class Part:
    """What a report has from ``begins`` to ``ends``, or to its section's end, shown to a depth of ``height`` pixels."""

    name: str
    begins: str
    ends: str
    height: int = 3000


PARTS = (
    Part("comparison", '<section id="comparison">', "</section>"),
    Part("curves", '<section id="curves">', "<h3>Training loss"),
    Part("images", "<h3>Images that became better and worse</h3>", "<h3>Correlations of the logits"),
)
SWEEP = Part("sweep", "<h4>All trials at once</h4>", "<h4>Best so far against compute</h4>")


def main() -> None:
    """Write the report into a temporary folder and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--chromium", default="chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = write_report(given.runs, Path(folder, "report.html")).read_text("utf-8")
        for part in PARTS:
            take(report, part, given.chromium, Path(folder))
        if given.sweep is not None:
            swept = write_report([given.sweep], Path(folder, "sweep.html")).read_text("utf-8")
            take(swept, SWEEP, given.chromium, Path(folder))


def take(report: str, part: Part, chromium: str, folder: Path) -> None:
    """Show one part alone, photograph it, cut off what is empty, and keep few colours."""
    head, _, body = report.partition("<main>")
    shown = body[body.index(part.begins) :]
    end = shown.find(part.ends)
    shown = shown[: end if end >= 0 else shown.index("</section>")]
    page, picture = folder / f"{part.name}.html", folder / f"{part.name}.png"
    page.write_text(f"{re.sub('<header>.*</header>', '', head, flags=re.DOTALL)}<main>{shown}</main></body></html>")
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{part.height}",
            f"--screenshot={picture}", page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )  # fmt: skip
    image = Image.open(picture).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(image, empty).getbbox() or (0, 0, *image.size)
    cut = image.crop((max(0, left - 16), max(0, top - 16), min(WIDTH, right + 16), min(part.height, bottom + 16)))
    target = HERE / f"{part.name}.png"
    cut.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {cut.size[0]} x {cut.size[1]}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
