"""Trains every experiment of this folder with several seeds and prints the README's table.

    python experiments/fashion-mnist/table.py            # all, seeds 0 to 2
    python experiments/fashion-mnist/table.py kd crd     # some

Finished runs are kept and only read, so an interrupted table goes on where it was. The teacher is trained and cached
first where that has not been done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from running import HERE, teacher, trained

from raydistill import build_cache, load_experiment
from raydistill.display import rows, say
from raydistill.reporting.page import write_report
from raydistill.reporting.tables import comparison, display, load_runs, to_markdown

METHODS = ("alone", "kd", "crd", "compress", "cocord", "protocpc")


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS, help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    runs = [Path(teacher())]
    with rows("teacher") as progress:
        built = build_cache(load_experiment(HERE / "kd.yaml"), progress=progress)
    say(f"cache: {built.computed_rows} rows computed, {built.reused_rows} reused, {built.seconds:.0f} s")
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            named = [f"seed={seed}", f"name=fashion-{method}-seed{seed}"]
            runs.append(Path(trained(load_experiment(HERE / f"{method}.yaml", named))["run"]))
    print(to_markdown(display(comparison(load_runs(runs)))))
    print(f"\nreport: {write_report(runs, Path('runs/fashion-mnist.html'))}", file=sys.stderr)


if __name__ == "__main__":
    main()
