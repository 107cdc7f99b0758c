"""Pretrained models in the package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd

_FOLDER = Path(__file__).parent / "shipped"


def available() -> pd.DataFrame:
    """List the pretrained models in the package; pass a name as ``model=``.

    Returns
    -------
    A DataFrame indexed by model name: ``tissue``, ``platform``, ``classes``, ``n_genes``, training ``sections``,
    ``scores`` on other sections, ``limits`` and ``source``.

    Examples
    --------
    >>> import stxtools as st
    >>> st.models.available().index.tolist()
    ['human_cortex']
    >>> model = st.models.load("human_cortex")
    """
    cards = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(_FOLDER.glob("*.json"))}
    return pd.DataFrame.from_dict(cards, orient="index").rename_axis("name")


def shipped_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the file of a pretrained model, given its name; any other path as it is."""
    if isinstance(path, str) and not os.path.exists(path):
        return {file.stem: file for file in _FOLDER.glob("*.stx")}.get(path, path)
    return path
