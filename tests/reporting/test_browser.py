"""The page in a real browser: it opens from disk, complains of nothing and fetches nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from raydistill.reporting.page import write_report
from tests.reporting.folders import make_demo

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def browse(page: Path, folder: Path, *options: str) -> str:
    """Open a page without a window; return what the browser says."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    return write_report(make_demo(root), root / "report.html")


def test_the_page_opens_without_a_complaint_or_a_request(report: Path, tmp_path: Path) -> None:
    said = browse(report, tmp_path, "--dump-dom")
    assert "<h2>Summary</h2>" in said
    assert "CONSOLE" not in said  # where the page's policy also complains of whatever is to be fetched


@pytest.mark.parametrize(
    "bad", ['<img src="http://127.0.0.1:9/x.png">', '<link rel="stylesheet" href="x.css">', "<script>alert(1)</script>"]
)
def test_whatever_is_to_be_fetched_or_run_is_refused(report: Path, tmp_path: Path, bad: str) -> None:
    page = tmp_path / "bad.html"
    page.write_text(report.read_text().replace("</main>", f"{bad}</main>"))
    assert "Content Security Policy" in browse(page, tmp_path, "--dump-dom")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1366, 768)])
def test_nothing_is_wider_than_a_phone_or_a_laptop(report: Path, tmp_path: Path, width: int, height: int) -> None:
    measured = tmp_path / "measured.html"
    script = (
        "<script>addEventListener('load', () => { const wide = document.documentElement.scrollWidth;"
        "document.body.innerHTML = `<pre>wide ${wide} of ${innerWidth}</pre>`; });</script>"
    )
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    measured.write_text(text.replace("</body>", script + "</body>"))
    said = browse(measured, tmp_path, "--dump-dom", f"--window-size={width},{height}")
    (found,) = re.findall(r"wide (\d+) of (\d+)", said.split("<pre>")[-1])
    assert int(found[0]) <= int(found[1])
