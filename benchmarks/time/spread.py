"""Standard deviation between subjects of a gene's log2 pseudobulk in one compartment, generated and in real tissue."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import optimize, sparse, stats

import stxtools as st

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tables import markdown

MIN_OBS, MIN_SHARE = 20, 0.1  # fewest observations of a unit in a compartment; share of them that express a gene


def differences(adata: ad.AnnData, unit: str, compartment: str, group: str | None = None) -> pd.DataFrame:
    """Return the variance between units, and that of counting, of each gene in each compartment.

    Units are compared within their ``group`` (a time). Counts are Poisson, given the depth of the library.
    """
    frames = []
    for _, place in adata.obs.groupby(compartment, observed=True):
        size = place.groupby(unit, observed=True).size()
        kept = place[place[unit].isin(size.index[size >= MIN_OBS])]
        names = sorted(kept[unit].unique())
        of = kept.groupby(unit, observed=True)[group].first()[names].to_numpy() if group else np.zeros(len(names))
        free = len(names) - len(np.unique(of))
        if free < 1:
            continue
        counts = sparse.csr_matrix(adata[kept.index].X)
        rows = (np.searchsorted(names, kept[unit].astype(str)), np.arange(len(kept)))
        sums = np.asarray((sparse.csr_matrix((np.ones(len(kept)), rows)) @ counts).todense())
        seen = np.asarray((counts > 0).mean(axis=0)).ravel() >= MIN_SHARE
        share = np.log2((sums + 0.5) / (sums.sum(axis=1, keepdims=True) + 1))[:, seen]
        rest = share - pd.DataFrame(share).groupby(of).transform("mean").to_numpy()
        noise = 1 / (np.maximum(sums[:, seen], 0.5) * np.log(2) ** 2)
        frames.append(pd.DataFrame({"variance": (rest**2).sum(axis=0) / free, "free": free, "units": len(names),
                                    "noise": noise.mean(axis=0), "level": counts.mean(axis=0).A1[seen]}))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def deviation(table: pd.DataFrame) -> float:
    """Return the standard deviation at which half of the variances are below their chi-square medians."""
    half = stats.chi2.ppf(0.5, table["free"]) / table["free"]

    def excess(square: float) -> float:
        return float((table["variance"] <= half * (square + table["noise"])).mean()) - 0.5

    return float(np.sqrt(optimize.brentq(excess, 0, 100))) if excess(0) < 0 else 0.0


def generated(seeds: int) -> Iterator[tuple[str, pd.DataFrame]]:
    for difficulty in (0.0, 0.1, 0.25, 0.5):
        parts = [
            differences(st.datasets.synthetic_series(3, 3, obs_per_section=1000, n_trends=0, difficulty=difficulty,
                                                     random_state=seed, show_progress=False),
                        "subject", "compartment", "time")
            for seed in range(seeds)
        ]  # fmt: skip
        yield f"synthetic, difficulty {difficulty:g}", pd.concat(parts)


def real(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    def read(*names: str) -> ad.AnnData:
        parts = {name: ad.read_h5ad(folder / f"{name}.h5ad") for name in names}
        return ad.concat(parts, label="unit", index_unique="-")

    cortex = read("dlpfc_151673", "dlpfc_151675")
    for name, part in cortex.obs.groupby("unit", observed=True):
        across = part["array_col"].rank(pct=True)
        cortex.obs.loc[part.index, "strip"] = [f"{name}, {min(int(4 * x), 3)}" for x in across]
    yield "cortex, four strips of a section (two sections), by layer", differences(cortex, "strip", "layer", "unit")
    yield "cortex, two sections of a donor, by layer", differences(cortex, "unit", "layer")
    bulb = read("st_mouse_olfactory_bulb_MOB1", "st_mouse_olfactory_bulb_MOB2")
    st.tl.segment(bulb, 5, library_key="unit", show_progress=False)
    yield "olfactory bulb, two sections, by segment", differences(bulb, "unit", "segment")
    breast = read(*(f"her2st_{c}1" for c in "ABCD"))
    yield "breast tumours, four patients, by annotation", differences(breast, "unit", "annotation")


def spread(seeds: int, folder: Path) -> None:
    """Print the standard deviation over all genes, and over each third by mean expression."""
    rows = []
    for name, table in [*generated(seeds), *real(folder)]:
        third = pd.qcut(table["level"], 3, labels=["low", "middle", "high"])
        row = {"tissue, by compartment": name, "units": table["units"].max(), "all genes": deviation(table)}
        rows.append(row | {str(k): deviation(table[third == k]) for k in third.cat.categories})
    print(markdown(pd.DataFrame(rows).set_index("tissue, by compartment").round(2)))
