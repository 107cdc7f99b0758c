"""Annotated public sections, read as h5ad from ``settings.datasetdir``: a table of what there is, and the loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import fill, indent
from typing import TYPE_CHECKING, TypeVar

from stxtools._checks import check_bool
from stxtools._settings import settings

if TYPE_CHECKING:
    from anndata import AnnData

F = TypeVar("F", bound=Callable[..., "AnnData"])

_LONGEST = 100  # letters of a section's name
_WIDTH = 112  # of a line of a docstring


@dataclass(frozen=True)
class _Entry:
    """What a data set is, where its files come from, and how they are called."""

    about: str  # completes "Read "
    publication: str
    holds: str  # what the AnnData holds
    source: str
    pattern: str  # file name without extension
    samples: tuple[str, ...] = ("",)
    parameters: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # of the samples whose file the pattern does not name


_REGISTRY = {
    "dlpfc": _Entry(
        "a section of the human dorsolateral prefrontal cortex (10x Visium).",
        "Maynard et al. 2021, Nat Neurosci, doi:10.1038/s41593-020-00787-0; scribbles of an expert on a few per cent "
        "of the spots of Rahman et al. 2023, ScribbleDom, Bioinformatics",
        'AnnData with ``obs["layer"]`` (``obs["truth"]`` where there are components only), ``obs["scribble"]``, '
        '``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]``. The counts are a subset of the genes: the '
        'library size is ``obs["total_umi_all_genes"]``.',
        "LieberInstitute/HumanPilot on GitHub (images, positions, layers); counts of 151673 and 151675 in the history "
        "of prabhakarlab/Banksy on GitHub; scribbles of ScribbleDom",
        "dlpfc_{sample}",
        ("151508", "151670", "151673", "151675"),
        {"sample": '``"151673"`` or ``"151675"`` (one donor; counts of variable genes, low-resolution H&E image), or '
         '``"151508"`` or ``"151670"`` (two other donors; 15 principal components instead of counts).'},
        {"151508": "dlpfc_151508_pcs", "151670": "dlpfc_151670_pcs"},
    ),
    "her2st": _Entry(
        "a section of a HER2-positive breast tumour (Spatial Transcriptomics), annotated by a pathologist.",
        "Andersson et al. 2021, Nat Commun 12:6012, doi:10.1038/s41467-021-26271-2",
        'AnnData of counts with ``obs["annotation"]``, ``obs["is_tumour"]``, ``obs["patient"]``, ``obs["sample"]``, '
        '``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]``.',
        "almaan/her2st on GitHub",
        "her2st_{sample}",
        ("A1", "B1", "C1", "D1"),
        {"sample": '``"A1"``, ``"B1"``, ``"C1"`` or ``"D1"``, one section of each of four patients.'},
    ),
    "xenium_breast_idc": _Entry(
        "1 x 1 mm of a human invasive ductal carcinoma (10x Xenium).",
        "Pathology regions of Bhuva et al. 2024, Genome Biol, doi:10.1186/s13059-024-03241-7",
        'AnnData of counts with ``obs["region"]``, ``obs["is_tumour"]``, ``obsm["spatial"]``.',
        "bhuvad/XeniumSpatialAnalysisWorkshop on GitHub (data/idc.rda); measured by 10x Genomics",
        "xenium_breast_idc",
    ),
    "starmap_mpfc": _Entry(
        "a section of the mouse medial prefrontal cortex (STARmap).",
        "Wang et al. 2018, Science, doi:10.1126/science.aat5691; layers of Li and Zhou 2022, BASS, Genome Biol, "
        "doi:10.1186/s13059-022-02734-7",
        'AnnData of counts with ``obs["region"]`` (four layers), ``obs["cell_type"]``, ``obsm["spatial"]``.',
        "zhengli09/BASS-Analysis on GitHub (data/starmap_mpfc.RData)",
        "starmap_mpfc_{sample}",
        ("BZ5",),
        {"sample": '``"BZ5"``.'},
    ),
    "osmfish_sscortex": _Entry(
        "a section of the mouse somatosensory cortex (osmFISH, 33 genes).",
        "Codeluppi et al. 2018, Nat Methods, doi:10.1038/s41592-018-0175-z",
        'AnnData of counts with ``obs["region"]`` (eleven), ``obs["cell_type"]``, ``obs["is_duplicate"]``, '
        '``obsm["spatial"]``.',
        "drieslab/spatial-datasets on GitHub (data/2018_osmFISH_SScortex)",
        "osmfish_mouse_sscortex",
        parameters={"drop_duplicates": "Whether to drop the cells that are exact duplicates of another one "
                    '(``obs["is_duplicate"]``). Kept, they leak from training to test data whatever the split.'},
    ),
    "merfish_hypothalamus": _Entry(
        "a section of the mouse hypothalamus (MERFISH, Bregma -0.29).",
        "Moffitt et al. 2018, Science, doi:10.1126/science.aau5324",
        'AnnData with ``obs["cell_type"]`` (sixteen; there are no regions) and ``obsm["spatial"]``. The values are '
        "normalised by cell volume and are not integers.",
        "JEFworks-Lab/SEraster on GitHub (data/merfish_mousePOA.rda)",
        "merfish_hypothalamus",
    ),
    "xenium_mouse_brain": _Entry(
        "a part of a mouse brain (10x Xenium): 36,602 cells without annotation.",
        "10x Genomics, fresh frozen mouse brain, coronal, tiny subset (CC BY 4.0)",
        'AnnData of counts with ``obs["cell_area"]``, ``obs["nucleus_area"]``, ``obsm["spatial"]``.',
        "10x Genomics; also in estellad/SpatialExperimentIO on GitHub",
        "xenium_mouse_brain_subset",
    ),
    "mouse_olfactory_bulb": _Entry(
        "a replicate section of the mouse olfactory bulb (Spatial Transcriptomics).",
        "Stahl et al. 2016, Science, doi:10.1126/science.aaf2403; as shipped with STUtility",
        'AnnData of counts with ``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]`` and an H&E image.',
        "jbergenstrahle/STUtility on GitHub (inst/extdata/counts)",
        "st_mouse_olfactory_bulb_{sample}",
        ("MOB1", "MOB2"),
        {"sample": '``"MOB1"`` or ``"MOB2"``.'},
    ),
}  # fmt: skip

_DOC = """\
Read {about}

{publication}
{parameters}
Returns
-------
{holds}

Raises
------
FileNotFoundError
    If the section is not in ``settings.datasetdir``; the message says where it comes from.

Examples
--------
>>> import stxtools as st
>>> adata = st.datasets.{name}()  # doctest: +SKIP
"""


def _documented(loader: F) -> F:
    """Write a loader's docstring from its row of the table."""
    name, entry = loader.__name__, _REGISTRY[loader.__name__]
    heading = "\nParameters\n----------\n" if entry.parameters else ""
    loader.__doc__ = _DOC.format(
        name=name,
        about=entry.about,
        publication=fill(f"{entry.publication}.", _WIDTH),
        holds=fill(entry.holds, _WIDTH),
        parameters=heading + "".join(f"{k}\n{indent(fill(v, _WIDTH), '    ')}\n" for k, v in entry.parameters.items()),
    )
    return loader


def _read(name: str, sample: str = "") -> AnnData:
    """Read one section, or say where it was looked for and where it comes from."""
    import anndata

    entry = _REGISTRY[name]
    if not isinstance(sample, str):
        raise TypeError(f"`sample` must be a string such as {entry.samples[0]!r}, not {sample!r}.")
    if any(c in sample for c in "/\\\0") or len(sample) > _LONGEST:
        raise ValueError(f"`sample={sample!r}` is the name of a section, not a path.")
    path = settings.datasetdir / f"{entry.files.get(sample, entry.pattern.format(sample=sample))}.h5ad"
    if not path.is_file():
        known = f" Sections known: {', '.join(entry.samples)}." if sample else ""
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


@_documented
def dlpfc(sample: str = "151673") -> AnnData:
    return _read("dlpfc", sample)


@_documented
def her2st(sample: str = "A1") -> AnnData:
    return _read("her2st", sample)


@_documented
def xenium_breast_idc() -> AnnData:
    return _read("xenium_breast_idc")


@_documented
def starmap_mpfc(sample: str = "BZ5") -> AnnData:
    return _read("starmap_mpfc", sample)


@_documented
def osmfish_sscortex(*, drop_duplicates: bool = True) -> AnnData:
    drop = check_bool("drop_duplicates", drop_duplicates)
    adata = _read("osmfish_sscortex")
    return adata[~adata.obs["is_duplicate"].to_numpy(dtype=bool)].copy() if drop else adata


@_documented
def merfish_hypothalamus() -> AnnData:
    return _read("merfish_hypothalamus")


@_documented
def xenium_mouse_brain() -> AnnData:
    return _read("xenium_mouse_brain")


@_documented
def mouse_olfactory_bulb(sample: str = "MOB1") -> AnnData:
    return _read("mouse_olfactory_bulb", sample)
