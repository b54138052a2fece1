"""How commands answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def finish(values: Mapping[str, Any], as_json: bool, *, printed: bool = False) -> None:
    """Print a result: as the last line of stdout for scripts, or as lines for people, if they have none yet."""
    if as_json:
        print(json.dumps(dict(values), default=str))
    elif not printed:
        for name, value in values.items():
            print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
