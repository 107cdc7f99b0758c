"""Inputs of the robustness benchmark: errors are informative, leave the data unchanged, and results are valid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT / "benchmarks" / "robustness"


def test_hostile_inputs_get_named_errors(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--n", "40", "--seed", "3", "--out", str(out)],
        capture_output=True, text=True, timeout=600, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert out.exists(), done.stderr[-2000:]
    rows = pd.read_csv(out, keep_default_na=False)
    assert len(rows) == 40
    bad = rows[rows["outcome"].isin(["unnamed", "no end"]) | (rows[["changed", "faults", "state"]] != "").any(axis=1)]
    assert bad.empty, bad[["number", "call", "what", "error", "changed", "faults", "state"]].to_string()
    assert set(rows["outcome"]) == {"ok", "named"}
    assert done.returncode == 0
