"""Two independent parts of the same counts, one to find groups in and one to test on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools import _keys
from stxtools._data.expression import find_expression
from stxtools._ownership import check_free
from stxtools._slots import Slots, provenance
from stxtools._spatial.order import name_order
from stxtools._validate import check_adata, check_bool, check_key_added, check_number, check_seed
from stxtools.stats._thinning import thin_counts

if TYPE_CHECKING:
    from anndata import AnnData


def split_counts(
    adata: AnnData,
    fraction: float = 0.5,
    *,
    layer: str | None = None,
    key_added: str | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Split counts into two parts that add up to them: find groups in one, test on the other.

    Clusters always differ in the genes they were found from, in tissue without any structure too; a test on the same
    counts calls those genes markers. Binomial thinning (count splitting, Neufeld et al. 2024, *Biostatistics*)
    sends every molecule to one part or the other at random.

    The parts are independent *where counts are Poisson* given the true expression: noise that made a cluster in one
    is then not there in the other. Where counts are more variable than that around the same expression
    (over-dispersion: bursts, depth, doublets), what they have in excess is in both parts, a gene's parts correlate by
    ``a * m / (2 + a * m)`` (mean count m, negative binomial with variance ``m + a * m**2``, ``fraction=0.5``), and
    p-values of groups found in one part stay optimistic on the other, most for abundant genes. UMI counts are near
    Poisson at the depths usual today; read counts without UMIs are not.

    Parameters
    ----------
    adata
        Annotated data with integer counts.
    fraction
        Share of the molecules in the part to find groups in, between 0 and 1.
    layer
        Layer with counts; by default ``layers["counts"]`` where there is one, else ``X``.
    key_added
        Beginning of the layers' names instead of ``"split"``.
    random_state
        Seed. An observation's split depends on its name and not on its row.
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or the changed copy with ``copy=True``. Sets

    ``layers["split_train"]``, ``layers["split_test"]`` : as the counts, (n_obs, n_vars)
        The two parts.
    ``uns["split"]["params"]`` : dict
        Parameters, seed and versions, and the layers' names; by these :func:`stxtools.tl.biomarkers` knows that groups
        of :func:`stxtools.tl.segment` were found in the other part.

    Raises
    ------
    KeyError
        There is no such layer.
    ValueError
        The values are not counts, or ``fraction`` leaves one part empty.

    See Also
    --------
    stxtools.tl.biomarkers : with groups of :func:`stxtools.tl.segment` it splits counts itself.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.pp.split_counts(adata)
    >>> st.tl.segment(adata, n_segments=4, layer="split_train")
    >>> st.tl.biomarkers(adata, groupby="segment", layer="split_test", n_null=100)
    """
    check_adata(adata)
    fraction = check_number("fraction", fraction, minimum=0, maximum=1)
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction={fraction:g}` leaves one part empty; choose a number between 0 and 1.")
    key = check_key_added(key_added, _keys.SPLIT)
    seed = check_seed(random_state)
    names = [f"{key}_train", f"{key}_test"]
    check_free(adata, "pp.split_counts", layers=names, uns=[key])
    check_bool("copy", copy)
    found = find_expression(adata, layer)
    counts = found.matrix
    if found.scale != "counts":
        raise ValueError(
            "The expression is not integer counts, and only counts can be split. Name the `layer` that holds them."
        )
    order = name_order(np.asarray(adata.obs_names, dtype=str))
    parts = thin_counts(counts, fraction, np.random.default_rng(seed), order)
    slots = Slots("pp.split_counts")
    for name, part in zip(names, parts, strict=True):
        slots.layers[name] = part if sparse.issparse(found.stored) else part.toarray()
    slots.uns[key] = {
        "params": provenance(
            fraction=fraction, layer=layer, random_state=seed, train=names[0], test=names[1], **found.record
        )
    }
    target = adata.copy() if copy else adata
    slots.write(target)
    return target if copy else None
