"""The page of a file of measurements: python benchmarks/gpu/page.py gpu.json > docs/benchmarks/gpu.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """# CUDA

`benchmarks/gpu/run.sh OUT` runs the tests that need a card and these measurements, in at most nine minutes.
One run on {card}, {cpu_cores} processor cores, Python {python}, torch {torch}, {date}.
Tests on the card: {tests}.
"""

FOOT = """
Where a step names no card memory it runs on the processor. `tl.segment(model=)` reads the expression on the processor
and the U-Net on the card; `tl.region_graph` and `tl.biomarkers` use no card.

A training step never waits for the card: sections, views and augmentation lie there, and losses are read once an epoch.
`tests/test_nn_device.py` checks this for every network on a machine without a card. Adam is fused on CUDA. Convolutions
use tf32, torch's default.
"""


def shown(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['seconds']:.1f}"


def table(part: str, rows: list[dict[str, Any]]) -> str:
    """Steps of one part: seconds on the card and on the processor alone, and the peaks of both memories."""
    timed = [r for r in rows if r.get("part") == part and "seconds" in r and "accelerator" in r]
    found = {(r["step"], r["accelerator"]): r for r in timed}
    lines = [
        f"| {part} | with the card, s | processor alone, s | memory, GB | card memory, GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in dict.fromkeys(step for step, _ in found):
        card, alone = found.get((step, "gpu")), found.get((step, "cpu"))
        one = card or alone or {}
        regions = f" ({one['regions']:,} regions)" if "regions" in one else ""
        memory = f"{one['peak_gb']:.1f} | {one.get('card_gb', 0.0):.2f}"
        lines.append(f"| {step}{regions} | {shown(card)} | {shown(alone)} | {memory} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    rows = result["rows"]
    timed = [r for r in rows if "seconds" in r and "accelerator" in r]
    parts = list(dict.fromkeys(r["part"] for r in timed))
    text = HEAD.format(**result) + "\n" + "\n\n".join(table(part, rows) for part in parts) + "\n"
    values = [r for r in rows if "value" in r]
    if values:
        text += "\n| agreement | |\n| --- | --- |\n"
        text += "".join(f"| {r['part']}, {r['accelerator']}: {r['step']} | {r['value']:.3g} |\n" for r in values)
    profiles = [r for r in rows if r["step"].startswith("profile")]
    if profiles:
        text += "\n| call | seconds | card busy, s | most of it in |\n| --- | --- | --- | --- |\n"
        text += "".join(
            f"| {r['part']}: {r['step'].removeprefix('profile of ')} | {r['seconds']:.1f} | {r['busy']:.2f} | "
            f"`{r['top'][0][0][:60] if r['top'] else '-'}` |\n"
            for r in profiles
        )
    return text + FOOT


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text())))
