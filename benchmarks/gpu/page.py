"""Write the tables of a file of measurements: python benchmarks/gpu/page.py gpu.json > gpu.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """# GPU

`benchmarks/gpu/run.sh OUT` runs the tests that need a CUDA GPU and these measurements, in at most nine minutes.
Single run on {gpu}, {cpu_cores} CPU cores, Python {python}, torch {torch}, {date}. Tests: {tests}.
Times are wall times; memory columns are peaks during the step.
"""

FOOT = """
Steps with 0.00 GB of GPU memory run on the CPU. `tl.segment(model=)` prepares the expression on the CPU and runs the
U-Net on the GPU; `tl.region_graph` and `tl.biomarkers` do not use the GPU.

No training step waits for the GPU: sections, views and augmentation stay there, and losses are read once per epoch.
`tests/test_nn_device.py` checks this for every network without a GPU. Convolutions use tf32, torch's default.
"""


def shown(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['seconds']:.1f}"


def table(part: str, rows: list[dict[str, Any]]) -> str:
    """Format the steps of one part: seconds with the GPU and on the CPU only, and peak memory of both."""
    timed = [r for r in rows if r.get("part") == part and "seconds" in r and "accelerator" in r]
    found = {(r["step"], r["accelerator"]): r for r in timed}
    lines = [
        f"| {part} | with the GPU, s | CPU only, s | memory, GB | GPU memory, GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in dict.fromkeys(step for step, _ in found):
        gpu, alone = found.get((step, "gpu")), found.get((step, "cpu"))
        one = gpu or alone or {}
        regions = f" ({one['regions']:,} regions)" if "regions" in one else ""
        memory = f"{one['peak_gb']:.1f} | {one.get('gpu_gb', 0.0):.2f}"
        lines.append(f"| {step}{regions} | {shown(gpu)} | {shown(alone)} | {memory} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    rows = result["rows"]
    timed = [r for r in rows if "seconds" in r and "accelerator" in r]
    parts = list(dict.fromkeys(r["part"] for r in timed))
    text = HEAD.format(**result) + "\n" + "\n\n".join(table(part, rows) for part in parts) + "\n"
    values = [r for r in rows if "value" in r]
    if values:
        text += "\n| agreement | |\n| --- | --- |\n"
        text += "".join(f"| {r['part']}: {r['step']} | {r['value']:.3g} |\n" for r in values)
    profiles = [r for r in rows if r["step"].startswith("profile")]
    if profiles:
        text += "\n| call | seconds | GPU busy, s | longest kernel |\n| --- | --- | --- | --- |\n"
        text += "".join(
            f"| {r['part']}: {r['step'].removeprefix('profile of ')} | {r['seconds']:.1f} | {r['busy']:.2f} | "
            f"`{r['top'][0][0][:60] if r['top'] else '-'}` |\n"
            for r in profiles
        )
    return text + FOOT


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text())))
