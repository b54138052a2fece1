"""docs/methods.md is what the registry says."""

from __future__ import annotations

from pathlib import Path

from raydistill.methods.describe import describe, lines
from raydistill.methods.registry import METHODS
from raydistill.reporting.methods_page import page

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_up_to_date() -> None:
    made = page()
    assert PAGE.read_text(encoding="utf-8") == made
    assert all(f"\n## {name}\n" in made for name in METHODS)


def test_a_description_names_what_a_user_can_set() -> None:
    about = describe("crd")
    assert about.parameters["temperature"] == ("number > 0", "0.1")
    assert about.parameters["exclude"] == ("instance, class", "class")
    assert (about.teacher, about.cache) == ("embedding", "yes")
    assert "index" in about.student
    assert any("`variant: code` divides scores by a constant Z" in line for line in lines(about))


def test_a_description_tells_the_ready_made_ranges_and_their_source() -> None:
    about = describe("crd")
    assert about.ranges["temperature"] == "loguniform: [0.02, 0.3]"
    assert "exclude" not in about.ranges
    told = " ".join(lines(about))
    assert about.ranges_from in told and "temperature  loguniform: [0.02, 0.3]" in told
    assert "| `temperature` | 0.1 | number > 0 | loguniform: [0.02, 0.3] |" in PAGE.read_text(encoding="utf-8")
