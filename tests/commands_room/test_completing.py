"""Names that the shell completes, asked for as bash does."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = """
import sys
from raydistill.cli import main
try:
    main()
finally:
    assert not {"torch", "ray", "matplotlib"} & set(sys.modules)
"""


def completed(words: str) -> list[str]:
    """The words that bash would offer for the last one."""
    environment = {"_RAYDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c", WITHOUT_TORCH]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("raydistill fin", {"finetune"}),
        ("raydistill cache ver", {"verify"}),
        ("raydistill list me", {"methods"}),
        ("raydistill list methods proto", {"protocpc"}),
        ("raydistill compare runs/x --layout crd-table1", {"crd-table1", "crd-table10", "crd-table11"}),
        ("raydistill eval runs/x --protocol knn", {"knn"}),
        ("raydistill init --method cocord", {"cocord"}),
        ("raydistill init --goal un", {"unlabelled"}),
        ("raydistill init --data fashion", {"fashion_mnist"}),
        ("raydistill init --student resnet8", {"resnet8", "resnet8x4"}),
        ("raydistill init --teacher torchvision/mobilenet_v2", {"torchvision/mobilenet_v2"}),
        ("raydistill train x.yaml --prof", {"--profile"}),
    ],
)
def test_the_shell_completes(words: str, offered: set[str]) -> None:
    assert set(completed(words)) == offered
