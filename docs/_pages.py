"""Pages made at build time from the package itself, into ``docs/generated`` (which git ignores)."""

from __future__ import annotations

import importlib
import shutil
from itertools import groupby
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parent
GENERATED = DOCS / "generated"

NAMESPACES = {
    "pp": "Preprocessing",
    "tl": "Tools",
    "pl": "Plotting",
    "get": "Tables",
    "datasets": "Data sets",
    "io": "Reading and writing",
    "models": "Models",
}


def namespace(name: str) -> ModuleType | None:
    """Return a public namespace, or None where it exports nothing."""
    try:
        module = importlib.import_module(f"stxtools.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"stxtools.{name}":
            raise
        return None
    return module if getattr(module, "__all__", None) else None


def _write(path: Path, text: str) -> None:
    """Write only what changed, so that Sphinx rebuilds only what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_api() -> None:
    """Write one page per namespace, with a table of the names in its ``__all__``, and a toctree of these pages."""
    pages = []
    for name, title in NAMESPACES.items():
        module = namespace(name)
        if module is None:
            continue
        entries = "\n".join(f"   {name}.{public}" for public in module.__all__)
        summary = (module.__doc__ or "").strip()
        _write(
            GENERATED / "api" / f"{name}.md",
            f"# {title}: `st.{name}`\n\n```{{eval-rst}}\n{summary}\n\n.. currentmodule:: stxtools\n\n"
            f".. autosummary::\n   :toctree: .\n   :nosignatures:\n\n{entries}\n```\n",
        )
        pages.append(f"api/{name}")
        for stub in (GENERATED / "api").glob(f"stxtools.{name}.*.rst"):
            if stub.name.split(".")[2] not in module.__all__:
                stub.unlink()  # autosummary's page of a name that is gone
    _write(
        GENERATED / "api.md",
        "# API\n\n"
        "```python\nimport stxtools as st\n```\n\n"
        "Every function takes an {class}`~anndata.AnnData` first, writes its results into it (see the "
        "[slots](slots.md)) and returns nothing; `copy=True` returns a changed copy and leaves the original alone.\n\n"
        "```{toctree}\n:maxdepth: 2\n\n" + "\n".join([*pages, "api/report", "api/settings"]) + "\n```\n",
    )
    _write(
        GENERATED / "api" / "report.md",
        "# Report: `st.report`\n\n```{eval-rst}\n.. autofunction:: stxtools.report\n```\n",
    )
    _write(
        GENERATED / "api" / "settings.md",
        "# Settings: `st.settings`\n\n```{eval-rst}\n.. autoclass:: stxtools._settings.Settings\n   :members:\n```\n",
    )


def write_slots() -> None:
    """Write the page of slots out of :mod:`stxtools._slots_table`, for the calls that exist."""
    from stxtools._slots_table import SLOTS

    text = [
        "# Slots: what each call writes\n",
        "Keys are those of the default `key_added`; another `key_added` replaces their base name. "
        '`{library}` is the name of a section: a value of `obs[library_key]`, or the name in `uns["spatial"]`, '
        "or `section`. Everything here can be written with `write_h5ad` and `write_zarr` and comes back equal.\n",
    ]
    for call, rows in groupby(SLOTS, key=lambda row: row.call):
        prefix, function = call.split(".")
        if function not in getattr(namespace(prefix), "__all__", ()):
            continue
        text += [f"## `st.{call}`\n", "| slot | type | shape | meaning |", "|---|---|---|---|"]
        text += [f"| `{r.code}` | {r.type} | {r.shape.replace('*', '·')} | {r.meaning} |" for r in rows]
        text.append("")
    _write(GENERATED / "slots.md", "\n".join(text))


def copy_tutorials() -> None:
    """Copy the executed notebooks beside the pages, ``quickstart`` first in the toctree."""
    target = GENERATED / "tutorials"
    notebooks = sorted((DOCS.parent / "tutorials").glob("*.ipynb"), key=lambda p: (p.stem != "quickstart", p.stem))
    target.mkdir(parents=True, exist_ok=True)
    for stale in {p.name for p in target.glob("*.ipynb")} - {p.name for p in notebooks}:
        (target / stale).unlink()
    for notebook in notebooks:
        copy = target / notebook.name
        if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)
    entries = "\n".join(f"tutorials/{p.stem}" for p in notebooks)
    _write(
        GENERATED / "tutorials.md",
        "# Tutorials\n\nNotebooks run on real sections; `make tutorials` runs them again.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n",
    )


def write_all() -> None:
    """Write every generated page."""
    write_api()
    write_slots()
    copy_tutorials()
