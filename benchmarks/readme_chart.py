"""The chart of the README, as text: the sublayers of a run with the largest estimates, as bars with their intervals.

    python -m benchmarks.readme_chart RUN

A chart of characters shows wherever the README is shown, a package index included.
"""

from __future__ import annotations

import argparse

from lowmem_layers import open_run

_WIDTH = 40  # characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


def main() -> None:
    """Print the chart of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--value", default="loglikelihood", help="the value by which sublayers are judged")
    parser.add_argument("--top", type=int, default=10, help="the number of sublayers shown")
    options = parser.parse_args()

    rows = open_run(options.run).importance(options.value).to_pylist()
    last_task = [row for row in rows if row["task"] == rows[-1]["task"]]  # the mean over tasks, where there are several
    top = sorted(last_task, key=lambda row: -row["value"])[: options.top]
    for row in top:
        interval = f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
        print(f"{row['sublayer']:<8} {_bar(row['value'] / top[0]['value']):<{_WIDTH}} {row['value']:5.2f} {interval}")


def _bar(share: float) -> str:
    whole, eighths = divmod(round(8 * _WIDTH * share), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


if __name__ == "__main__":
    main()
