"""Generated cells, and the peak memory of a process."""

from __future__ import annotations

import sys
from pathlib import Path

GENES = 500
DEPTH = 85.0  # counts per cell at which about 10 % of the entries of 500 genes are nonzero


class PeakMemory:
    """Peak resident memory of this process since the last reset, in GB."""

    def __init__(self) -> None:
        self._linux = Path("/proc/self/clear_refs").exists()

    def reset(self) -> None:
        if self._linux:
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> float:
        if self._linux:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 2**20
        import resource

        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def generated(n_obs: int, folder: Path) -> Path:
    """Return the file of a section of ``n_obs`` cells, generated on first use."""
    import stxtools as st

    path = folder / f"cells_{n_obs}.h5ad"
    if not path.exists():
        adata = st.datasets.synthetic_tissue(
            n_obs, GENES, platform="merfish", mean_depth=DEPTH, random_state=0, show_progress=False
        )
        adata.write_h5ad(path)
    return path
