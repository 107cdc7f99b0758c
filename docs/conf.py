"""Sphinx configuration; the pages that come from the code are made by ``_pages.py`` beside it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _pages
from sphinx.ext.napoleon import NumpyDocstring

_pages.write_all()

info = metadata("stxtools")
project = info["Name"]
author = "the stxtools developers"
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "literal"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
needs_sphinx = "8.0"

autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def _returns_as_written(self: NumpyDocstring, section: str) -> list[str]:
    """Keep a section "Returns" as the reStructuredText it is: prose, and slots as a definition list."""
    lines = self._strip_empty(self._dedent(self._consume_to_next_section()))
    return [*self._format_block(":returns: ", lines), ""]


# Napoleon takes every line for a type and sets it in italics, in which no literal can stand; scanpydoc mends it so too.
NumpyDocstring._parse_returns_section = _returns_as_written

# The notebooks are committed with their outputs: a build needs neither the data nor the time to run them.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Links into other projects need their inventories from the network, and a missing one is a warning, which is an
# error here. So they are made where the documentation is published, or on request.
intersphinx_mapping = {}
if os.environ.get("READTHEDOCS") == "True" or os.environ.get("STXTOOLS_DOCS_LINKS"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "sklearn": ("https://scikit-learn.org/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
        "torch_geometric": ("https://pytorch-geometric.readthedocs.io/en/stable/", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
    }

html_theme = "sphinx_book_theme"
html_title = f"{project} {release}"
html_theme_options = {
    "repository_url": "https://github.com/stxtools/stxtools",
    "use_repository_button": True,
    "path_to_docs": "docs",
    "show_toc_level": 2,
}
