"""Two independent parts of the same counts, one to find groups in and one to test on."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._data.expression import Expression
from stxtools._docs import documented
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import check_adata, check_key_added, check_number, check_seed
from stxtools.stats._thinning import thin_counts


@documented
def split_counts(
    adata: AnnData, fraction: float = 0.5, *, layer: str | None = None, key_added: str | None = None,
    random_state: int = 0, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Split counts into two parts that add up to them: find groups in one, test on the other.

    Clusters always differ in the genes they were found from, in tissue without any structure too. Binomial thinning
    (count splitting, Neufeld et al. 2024) assigns every molecule to one part or the other at random. The parts are
    independent *where counts are Poisson* given the true expression. In over-dispersed counts a gene's parts correlate
    by ``a * m / (2 + a * m)`` (mean m, variance ``m + a * m**2``, ``fraction=0.5``), and p-values stay optimistic. UMI
    counts are near Poisson at the depths usual today; read counts without UMIs are not.

    Parameters
    ----------
    fraction
        Share of the molecules in the part to find groups in, between 0 and 1.
    key_added
        Beginning of the layers' names instead of ``"split"``.
    random_state
        Seed. An observation's split depends on its name and not on its row.
    %(parameters)s

    %(returns)s

    By its parameters :func:`stxtools.tl.biomarkers` knows that groups were found in the other part.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.pp.split_counts(adata)
    >>> st.tl.segment(adata, n_segments=4, layer="split_train")
    >>> st.tl.biomarkers(adata, groupby="segment", layer="split_test", n_null=100)
    """
    check_adata(adata, layer=layer, copy=copy)
    fraction = check_number("fraction", fraction, minimum=0, maximum=1)
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction={fraction:g}` leaves one part empty; choose a number between 0 and 1.")
    key = check_key_added(key_added, _keys.SPLIT)
    seed = check_seed(random_state)
    names = [f"{key}_train", f"{key}_test"]
    check_free(adata, "pp.split_counts", layers=names, uns=[key])
    found = Expression(adata, layer)
    counts = found.matrix
    if found.scale != "counts":
        raise ValueError(
            "The expression is not integer counts, and only counts can be split. Name the `layer` that holds them."
        )
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    parts = thin_counts(counts, fraction, np.random.default_rng(seed), order)
    slots = Slots("pp.split_counts")
    for name, part in zip(names, parts, strict=True):
        slots.layers[name] = part if sparse.issparse(found.stored) else part.toarray()
    slots.uns[key] = {
        "params": provenance(
            fraction=fraction, layer=layer, random_state=seed, train=names[0], test=names[1], **found.record
        )
    }
    return slots.write(adata, copy)
