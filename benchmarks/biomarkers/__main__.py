"""Calibration, power, double dipping, replication and cost of `st.tl.biomarkers`; calibration of `st.tl.describe`.

    python benchmarks/biomarkers --data FOLDER --out tables.md

Writes Markdown tables; `--parts` chooses some of the six. Null regions are Gaussian random fields thresholded at the
70 % quantile; the length scale is in standard deviations of the tissue. For power, the counts of 30 genes outside a
region (length scale 0.5) are thinned binomially to 1 / fold change.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
from cost import cost
from described import described
from homogeneous import double_dipping
from regions import MIN_SHARE_SEEN, calibration, known_variance, power
from replication import replication

import stxtools as st

PARTS = ("calibration", "power", "homogeneous", "describe", "replication", "cost")


def read(folder: Path, name: str) -> ad.AnnData:
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    adata.uns = {}
    adata.obsm["spatial"] = np.asarray(adata.obsm["spatial"], dtype=float)[:, :2]
    return adata


def markdown(title: str, rows: list[dict[str, str]]) -> str:
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([str(r.get(h, "")) for h in header] for r in rows)]
    return f"\n{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir, help="folder of the sections (*.h5ad)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sections", nargs="+", default=["xenium_breast_idc", "dlpfc_151673"], help="file stems")
    parser.add_argument("--lengths", nargs="+", type=float, default=[0.1, 0.3, 0.6], help="length scales")
    parser.add_argument("--folds", nargs="+", type=float, default=[1.25, 1.5, 2.0, 4.0], help="of planted genes")
    parser.add_argument(
        "--min-share", nargs="+", type=float, default=[MIN_SHARE_SEEN], help="least detection rates of planted genes"
    )
    parser.add_argument("--known", type=int, default=0, help="regions of the oracle with known null variance; 0: none")
    parser.add_argument("--depths", nargs="+", type=float, default=[0.0, 0.3, 0.6], help="spreads of log depth")
    parser.add_argument("--tissues", type=int, default=3, help="homogeneous tissues")
    parser.add_argument("--regions", type=int, default=20, help="null regions of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("biomarkers.md"), help="file of the tables")
    args = parser.parse_args()
    tables: dict[str, list[dict[str, str]]] = {}

    def add(title: str, rows: list[dict[str, str]]) -> None:
        tables.setdefault(title, []).extend(rows)
        args.out.write_text("".join(markdown(t, r) for t, r in tables.items()))

    for part in args.parts:
        if part in ("calibration", "power"):
            for name in args.sections:
                adata = read(args.data, name)
                oracle = known_variance(adata, args.known if part == "power" else 0, args.seed)
                for value in args.lengths if part == "calibration" else args.folds:
                    if part == "power":
                        for share in args.min_share:
                            row = power(adata, value, args.regions, args.seed, share, oracle)
                            where = {"section": name, "fold change": f"{value:g}", "detected in": f"{share:g}"}
                            add("Power", [{**where, **row}])
                        continue
                    where = {"section": name, "length scale": f"{value:g}"}
                    rows = calibration(adata, value, args.regions, args.seed)
                    add("Null regions", [{**where, **row} for row in rows])
        elif part == "describe":
            for name, length in product(args.sections, args.lengths):
                rows = described(read(args.data, name), length, args.regions, args.seed)
                add("Gene sets and contacts", [{"section": name, "length scale": f"{length:g}", **row} for row in rows])
        elif part == "homogeneous":
            for depth in args.depths:
                found = double_dipping(depth, args.tissues, segment=True)
                add("Groups found in the same tissue", found)
        elif part == "replication":
            add("Replication in other patients", replication(args.data))
        else:
            add("Time and memory", cost(20_000, 4_000))
            add("Time and memory", cost(400, 500_000, ("st.tl.biomarkers", "st.tl.biomarkers, composition")))


if __name__ == "__main__":
    main()
