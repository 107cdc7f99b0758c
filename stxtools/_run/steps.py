"""One step on files, ``stxtools segment in.h5ad out.h5ad``: options are those of the public function's signature."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stxtools import _keys, get, tl
from stxtools._checks import check_writable
from stxtools._report.report import report

from .files import whole, write_h5ad
from .inputs import checked_path, read_sections
from .options import UsageError, as_flags, integer_or_text, load_config, option_name, tell

if TYPE_CHECKING:
    from anndata import AnnData

STEPS = {
    "segment": "tissue compartments: st.tl.segment",
    "regions": "connected regions as a graph: st.tl.region_graph",
    "embed": "region embeddings and attention: st.tl.embed",
    "biomarkers": "genes that mark each group: st.tl.biomarkers",
    "report": "all results as one HTML file: st.report",
}
_OURS = ("adata", "path", "copy", "show_progress")
_FLAGS = {"random_state": "seed"}


def function_of(step: str) -> Callable[..., None]:
    """Return the public function behind a step."""
    return report if step == "report" else getattr(tl, {"regions": "region_graph"}.get(step, step))


def parameters_of(step: str) -> dict[str, inspect.Parameter]:
    """Return the parameters that are options: all but the data and what the command line does itself."""
    return {k: p for k, p in inspect.signature(function_of(step)).parameters.items() if k not in _OURS}


def add_step(parser: argparse.ArgumentParser, step: str) -> None:
    """Add the arguments of a step, without defaults: what was not given must not hide what the file says."""
    ending = "html" if step == "report" else "h5ad"
    parser.add_argument("input", metavar="IN", help="the section: what `run --input` reads")
    parser.add_argument("output", metavar="OUT", help=f"the .{ending} file to write; one that is there is replaced")
    described = _described(function_of(step))
    for name, parameter in parameters_of(step).items():
        text = described.get(name, "").replace("%", "%%")
        if parameter.default not in (None, (), inspect.Parameter.empty) and not isinstance(parameter.default, bool):
            text += f" (default: {parameter.default})"
        how: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        parser.add_argument(f"--{_flag(name)}", **how, **_kind(str(parameter.annotation)))
        if name == "library_key":
            how |= {"action": "store_const", "const": False, "help": "all observations are one section"}
            parser.add_argument("--one-section", **how)
    if step == "biomarkers":
        parser.add_argument("--table", metavar="CSV", help="write the table as CSV, too")
    parser.add_argument("--config", metavar="FILE", help="TOML or JSON file with these options, at its top or in a "
                        f"table [{step}]; the command line wins")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="neither progress bar nor log lines")


def _flag(name: str) -> str:
    return _FLAGS.get(name, name).replace("_", "-")


def _kind(annotation: str) -> dict[str, Any]:
    """Say how argparse reads a parameter of this type."""
    if annotation == "bool":
        return {"action": argparse.BooleanOptionalAction}
    if "Mapping" in annotation:
        return {"type": json.loads, "metavar": "JSON"}
    if "Sequence" in annotation:
        return {"nargs": "+", "metavar": "NAME"}
    if annotation.startswith("int | str"):
        return {"type": integer_or_text, "metavar": "N"}
    number = {"int": int, "float": float}.get(annotation.split(" ")[0])
    return {"metavar": "VALUE"} if number is None else {"type": _or_none(number), "metavar": "N"}


def _or_none(number: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return text if text == "none" else number(text)

    parse.__name__ = number.__name__  # argparse names it in its error
    return parse


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """Return the description of each parameter, from the docstring."""
    section = (inspect.getdoc(function) or "").partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    out: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line.startswith(" "):
            plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", line.strip()).replace("``", "")
            out |= {name: f"{out.get(name, '')} {plain}".strip() for name in names}
        else:
            names = line.split(", ")
    return out


class Step:
    """A step that the command line asked for."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.step = str(arguments["command"])
        self.options = self._gathered(arguments)
        self.arguments = arguments
        self.output = Path(arguments["output"]).expanduser()

    def __call__(self) -> bool:
        """Read, run, write; after a UsageError nothing was written."""
        to, ending = self.output, ".html" if self.step == "report" else ".h5ad"
        try:
            if to.suffix != ending:
                raise ValueError(f"OUT, {str(to)!r}, must end in {ending}.")
            check_writable(to)
            checked_path(self.arguments["input"])
            start = time.perf_counter()
            adata = read_sections([self.arguments["input"]], None, None)[0]
            self._tell(f"read {time.perf_counter() - start:.1f} s: {adata.n_obs:,} x {adata.n_vars:,}")
            start = time.perf_counter()
            self._run(adata)
        except (KeyError, ValueError, TypeError, FileNotFoundError, IsADirectoryError) as err:
            text = str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)
            raise UsageError(as_flags(text, parameters_of(self.step))) from err
        self._tell(f"{self.step} {time.perf_counter() - start:.1f} s")
        if self.step != "report":
            write_h5ad(adata, to)
        if self.arguments.get("table") is not None:
            key = self.options.get("key_added") or _keys.BIOMARKERS
            with whole(Path(self.arguments["table"]).expanduser()) as part:
                get.biomarkers(adata, key=key).to_csv(part, index=False, float_format="%.6g")
        self._tell(f"wrote {to}")
        return True

    def _run(self, adata: AnnData) -> None:
        if self.step == "report":
            report(adata, self.output, **self.options)
        else:
            function_of(self.step)(adata, **self.options, show_progress=False if self.arguments["quiet"] else None)

    def _gathered(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Put the command line over the file; what neither gives has the function's default."""
        parameters, path = parameters_of(self.step), arguments.get("config")
        values = {} if path is None else self._from_file(path)
        values |= {name: value for name, value in arguments.items() if name in parameters}
        for name, value in values.items():
            annotation = str(parameters[name].annotation)
            if value == "none" and annotation.endswith("| None"):
                values[name] = None
            elif isinstance(value, list) and len(value) == 1 and not annotation.startswith("Sequence"):
                values[name] = value[0]
        absent = [n for n, p in parameters.items() if p.default is p.empty and n not in values]
        if absent:
            raise UsageError(f"{self.step} needs {', '.join(f'--{_flag(n)}' for n in absent)}.")
        return values

    def _from_file(self, path: str) -> dict[str, Any]:
        """Return the options in a file: those at its top that the step has, and those in the step's own table."""
        found = load_config(path)
        own = found.get(self.step, {})
        if not isinstance(own, Mapping):
            raise UsageError(f"{path!r}: {self.step!r} is a table of options, not {own!r}.")
        top = {key: value for key, value in found.items() if key not in STEPS}
        anywhere = {name for step in STEPS for name in parameters_of(step)}
        values = {}
        for table, known in ((top, anywhere), (own, set(parameters_of(self.step)))):
            for key, value in table.items():
                name = option_name(path, key, sorted(known), f" of {self.step}")
                if name in parameters_of(self.step):
                    values[name] = value
        return values

    def _tell(self, text: str) -> None:
        if not self.arguments["quiet"]:
            tell(text)

    def saved(self) -> str:
        """Say what is left of a step that stopped."""
        return "nothing was written."

    def summary(self) -> str:
        """Return nothing: what a step did stands in its log."""
        return ""
