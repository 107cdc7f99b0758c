"""Whether observations that are said to be one section look like several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools._validate import Libraries, coordinates, libraries, listing

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

# columns that often name sections, as they are written in lower case and without _ and -
_LIBRARY_NAMES = "library libraryid libraries sample sampleid samplename samples batch batchid dataset replicate"
_SLIDE_NAMES = "slide slideid section sectionid sectionname slice sliceid capturearea fov fovid fovname roi"
_PATIENT_NAMES = "patient patientid donor donorid subject individual"
_NAMES = frozenset(f"{_LIBRARY_NAMES} {_SLIDE_NAMES} {_PATIENT_NAMES}".split())
_COINCIDENT = 0.3  # share of observations that share their position; 0.2 in a section with doubled cells (osmFISH)
_FEW = 10  # doubled positions, or observations of a group, that say nothing
_LOOKED_AT = 20_000  # observations whose neighbours are looked at
_NEIGHBOURS = 6
_MOST_GROUPS = 500


def sections(adata: AnnData, spatial_key: str, library_key: str | bool | None) -> tuple[NDArray[np.float64], Libraries]:
    """Return coordinates and sections.

    Raises
    ------
    ValueError
        If no ``library_key`` is given and the observations look like several sections at the same place.
    """
    libs = libraries(adata, library_key)
    xy = coordinates(adata, spatial_key, libs)
    if library_key is None:
        check_one_section(adata.obs, xy)
    return xy, libs


def check_one_section(obs: pd.DataFrame, xy: NDArray[np.float64]) -> None:
    """Raise where many positions are held twice, or groups that a column names lie within each other."""
    mend = "`library_key=False` says that all observations are one section."
    twice = pd.DataFrame(xy).duplicated(keep=False).to_numpy()
    place = pd.factorize(pd.MultiIndex.from_arrays(xy[twice].T))[0] if twice.any() else np.empty(0, dtype=np.int64)
    if twice.mean() > _COINCIDENT and place.max() + 1 >= _FEW:
        column = _column_apart(obs, twice, place)
        named = (
            f"`adata.obs[{column!r}]` tells them apart: pass `library_key={column!r}`."
            if column is not None
            else "Name the section of each observation in a column of `adata.obs` (`anndata.concat(..., label=)` "
            "writes one) and pass it as `library_key=`."
        )
        raise ValueError(
            f"{int(twice.sum())} of {len(xy)} observations lie at exactly the position of another one, as when several "
            f"sections are put together. {named} {mend}"
        )
    for column in obs.columns:
        codes = _groups(obs, column)
        if codes is None:
            continue
        mixed, bound = _mixing(xy, codes)
        if mixed > bound:
            raise ValueError(
                f"The groups of `adata.obs[{column!r}]` ({listing(pd.unique(obs[column].dropna()), 4)}) lie within "
                "each other in space, as sections do whose coordinates begin at the same corner: neighbours "
                f"would be of different groups. Pass `library_key={column!r}`; or {mend}"
            )


def _groups(obs: pd.DataFrame, column: Any) -> NDArray[np.int64] | None:
    """Codes of a column whose name is one of sections; None for others, and where there is one group."""
    name = str(column).lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "")
    if name not in _NAMES or pd.api.types.is_float_dtype(obs[column].dtype):
        return None
    try:
        codes = pd.factorize(obs[column])[0]
    except TypeError:  # unhashable values name nothing
        return None
    size = np.bincount(codes[codes >= 0]) if (codes >= 0).any() else np.empty(0, dtype=np.int64)
    large = size >= _FEW
    if not 2 <= large.sum() <= _MOST_GROUPS:
        return None
    return np.where((codes >= 0) & large[codes], codes, -1).astype(np.int64)


def _mixing(xy: NDArray[np.float64], codes: NDArray[np.int64]) -> tuple[float, float]:
    """Return how often neighbours are of other groups, relative to chance, and how often groups side by side have it.

    Groups side by side mix along their borders alone, of which small groups have more.
    """
    from scipy.spatial import cKDTree

    rows = np.flatnonzero(codes >= 0)
    rows = rows[:: len(rows) // _LOOKED_AT + 1]
    tree, own = cKDTree(xy[rows]), codes[rows]
    near = tree.query(xy[rows], k=min(_NEIGHBOURS, len(rows) - 1) + 1)[1][:, 1:]
    share = np.bincount(own) / len(own)
    chance = 1 - float(np.square(share).sum())
    typical = float(np.square(share).sum()) * len(own)  # size of the group of an observation
    other = float((own[near] != own[:, None]).mean())
    return other / max(chance, 1e-9), 0.05 + 2 / np.sqrt(typical)


def _column_apart(obs: pd.DataFrame, twice: NDArray[np.bool_], place: NDArray[np.int64]) -> Any:
    """Return a column whose values differ between observations at one position: the one with the fewest values."""
    found: list[tuple[int, int, Any]] = []
    for at, column in enumerate(obs.columns):
        values = obs[column]
        if pd.api.types.is_float_dtype(values.dtype):
            continue
        try:
            codes, names = pd.factorize(values[twice])
        except TypeError:
            continue
        if 2 <= len(names) <= _MOST_GROUPS and not pd.DataFrame({"p": place, "c": codes}).duplicated().mean() > 0.01:
            found.append((len(names), at, column))
    return min(found)[2] if found else None
