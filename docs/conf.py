"""Sphinx configuration; the pages that come from the code are made by ``_pages.py`` beside it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _pages
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.writers.html5 import HTML5Translator

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
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "literal"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
needs_sphinx = "9.0"

# Every reference to a name of this package must resolve. Other packages' inventories may be out of reach, and types
# of the private modules have no pages.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|lightning|matplotlib|numpy|os|pandas|scipy|torch|typing)\..*"),
    (r"py:.*", r"(anndata|scanpy|spatialdata|squidpy)\..*"),
    (r"py:.*", r"(Ellipsis|stxtools\.(nn|models)\..*|stxtools\._.*)"),
]

autosummary_generate = True
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them into the descriptions of the parameters
typehints_defaults = None
typehints_use_rtype = False
typehints_document_rtype = False
always_use_bars_union = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88  # longer ones have a line for each parameter
napoleon_google_docstring = False
napoleon_use_rtype = False


def _returns_as_written(self: NumpyDocstring, section: str) -> list[str]:
    """Keep a section "Returns" as it is: prose and a list of slots; sphinx_autodoc_typehints sets a colon before it."""
    lines = self._strip_empty([x for x in self._dedent(self._consume_to_next_section()) if x.strip() != ":"])
    return [*self._format_block(":returns: ", lines), ""]


# Napoleon takes every line for a type and sets it in italics, in which no literal can stand; scanpydoc mends it so too.
NumpyDocstring._parse_returns_section = _returns_as_written


def _attributes_as_parameters(self: NumpyDocstring, section: str) -> list[str]:
    """Render attributes, several of which may share a line, as parameters are."""
    return self._format_fields("Attributes", self._consume_fields())


NumpyDocstring._parse_attributes_section = _attributes_as_parameters

# The notebooks are committed with their outputs: a build needs neither the data nor the time to run them.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # no widget is drawn, so none of its scripts is loaded
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

ogp_site_url = "https://stxtools.readthedocs.io/en/latest/"
ogp_image = "_static/overview.png"
ogp_use_first_image = True

html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_context = {"default_mode": "auto"}
html_domain_indices = False
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = f"{project} {release}"
html_theme_options = {
    "repository_url": "https://github.com/stxtools/stxtools",
    "use_repository_button": True,
    "path_to_docs": "docs",
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has the search box
}


def _add_links(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Give a function's page its figure and a link to the slots that it writes."""
    lines += _pages.extra_lines(name.removeprefix("stxtools."))


def _name_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Say, for those who cannot see a notebook's figure, which code drew it."""
    for cell in doctree.findall(nodes.container):
        if "cell" not in cell.get("classes", ()):
            continue
        code = next(cell.findall(nodes.literal_block), None)
        lines = code.astext().splitlines() if code else []
        drawn = [line.strip() for line in lines if ".pl." in line or "plot" in line] or lines[-1:]
        for image in cell.findall(nodes.image):
            if not image.get("alt"):
                image["alt"] = f"Figure drawn by {drawn[-1]}" if drawn else "Figure"


def _inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(f'<span class="math">{tex2mathml(node.astext())}</span>')
    raise nodes.SkipNode


def _block_math(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))  # browsers draw it: no script
    app.connect("doctree-read", _name_figures)
    app.connect("autodoc-process-docstring", _add_links, priority=900)  # after napoleon
