"""Annotated public sections, read as h5ad from ``settings.datasetdir``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stxtools._checks import check_bool
from stxtools._settings import settings

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class _Entry:
    """Where a data set's files come from."""

    files: dict[str, str]  # sample -> file name without extension
    pattern: str  # for samples that are not listed
    source: str
    publication: str


_LONGEST = 100  # letters of a section's name

_REGISTRY = {
    "dlpfc": _Entry(
        files={
            "151508": "dlpfc_151508_pcs",
            "151670": "dlpfc_151670_pcs",
            "151673": "dlpfc_151673",
            "151675": "dlpfc_151675",
        },
        pattern="dlpfc_{sample}",
        source="LieberInstitute/HumanPilot on GitHub (images, positions, layers); counts of 151673 and 151675 in "
        "the history of prabhakarlab/Banksy on GitHub; scribbles of ScribbleDom",
        publication="Maynard et al. 2021, Nat Neurosci, doi:10.1038/s41593-020-00787-0",
    ),
    "her2st": _Entry(
        files={s: f"her2st_{s}" for s in ("A1", "B1", "C1", "D1")},
        pattern="her2st_{sample}",
        source="almaan/her2st on GitHub",
        publication="Andersson et al. 2021, Nat Commun 12:6012, doi:10.1038/s41467-021-26271-2",
    ),
    "xenium_breast_idc": _Entry(
        files={"": "xenium_breast_idc"},
        pattern="xenium_breast_idc",
        source="bhuvad/XeniumSpatialAnalysisWorkshop on GitHub (data/idc.rda); measured by 10x Genomics",
        publication="Bhuva et al. 2024, Genome Biol, doi:10.1186/s13059-024-03241-7",
    ),
    "starmap_mpfc": _Entry(
        files={"BZ5": "starmap_mpfc_BZ5"},
        pattern="starmap_mpfc_{sample}",
        source="zhengli09/BASS-Analysis on GitHub (data/starmap_mpfc.RData)",
        publication="Wang et al. 2018, Science, doi:10.1126/science.aat5691; regions of Li and Zhou 2022, "
        "Genome Biol, doi:10.1186/s13059-022-02734-7",
    ),
    "osmfish_sscortex": _Entry(
        files={"": "osmfish_mouse_sscortex"},
        pattern="osmfish_mouse_sscortex",
        source="drieslab/spatial-datasets on GitHub (data/2018_osmFISH_SScortex)",
        publication="Codeluppi et al. 2018, Nat Methods, doi:10.1038/s41592-018-0175-z",
    ),
    "merfish_hypothalamus": _Entry(
        files={"": "merfish_hypothalamus"},
        pattern="merfish_hypothalamus",
        source="JEFworks-Lab/SEraster on GitHub (data/merfish_mousePOA.rda)",
        publication="Moffitt et al. 2018, Science, doi:10.1126/science.aau5324",
    ),
    "xenium_mouse_brain": _Entry(
        files={"": "xenium_mouse_brain_subset"},
        pattern="xenium_mouse_brain_subset",
        source="10x Genomics, Xenium fresh frozen mouse brain coronal tiny subset (CC BY 4.0); also in "
        "estellad/SpatialExperimentIO on GitHub",
        publication="10x Genomics",
    ),
    "mouse_olfactory_bulb": _Entry(
        files={s: f"st_mouse_olfactory_bulb_{s}" for s in ("MOB1", "MOB2")},
        pattern="st_mouse_olfactory_bulb_{sample}",
        source="jbergenstrahle/STUtility on GitHub (inst/extdata/counts)",
        publication="Stahl et al. 2016, Science, doi:10.1126/science.aaf2403",
    ),
}


def _read(name: str, sample: str = "") -> AnnData:
    """Read one section, or say where it was looked for and where it comes from."""
    import anndata

    if not isinstance(sample, str):
        raise TypeError(f"`sample` must be a string such as {next(iter(_REGISTRY[name].files))!r}, not {sample!r}.")
    if any(c in sample for c in "/\\\0") or len(sample) > _LONGEST:
        raise ValueError(f"`sample={sample!r}` is the name of a section, not a path.")
    entry = _REGISTRY[name]
    path = settings.datasetdir / f"{entry.files.get(sample, entry.pattern.format(sample=sample))}.h5ad"
    if not path.is_file():
        known = f" Sections known: {', '.join(entry.files)}." if sample else ""
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent}.{known} Set `stxtools.settings.datasetdir` or the environment "
            f"variable STXTOOLS_DATASETDIR to the folder that holds it, or make it from the public data: "
            f"{entry.source} ({entry.publication})."
        )
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as err:
        raise OSError(
            f"The file {str(path)!r} cannot be read as a section ({type(err).__name__}: {err}). It is incomplete or "
            f"another one: make it again from {entry.source}."
        ) from err


def dlpfc(sample: str = "151673") -> AnnData:
    """Read a section of the human dorsolateral prefrontal cortex (10x Visium).

    Layers annotated by Maynard et al. 2021 (Nat Neurosci, doi:10.1038/s41593-020-00787-0); scribbles of an expert on
    a few per cent of the spots from Rahman et al. 2023 (ScribbleDom, Bioinformatics).

    Parameters
    ----------
    sample
        ``"151673"`` or ``"151675"`` (one donor; counts of variable genes, low-resolution H&E image), or ``"151508"``
        or ``"151670"`` (two other donors; 15 principal components instead of counts).

    Returns
    -------
    AnnData with ``obs["layer"]`` (``obs["truth"]`` where there are components only), ``obs["scribble"]``,
    ``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]``. The counts are a subset of the genes: the
    library size is ``obs["total_umi_all_genes"]``.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.dlpfc("151673")  # doctest: +SKIP
    """
    return _read("dlpfc", sample)


def her2st(sample: str = "A1") -> AnnData:
    """Read a section of a HER2-positive breast tumour (Spatial Transcriptomics).

    Annotated by a pathologist; Andersson et al. 2021 (Nat Commun 12:6012, doi:10.1038/s41467-021-26271-2).

    Parameters
    ----------
    sample
        ``"A1"``, ``"B1"``, ``"C1"`` or ``"D1"``, one section of each of four patients.

    Returns
    -------
    AnnData of counts with ``obs["annotation"]``, ``obs["is_tumour"]``, ``obs["patient"]``, ``obs["sample"]``,
    ``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.her2st("B1")  # doctest: +SKIP
    """
    return _read("her2st", sample)


def xenium_breast_idc() -> AnnData:
    """Read 1 x 1 mm of a human invasive ductal carcinoma (10x Xenium).

    Pathology regions of Bhuva et al. 2024 (Genome Biol, doi:10.1186/s13059-024-03241-7).

    Returns
    -------
    AnnData of counts with ``obs["region"]``, ``obs["is_tumour"]``, ``obsm["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.xenium_breast_idc()  # doctest: +SKIP
    """
    return _read("xenium_breast_idc")


def starmap_mpfc(sample: str = "BZ5") -> AnnData:
    """Read a section of the mouse medial prefrontal cortex (STARmap).

    Wang et al. 2018 (Science, doi:10.1126/science.aat5691); layers of Li and Zhou 2022 (BASS, Genome Biol,
    doi:10.1186/s13059-022-02734-7).

    Parameters
    ----------
    sample
        ``"BZ5"``.

    Returns
    -------
    AnnData of counts with ``obs["region"]`` (four layers), ``obs["cell_type"]``, ``obsm["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.starmap_mpfc()  # doctest: +SKIP
    """
    return _read("starmap_mpfc", sample)


def osmfish_sscortex(*, drop_duplicates: bool = True) -> AnnData:
    """Read a section of the mouse somatosensory cortex (osmFISH, 33 genes).

    Codeluppi et al. 2018 (Nat Methods, doi:10.1038/s41592-018-0175-z).

    Parameters
    ----------
    drop_duplicates
        Whether to drop the cells that are exact duplicates of another one (``obs["is_duplicate"]``). Kept, they
        leak from training to test data whatever the split.

    Returns
    -------
    AnnData of counts with ``obs["region"]`` (eleven), ``obs["cell_type"]``, ``obs["is_duplicate"]``,
    ``obsm["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.osmfish_sscortex()  # doctest: +SKIP
    """
    drop = check_bool("drop_duplicates", drop_duplicates)
    adata = _read("osmfish_sscortex")
    if drop:
        adata = adata[~adata.obs["is_duplicate"].to_numpy(dtype=bool)].copy()
    return adata


def merfish_hypothalamus() -> AnnData:
    """Read a section of the mouse hypothalamus (MERFISH, Bregma -0.29).

    Moffitt et al. 2018 (Science, doi:10.1126/science.aau5324).

    Returns
    -------
    AnnData with ``obs["cell_type"]`` (sixteen; there are no regions) and ``obsm["spatial"]``. The values are
    normalised by cell volume and are not integers.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.merfish_hypothalamus()  # doctest: +SKIP
    """
    return _read("merfish_hypothalamus")


def xenium_mouse_brain() -> AnnData:
    """Read a part of a mouse brain (10x Xenium): 36,602 cells without annotation.

    10x Genomics, fresh frozen mouse brain, coronal, tiny subset (CC BY 4.0).

    Returns
    -------
    AnnData of counts with ``obs["cell_area"]``, ``obs["nucleus_area"]``, ``obsm["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.xenium_mouse_brain()  # doctest: +SKIP
    """
    return _read("xenium_mouse_brain")


def mouse_olfactory_bulb(sample: str = "MOB1") -> AnnData:
    """Read a replicate section of the mouse olfactory bulb (Spatial Transcriptomics).

    Stahl et al. 2016 (Science, doi:10.1126/science.aaf2403), as shipped with STUtility.

    Parameters
    ----------
    sample
        ``"MOB1"`` or ``"MOB2"``.

    Returns
    -------
    AnnData of counts with ``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]`` and an H&E image.

    Raises
    ------
    FileNotFoundError
        If the section is not in ``settings.datasetdir``; the message says where it comes from.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.mouse_olfactory_bulb("MOB2")  # doctest: +SKIP
    """
    return _read("mouse_olfactory_bulb", sample)
