"""Write the stored results of ``make bench`` into docs/performance.md, as a table and a picture.

    python -m benchmarks.report

The words around the tables are written by hand and stay.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tokenbridge.base.files import atomic_write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE, PICTURE = ROOT / "docs/performance.md", ROOT / "docs/images/benchmarks.png"
START, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
HEADER = (
    "part",
    "images",
    "plain, ms",
    "ours, ms",
    "times as fast",
    "plain, GFLOP",
    "ours, GFLOP",
    "plain, MiB",
    "ours, MiB",
    "share of the matrix rate",
)
DPI = 110

Result = dict[str, Any]
"""One file of pytest-benchmark."""


def main() -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    tables = "\n\n".join(section(result) for result in results)
    atomic_write_text(PAGE, f"{before}{START}\n{tables}\n{END}{rest.split(END)[1]}")
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure(results).savefig(PICTURE, dpi=DPI, metadata={"Software": None})
    print(f"{PAGE}\n{PICTURE}")


def section(result: Result) -> str:
    """Return the name of the machine, and the table of its results."""
    rows = (HEADER, ["---"] * len(HEADER), *map(row, result["benchmarks"]))
    return f"{machine(result)}:\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def machine(result: Result) -> str:
    info = result["machine_info"]
    return f"{info['processor']}, {info['instructions']}, torch {info['torch']}"


def row(benchmark: Result) -> list[str]:
    info, seconds = benchmark["extra_info"], benchmark["stats"]["median"]
    share = info["ours_flops"] / seconds / info["matrix_rate"]
    scaled = {"flops": 1e9, "bytes": 2**20}
    plain = {name: digits(info[f"plain_{name}"] / unit) for name, unit in scaled.items() if f"plain_{name}" in info}
    return [
        benchmark["param"],
        str(info["images"]),
        digits(1e3 * info["plain_seconds"]) if plain else "",
        digits(1e3 * seconds),
        f"{ratio(benchmark):.2f}" if plain else "",
        plain.get("flops", ""),
        digits(info["ours_flops"] / 1e9),
        plain.get("bytes", ""),
        digits(info["ours_bytes"] / 2**20),
        f"{share:.0%}" if share else "",
    ]


def digits(value: float) -> str:
    """Return the number with three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(benchmark: Result) -> float:
    """Return how many times as fast as the plain baseline this is."""
    return float(benchmark["extra_info"]["plain_seconds"] / benchmark["stats"]["median"])


def figure(results: list[Result]) -> Figure:
    """Return bars of the ratios, with a panel for each machine."""
    drawn = Figure(figsize=(7.5, 3.6 * len(results)), layout="constrained")
    for axes, result in zip(drawn.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
        pairs = [each for each in result["benchmarks"] if "plain_seconds" in each["extra_info"]][::-1]
        bars = axes.barh([each["param"].replace("`", "") for each in pairs], [ratio(each) for each in pairs])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.axvline(1, color="#333333", linewidth=0.8)
        axes.set(xscale="log", xlabel="times as fast as the plain baseline", title=machine(result))
    return drawn


if __name__ == "__main__":
    main()
