"""Files from public addresses: fetched once, complete or not at all."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools import _keys
from stxtools._progress import is_shown

if TYPE_CHECKING:
    from anndata import AnnData


def fetch(
    files: Mapping[str, str], folder: Path, help_text: str, show_progress: bool | None,
    hashes: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Put files (name: address) into ``folder``, downloading those that are not there; check those with a hash."""
    import pooch

    for name, url in files.items():
        path, known = folder / name, (hashes or {}).get(name)
        if path.exists():
            if known is not None and not pooch.hashes.hash_matches(str(path), known):
                raise ValueError(f"{path} has not the checksum {known}: it is incomplete or another version. Delete it "
                                 "and call again.")  # fmt: skip
            continue
        try:
            # pooch writes to a temporary file and moves it into place when it is complete and its checksum is right
            pooch.retrieve(url, known, fname=name, path=folder, progressbar=is_shown(show_progress))
        except (OSError, ValueError) as err:
            kind = ValueError if isinstance(err, ValueError) and not isinstance(err, OSError) else ConnectionError
            raise kind(
                f"Could not download {url} ({type(err).__name__}: {err}). Nothing was kept. {help_text} "
                f"Then save the file as {path} and call again."
            ) from err


def extract(archive: Path, member: str) -> None:
    """Unpack the folder ``member`` of a tar archive beside it, completely or not at all, where it is not there."""
    target = archive.parent / member
    if target.is_dir():
        return
    try:
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            tar.extractall(scratch, filter="data")
            (Path(scratch) / member).rename(target)
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ValueError(f"{archive} cannot be unpacked ({err}); delete it and call again.") from err


def check_cells(adata: AnnData) -> None:
    """Check that a table that nothing else vouches for holds counts and positions of different cells."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"there are {adata.n_obs} cells and {adata.n_vars} genes")
    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError("the matrix holds other values than counts")
    if not np.isfinite(adata.obsm[_keys.SPATIAL]).all():
        raise ValueError("there are cells without a position")
    if not adata.obs_names.is_unique or not adata.var_names.is_unique:
        raise ValueError("a cell or a gene is there twice")
