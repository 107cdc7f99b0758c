"""Pages made at build time from the package itself, into ``docs/generated`` (which git ignores)."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
from itertools import groupby
from pathlib import Path
from types import ModuleType

import _architecture
import _gallery

DOCS = Path(__file__).resolve().parent
GENERATED = DOCS / "generated"

NAMESPACES = {
    "pp": "Preprocessing",
    "tl": "Tools",
    "pl": "Plotting",
    "get": "Tables",
    "datasets": "Datasets",
    "io": "Reading and writing",
    "models": "Models",
}

# In the order of a reader's questions. Names that are not listed come last in their namespace.
TASKS = {
    "Read and write": ("io",),
    "Prepare a section": ("pp",),
    "Find compartments": (
        "tl.segment", "tl.suggest_labels", "tl.pretrain", "get.segments", "get.probabilities",
        "pl.segment", "pl.annotate", "pl.stability", "pl.history",
    ),
    "Connect regions": (
        "tl.region_graph", "tl.embed", "get.regions", "pl.region_graph", "pl.attention",
    ),
    "Find biomarkers and targets": (
        "tl.biomarkers", "tl.describe", "tl.targets", "get.biomarkers", "get.describe",
        "pl.biomarkers", "pl.describe", "pl.targets",
    ),
    "Compare patients and time points": (
        "tl.compare", "tl.trends", "tl.track", "get.compare", "get.trends", "get.track",
        "pl.compare", "pl.trends", "pl.track",
    ),
    "Predict tissue class and disease": (
        "tl.multitask", "tl.distill", "tl.attention_fidelity", "pl.attention_fidelity",
    ),
    "Evaluate and tune": (
        "tl.evaluate", "tl.tune", "get.evaluation", "pl.evaluation", "pl.robustness", "pl.sensitivity",
    ),
    "Train and save models": ("models",),
    "Load public and synthetic sections": ("datasets",),
}  # fmt: skip

# What a reader has, the page to go to, and what is there.
QUESTIONS = (
    (
        "I have one section",
        "generated/tutorials/quickstart",
        "Find compartments, their region graph and marker genes.",
    ),
    (
        "I have a few annotations",
        "generated/tutorials/scribbles",
        "Segment the section from a few annotated spots.",
    ),
    ("I have an annotated section", "generated/tutorials/transfer", "Train a model once and apply it to new sections."),
    ("I have a disease label", "generated/tutorials/biomarkers", "Find biomarkers and drug targets across patients."),
    ("I have patients", "generated/tutorials/conditions", "Compare conditions, with patients as replicates."),
    ("I have time points", "generated/tutorials/time", "Follow compartments and genes over time."),
    ("I have labels for most spots", "generated/tutorials/framework", "Predict tissue class and disease jointly."),
    ("I have a million cells", "generated/tutorials/large", "Plan time and memory; keep expression on disk."),
    (
        "I have SpatialData or QuPath files",
        "generated/tutorials/spatialdata",
        "Import annotations; export segments and a report.",
    ),
    ("I want to annotate spots", "annotate", "Draw labels on the tissue and segment from them."),
    ("I have a cluster", "command_line", "Run every step on files, for example with Snakemake."),
    ("I want to share results", "report", "Write one HTML file that opens in a browser."),
)

# The plot that shows what a call wrote, where it has another name.
DRAWN_BY = {"tl.embed": "pl.attention", "tl.evaluate": "pl.evaluation", "tl.tune": "pl.sensitivity"}


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


def public_names() -> list[str]:
    """Return every public name as ``namespace.name``, in the order of :data:`TASKS`."""
    names = [f"{n}.{public}" for n in NAMESPACES for public in getattr(namespace(n), "__all__", ())]
    places = {name: place for place, task in enumerate(TASKS.values()) for name in task}
    listed = [name for task in TASKS.values() for name in task]

    def position(name: str) -> tuple[int, int]:
        of = name if name in places else name.split(".")[0]
        return places.get(of, len(places)), listed.index(name) if name in places else len(listed)

    return sorted(names, key=position)


def _table(names: list[str], toctree: str = "") -> str:
    return f".. autosummary::\n{toctree}   :nosignatures:\n\n" + "\n".join(f"   {name}" for name in names) + "\n"


def _cards(plots: list[str]) -> str:
    """Return a grid of the plots' figures, each a link to its page."""
    cards = "".join(
        f"   .. grid-item-card:: {name}\n      :link: stxtools.{name}\n      :link-type: doc\n"
        f"      :img-bottom: ../figures/{name}.png\n      :img-alt: Figure of the example of {name}\n"
        "      :class-card: stx-thumbnail\n\n"
        for name in plots
    )
    return f".. grid:: 2 2 3 3\n   :gutter: 2\n\n{cards}"


def write_api() -> None:
    """Write a page per namespace, and one that lists every call by task."""
    names = public_names()
    pages = [name for name in NAMESPACES if namespace(name)]
    for page in pages:
        own = [name for name in names if name.startswith(f"{page}.")]
        gallery = _cards(own) + "\n" if page == "pl" else ""
        summary, _, more = (namespace(page).__doc__ or "").strip().partition("\n\n")
        _write(
            GENERATED / "api" / f"{page}.md",
            f"# {NAMESPACES[page]}: `st.{page}`\n\n```{{eval-rst}}\n"
            f".. module:: stxtools.{page}\n.. currentmodule:: stxtools\n\n"
            f"{summary}\n\n{gallery}{_table(own, '   :toctree: .' + chr(10))}\n{more}\n```\n",
        )
        for stub in (GENERATED / "api").glob(f"stxtools.{page}.*.rst"):
            if stub.name.removeprefix("stxtools.").removesuffix(".rst") not in own:
                stub.unlink()  # autosummary's page of a name that is gone
    tasks: dict[str, list[str]] = {task: [] for task in [*TASKS, "More"]}
    for name in names:
        of = (task for task, listed in TASKS.items() if name in listed or name.split(".")[0] in listed)
        tasks[next(of, "More")].append(name)
    entries = "\n".join(f"api/{page}" for page in [*pages, "report", "settings"])
    text = [
        "# API by task\n",
        "```python\nimport stxtools as st\n```\n",
        "Functions in `pp` and `tl` take an {class}`~anndata.AnnData` or SpatialData first, write their results to it "
        "([slots](slots.md) lists them), and return None. `copy=True` returns a changed copy instead.\n",
        f"```{{toctree}}\n:maxdepth: 1\n:hidden:\n\n{entries}\n```\n",
    ]
    tasks["Share the results"] = ["report"]
    for task, own in tasks.items():
        if own:
            text.append(f"## {task}\n\n```{{eval-rst}}\n.. currentmodule:: stxtools\n\n{_table(own)}```\n")
    _write(GENERATED / "api.md", "\n".join(text))
    _write(
        GENERATED / "api" / "report.md",
        "# Report: `st.report`\n\n```{eval-rst}\n.. autofunction:: stxtools.report\n```\n",
    )
    _write(
        GENERATED / "api" / "settings.md",
        "# Settings: `st.settings`\n\n```{eval-rst}\n.. autoclass:: stxtools._settings.Settings\n   :members:\n```\n",
    )


def _written() -> set[str]:
    from stxtools._docs import SLOTS

    return {row.call for row in SLOTS}


def extra_lines(name: str) -> list[str]:
    """Return what a function's page says after its docstring: its figure, and where its slots are listed."""
    plot = DRAWN_BY.get(name, name.replace("tl.", "pl."))
    lines = []
    if name in _written():
        lines += ["", f"All outputs: :ref:`slots of {name} <slots-{name}>`."]
    if plot.startswith("pl.") and plot.removeprefix("pl.") in namespace("pl").__all__:
        what = "Figure of the example" if plot == name else f"Drawn by :func:`{plot} <stxtools.{plot}>`"
        alt = f"Figure of the example of {plot}"
        lines += [
            "",
            f"{what}:",
            "",
            f".. image:: /generated/figures/{plot}.png",
            f"   :alt: {alt}",
            "   :class: stx-figure",
        ]
    return lines


def write_slots() -> None:
    """Write the page of slots out of :mod:`stxtools._docs`, for the calls that exist."""
    from stxtools._docs import SLOTS

    text = [
        "# Slots: what each function writes\n",
        "The tables give the keys for the default `key_added`; another `key_added` replaces their base name. "
        '`{library}` is the name of a section: a value of `obs[library_key]`, otherwise the name in `uns["spatial"]`, '
        "otherwise `section`. `write_h5ad` and `write_zarr` store all slots without loss.\n",
    ]
    for call, rows in groupby(SLOTS, key=lambda row: row.call):
        prefix, function = call.split(".")
        if function not in getattr(namespace(prefix), "__all__", ()):
            continue
        text += [f"(slots-{call})=\n", f"## `st.{call}`\n", "| slot | type | shape | meaning |", "|---|---|---|---|"]
        text += [f"| `{r.code}` | {r.type} | {r.shape.replace('*', '·')} | {r.meaning} |" for r in rows]
        text.append("")
    _write(GENERATED / "slots.md", "\n".join(text))


def _first_figure(notebook: Path) -> bytes | None:
    """Return the first figure that is not much higher than wide (a PNG's size stands in bytes 16 to 23)."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    figures = [base64.b64decode("".join(figure)) for figure in found]
    wide = (f for f in figures if 1.3 * int.from_bytes(f[16:20], "big") > int.from_bytes(f[20:24], "big"))
    return next(wide, None)


def _grid(cards: list[str], columns: str) -> str:
    return f"::::{{grid}} {columns}\n:gutter: 2\n\n" + "".join(cards) + "::::\n"


def _summary(notebook: Path) -> tuple[str, str]:
    """Return a notebook's title, and how long it takes."""
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    takes = re.search(r"Takes (.+?) on one core", first)
    return first.splitlines()[0].removeprefix("# "), takes[1] if takes else ""


def write_tutorials() -> None:
    """Copy the executed notebooks beside the pages, in the order of :data:`QUESTIONS`, and make a card of each one."""
    target = GENERATED / "tutorials"
    asked = {page.split("/")[-1]: (place, have) for place, (have, page, _) in enumerate(QUESTIONS)}
    notebooks = sorted((DOCS.parent / "tutorials").glob("*.ipynb"), key=lambda p: asked.get(p.stem, (len(asked), "")))
    target.mkdir(parents=True, exist_ok=True)
    for stale in {p.name for p in target.glob("*.ipynb")} - {p.name for p in notebooks}:
        (target / stale).unlink()
    cards = []
    for notebook in notebooks:
        copy = target / notebook.name
        if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)
        title, takes = _summary(notebook)
        figure, image = _first_figure(notebook), ""
        if figure is not None:
            (target / f"{notebook.stem}.png").write_bytes(figure)
            image = f":img-bottom: tutorials/{notebook.stem}.png\n:img-alt: First figure of the tutorial\n"
        cards.append(
            f":::{{grid-item-card}} {title}\n:link: tutorials/{notebook.stem}\n:link-type: doc\n{image}"
            f":class-card: stx-thumbnail\n\n*{asked[notebook.stem][1]}.* Takes {takes}.\n:::\n\n"
        )
    entries = "\n".join(f"tutorials/{p.stem}" for p in notebooks)
    _write(
        GENERATED / "tutorials.md",
        "# Tutorials\n\nThese notebooks use real and synthetic sections. Each card gives the run time on one core. To "
        "download a notebook, use the button at the top of its page; `make tutorials` runs all of them.\n\n"
        f"{_grid(cards, '1 2 3 3')}\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{entries}\n```\n",
    )


def write_cards() -> None:
    """Write the cards of the home page: what a reader has, and where to go; pages that do not exist get none."""
    cards = [
        f":::{{grid-item-card}} {have}\n:link: /{page}\n:link-type: doc\n\n{then}\n:::\n\n"
        for have, page, then in QUESTIONS
        if list(DOCS.glob(f"{page}.*"))
    ]
    _write(GENERATED / "cards.md", _grid(cards, "1 2 3 3"))


def write_all() -> None:
    """Write every generated page."""
    _architecture.draw(GENERATED / "figures" / "architecture.svg")
    _gallery.draw_all({n: getattr(namespace("pl"), n) for n in namespace("pl").__all__ if n != "annotate"})
    shutil.copyfile(DOCS / "_static" / "annotate.png", GENERATED / "figures" / "pl.annotate.png")  # of a notebook
    write_api()
    write_slots()
    write_tutorials()
    write_cards()
