"""Segments over the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._validate import check_in, check_number

from . import _base, _legend
from ._legend import category_codes, colors_of, rgba
from ._sections import draw_sections, panels_of, spots_drawn

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_FAINTEST = 0.12
_SIZE_MIN, _SIZE_MAX = 0.001, 100.0


@_base.plot
def segment(
    adata: AnnData,
    key: str = _keys.SEGMENT,
    *,
    library: str | Sequence[str] | None = None, library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL,
    show_confidence: bool = False,
    img: bool | str | None = None,
    size: float = 1.0,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    title: str | None = None, scale_bar: float | bool | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the segments of every section over the tissue.

    Any categorical column can be drawn, for instance a pathologist's annotation or the prediction of
    :func:`stxtools.tl.multitask`; a column ``"{name}_pred"`` takes the colours of ``name``. Colours are stored in
    ``adata.uns["{key}_colors"]`` in the order of all categories.

    Parameters
    ----------
    key
        Categorical ``obs`` column, by default the one that :func:`stxtools.tl.segment` writes.
    show_confidence
        Fade observations by ``obs["{key}_confidence"]``: full colour at 1, nearly transparent at chance.
    size
        Diameter of an observation relative to the spacing of the observations; 1 makes neighbours touch.
    palette
        Colours: the name of a colour map, a sequence in the order of the categories, or a mapping from category to
        colour. By default those in ``uns["{key}_colors"]``, else scanpy's.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> ax = st.pl.segment(adata, "compartment", library_key="section")
    """
    call = "multitask(adata, ...)" if str(key).endswith("_pred") else "segment(adata)"
    check_in(adata, "obs", key, "key", f"Run `st.tl.{call}` first, or name another column.")
    size = check_number("size", size, minimum=_SIZE_MIN, maximum=_SIZE_MAX)
    params = _base.params_of(adata.uns.get(key))
    panels = panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=library, params=params)
    codes, names = category_codes(adata, key)
    colors = colors_of(adata, key, palette)
    face = rgba(codes, colors)
    if show_confidence:
        check_in(adata, "obs", _keys.confidence(key), "show_confidence=True reads",
                 "Run `st.tl.segment(adata)` first.")  # fmt: skip
        confidence = adata.obs[_keys.confidence(key)].to_numpy(dtype=float, na_value=np.nan)
        face[:, 3] = _fade(np.nan_to_num(confidence), len(names))
    axes = draw_sections(adata, panels, [spots_drawn(face, key, size)], ax=ax, spatial_key=spatial_key, title=title,
                         img=img, scale_bar=scale_bar)  # fmt: skip
    if legend:
        drawn = np.concatenate([codes[p.rows] for p in panels])
        present = [n for i, n in enumerate(names) if (drawn == i).any()]
        handles = _legend.class_handles(present, colors, missing=bool((drawn < 0).any()))
        if show_confidence:
            steps = np.linspace(1 / max(len(names), 2), 1, 3)
            dots = [_legend.dot(f"{s:.2f}", "#444444", alpha=float(_fade(s, len(names)))) for s in steps]
            handles += [_legend.heading("confidence"), *dots]
        _legend.add_legend(axes, handles, own=ax is None, title=key)
    return _base.done("segment", axes, ax=ax, show=show, save=save, colors=[(adata, key, colors)])


def _fade(confidence: Any, n: int) -> NDArray[np.float64]:
    """Return the opacity of a confidence in one of ``n`` classes."""
    chance = 1.0 / max(n, 2)
    return _FAINTEST + (1 - _FAINTEST) * np.clip((np.asarray(confidence) - chance) / (1 - chance), 0, 1)
