"""Waits until the Ray at RAY_ADDRESS has so many nodes: a run shares out what it finds.

RAY_ADDRESS=10.0.0.5:6379 python experiments/cluster/await_nodes.py 4
"""

from __future__ import annotations

import sys
import time

from raydistill.cluster import ensure_ray
from raydistill.errors import ConfigError


def main() -> None:
    there, wanted = 0, int(sys.argv[1])
    while there < wanted:
        try:
            ensure_ray()
        except ConfigError:  # not even the first one is there
            time.sleep(2)
            continue
        import ray

        there = sum(node["Alive"] for node in ray.nodes())
        time.sleep(0 if there == wanted else 2)


if __name__ == "__main__":
    main()
