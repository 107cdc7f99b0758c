"""Check that `n_segments` is honoured: all sections, counts thinned to 100, 25, 10 and 5 %, 2 to 12 segments, 3 seeds.

    python benchmarks/exact --data FOLDER [--full] [--only dlpfc] [--seeds 3]

The U-Net is small and trained for one epoch, which loses classes more often than the default does; `--full` uses the
default. Prints one line for each section and depth. Exits with 1 if a number was refused, or if segments are missing
or not numbered by size.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

import stxtools as st

QUICK = {"width": 8, "epochs": 1, "pretrain": "none", "steps_per_epoch": 4, "sigmas": (0.0, 1.0)}


def thinned(adata: ad.AnnData, share: float) -> ad.AnnData:
    """Return counts (or values rounded to counts) thinned to a share."""
    out = adata.copy()
    x = sparse.csr_matrix(out.X, copy=True)
    if share < 1:
        x.data = np.random.default_rng(0).binomial(np.rint(x.data).astype(np.int64), share).astype(np.float32)
        x.eliminate_zeros()
    out.X = x
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sections (*.h5ad)")
    parser.add_argument("--full", action="store_true", help="default U-Net instead of the small one")
    parser.add_argument("--only", default="", help="only sections whose name contains this")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--largest", type=int, default=12, help="largest number of segments")
    given = parser.parse_args()
    wrong = 0
    for path in sorted(given.data.glob(f"*{given.only}*.h5ad")):
        section = ad.read_h5ad(path)
        components_only = path.stem.endswith("_pcs")
        for share in (1.0,) if components_only else (1.0, 0.25, 0.1, 0.05):
            adata, bad, n = section if components_only else thinned(section, share), [], 0
            if not components_only:
                adata.obsm.pop("X_pca", None)
                st.pp.normalize(adata, n_comps=20)  # once for all numbers and seeds
            for k in range(2, given.largest + 1):
                for seed in range(given.seeds):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        try:
                            found = st.tl.segment(
                                adata, k, params=None if given.full else QUICK, random_state=seed, copy=True,
                                accelerator="cpu", show_progress=False,
                            )  # fmt: skip
                        except ValueError as err:
                            bad.append(f"{k}/{seed}: {err}")
                            continue
                        finally:
                            n += 1
                    sizes = found.obs["segment"].value_counts(sort=False).to_numpy()
                    if len(sizes) != k or sizes.min() == 0 or (np.diff(sizes) > 0).any():
                        bad.append(f"{k}/{seed}: sizes {sizes.tolist()}")
            wrong += len(bad)
            print(f"{path.stem} {share:.0%}: {len(bad)} of {n} wrong", *bad, sep="\n    " if bad else " ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
