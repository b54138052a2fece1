"""The page: whole, well-formed, self-contained, and safe whatever a run is called."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raydistill.errors import DataError, RunError
from raydistill.reporting.page import write_report
from tests.reporting.folders import make_demo, make_run, make_sweep

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Notes what a page consists of, and fails where elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.references.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("demo")
    output = write_report(make_demo(root), root / "out" / "report.html")
    assert output == root / "out" / "report.html"
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    return output.read_text(encoding="utf-8")


def test_every_section_is_there(demo: str) -> None:
    page = Page(demo)
    sections = {"summary", "comparison", "curves", "sweep", "cost", "configuration", "environment"}
    assert sections <= set(page.ids)
    text = " ".join(page.words)
    for words in (
        "The teacher wrn_16_2 reaches 78.10 %",
        "68.20 ± 0.46 %",
        "it is better",
        "5 stopped early, 1 failed",
        "train.optimizer.lr",
        "691,674",
        "optimizer:",
        "packages.torch",
    ):
        assert words in text
    # Comparison, validation, losses of four groups; legend, three swept keys, importances, parallel coordinates, trials
    # over epochs, best so far.
    assert page.tags.count("svg") == 14
    assert page.tags.count("details") == 15  # the last three are of methods


def test_nothing_is_fetched(demo: str) -> None:
    page = Page(demo)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    (style,) = re.findall(r"<style>(.*?)</style>", demo, re.DOTALL)
    assert not re.search(r"https?:|@import|@font-face", style)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", demo))


def test_ids_are_unique_and_references_resolve(demo: str) -> None:
    page = Page(demo)
    assert len(set(page.ids)) == len(page.ids)
    targets = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]*)\)", demo))
    assert targets <= set(page.ids)


def test_figures_follow_the_page_into_the_dark(demo: str) -> None:
    assert "prefers-color-scheme: dark" in demo
    assert "currentColor" in demo
    assert "#7f7f7e" not in demo
    assert "fill: #ffffff" not in demo


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "$\\frac{$", "_hidden", "--><b>", "{{ 7 * 7 }}"]
)
def test_a_nasty_name_is_only_text(tmp_path: Path, name: str) -> None:
    card = {"student": {"top1": 1.0}, name: {"top1": 2.0}}
    runs = [
        make_run(tmp_path / "a", 60.0, ["ce", name], name=name, model=name, card=card),
        make_sweep(tmp_path / "b", trials=7, name=name),
    ]
    text = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img", "b"} & set(page.tags)
    assert name in " ".join(page.words)


@pytest.mark.parametrize("kind", ["teacher", "train"])
def test_one_run_is_enough(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "only", 60.0, kind=kind, epochs=1)
    page = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "sweep" not in page.ids


def test_a_run_without_epochs_accuracy_or_environment(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", None)
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    page = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.words)
    assert "No run here has a test accuracy to compare." in text
    assert "No run here has kept its epochs." in text


def test_a_diverged_run_and_a_sweep_of_failures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 60.0)
    (run / "metrics.jsonl").write_text('{"epoch": 1, "train/loss": NaN, "val/top1": NaN}\n')
    sweep = make_sweep(tmp_path / "sweep", trials=2)
    failed = (sweep / "trials.csv").read_text().replace("completed", "failed").replace("stopped", "failed")
    (sweep / "trials.csv").write_text(failed)
    page = Page(write_report([run, sweep], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "none ended well" in " ".join(page.words)


def test_bad_runs_leave_no_file(tmp_path: Path) -> None:
    half = make_run(tmp_path / "half", 60.0)
    (half / "_SUCCESS").unlink()
    with pytest.raises(DataError, match="has not finished"):
        write_report([half], tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()
    (half / "_SUCCESS").touch()
    with pytest.raises(DataError, match="is a folder"):
        write_report([half], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made"):
        write_report([half], tmp_path / "file" / "report.html")


def test_reading_runs_does_not_wait_for_matplotlib() -> None:
    code = "import sys, raydistill.reporting.page; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_energy_is_shown_where_a_machine_told_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 60.0)
    page = write_report([run], tmp_path / "unknown.html").read_text("utf-8")
    assert "Energy: not known on this machine." in page and "Energy (J)" not in page
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"energy_j": 12345.6}))
    page = write_report([run, make_run(tmp_path / "other", 61.0)], tmp_path / "known.html").read_text("utf-8")
    assert "Energy: not known" not in page and "Energy (J)" in page and "12,346" in page
