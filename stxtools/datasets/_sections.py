"""Annotated public sections, read as h5ad from ``settings.datasetdir``."""

from __future__ import annotations

from anndata import AnnData, read_h5ad

from stxtools._checks import check_bool
from stxtools._settings import settings

from ._registry import REGISTRY, described

_LONGEST = 100  # letters of a section's name


def _read(name: str, sample: str = "") -> AnnData:
    """Read one section, or say where it was looked for and where it comes from."""
    entry = REGISTRY[name]
    if not isinstance(sample, str):
        raise TypeError(f"`sample` must be a string such as {entry['samples'][0]!r}, not {sample!r}.")
    if any(c in sample for c in "/\\\0") or len(sample) > _LONGEST:
        raise ValueError(f"`sample={sample!r}` is the name of a section, not a path.")
    file = entry.get("files", {}).get(sample, entry["pattern"].format(sample=sample))
    path = settings.datasetdir / f"{file}.h5ad"
    if not path.is_file():
        known = f" Sections known: {', '.join(entry['samples'])}." if sample else ""
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent}.{known} Set `stxtools.settings.datasetdir` or the environment "
            f"variable STXTOOLS_DATASETDIR to the folder that holds it, or make it from the public data: "
            f"{entry['source']} ({entry['publication']})."
        )
    try:
        return read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as err:
        raise OSError(
            f"The file {str(path)!r} cannot be read as a section ({type(err).__name__}: {err}). It is incomplete or "
            f"another one: make it again from {entry['source']}."
        ) from err


@described
def dlpfc(sample: str = "151673") -> AnnData:
    return _read("dlpfc", sample)


@described
def her2st(sample: str = "A1") -> AnnData:
    return _read("her2st", sample)


@described
def xenium_breast_idc() -> AnnData:
    return _read("xenium_breast_idc")


@described
def starmap_mpfc(sample: str = "BZ5") -> AnnData:
    return _read("starmap_mpfc", sample)


@described
def osmfish_sscortex(*, drop_duplicates: bool = True) -> AnnData:
    drop = check_bool("drop_duplicates", drop_duplicates)
    adata = _read("osmfish_sscortex")
    return adata[~adata.obs["is_duplicate"].to_numpy(dtype=bool)].copy() if drop else adata


@described
def merfish_hypothalamus() -> AnnData:
    return _read("merfish_hypothalamus")


@described
def xenium_mouse_brain() -> AnnData:
    return _read("xenium_mouse_brain")


@described
def mouse_olfactory_bulb(sample: str = "MOB1") -> AnnData:
    return _read("mouse_olfactory_bulb", sample)
