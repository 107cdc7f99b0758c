"""Resampled expression: with noise for robustness studies, or counts split into two independent parts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_choice, check_number, check_seed
from stxtools._data.expression import Expression
from stxtools._data.noise import noised_copy, noised_values, thin_counts
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import check_adata, check_key_added


@public
def add_noise(
    adata: AnnData, level: float, *, kind: Literal["gaussian", "counts"] = "gaussian", layer: str | None = None,
    use_rep: str | None = None, key_added: str | None = None, random_state: int = 0, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Add noise to expression or to a representation, relative to its standard deviation.

    ``kind="gaussian"`` adds ``level * sd * N(0, 1)`` with the standard deviation of each gene or feature. Only non-zero
    values of an expression matrix change, and none below 0, so that it stays sparse; integers stay integers (stochastic
    rounding). ``kind="counts"`` removes each molecule with probability ``level`` and replaces it by one drawn from the
    gene frequencies of the whole data set, so that the depth of every observation stays the same.

    Parameters
    ----------
    level
        Noise level, from 0 to 1.
    kind
        ``"gaussian"`` or ``"counts"`` (which needs integer counts).
    layer
        Layer to use; by default ``X`` for Gaussian noise, and ``layers["counts"]`` if present for count noise.
    use_rep
        Key of ``obsm`` to use instead of expression (Gaussian noise only).
    key_added
        Key of the layer (with ``use_rep``, of ``obsm``) to write with ``copy=False``; by default ``"noise"``.
    copy
        Whether to return a copy with noise in ``X`` (or ``obsm[use_rep]``). ``layers["counts"]``, ``raw`` and
        ``obsm["X_pca"]`` without noise are removed from it, so that later calls do not use them.

    Returns
    -------
    None, or the noised copy with ``copy=True``. Sets:

    %(slots)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> noised = st.pp.add_noise(adata, 0.1, kind="counts", copy=True)
    >>> bool(noised.X.sum() == adata.X.sum())
    True
    """
    check_adata(adata, layer=layer)
    level = check_number("level", level, minimum=0, maximum=1)
    check_choice("kind", kind, ("gaussian", "counts"))
    random_state, copy = check_seed(random_state), check_bool("copy", copy)
    key = check_key_added(key_added, _keys.NOISE)
    written = {} if copy else {"layers" if use_rep is None else "obsm": [key]}
    check_free(adata, "pp.add_noise", uns=[key], **written)
    if use_rep is not None and (kind == "counts" or layer is not None):
        what = 'kind="counts"' if kind == "counts" else "layer"
        raise ValueError(f"`use_rep` and `{what}` cannot be combined: a representation has no counts and no layers.")
    if isinstance(use_rep, str) and use_rep == "X":
        raise ValueError("`use_rep='X'`: omit `use_rep` to add noise to expression.")
    noised, read = noised_values(adata, level, kind=kind, layer=layer, use_rep=use_rep, seed=random_state)
    params = provenance(level=level, kind=kind, layer=layer, use_rep=use_rep, random_state=random_state, **read)
    slots = Slots("pp.add_noise", uns={key: {"params": params}})
    if not copy:
        (slots.layers if use_rep is None else slots.obsm)[key] = noised
        return slots.write(adata)
    target = noised_copy(adata, noised, kind=kind, use_rep=use_rep)
    slots.write(target)
    return target


@public
def split_counts(
    adata: AnnData, fraction: float = 0.5, *, layer: str | None = None, key_added: str | None = None,
    random_state: int = 0, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Split counts by binomial thinning into a part for clustering and a part for testing (Neufeld et al. 2024).

    Clusters always differ in the genes that were used to find them, even in tissue without structure. Thinning assigns
    each molecule to one of the two parts at random. The parts are independent *if counts are Poisson* given the true
    expression. For over-dispersed counts, the parts of a gene correlate by ``a * m / (2 + a * m)`` (mean m, variance
    ``m + a * m**2``, ``fraction=0.5``), and p-values remain optimistic. UMI counts are close to Poisson at usual
    depths; read counts without UMIs are not.

    Parameters
    ----------
    fraction
        Expected share of the molecules in the part for clustering, between 0 and 1.
    key_added
        Prefix of the layers; by default ``"split"``.
    random_state
        Random seed. The split depends on all names of observations, not on the order of rows.

    %(returns)s

    :func:`stxtools.tl.biomarkers` reads these parameters to recognise that groups were found in the other part.

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
    source = Expression(adata, layer)
    if source.scale != "counts":
        raise ValueError(
            "The expression is not integer counts, and only counts can be split. Name the `layer` that holds them."
        )
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    parts = thin_counts(source.matrix, fraction, np.random.default_rng(seed), order)
    stored = parts if sparse.issparse(source.stored) else [part.toarray() for part in parts]
    params = provenance(
        fraction=fraction, layer=layer, random_state=seed, train=names[0], test=names[1], **source.record
    )
    slots = Slots("pp.split_counts", layers=dict(zip(names, stored, strict=True)), uns={key: {"params": params}})
    return slots.write(adata, copy)
