"""Options of the commands: those of the public functions' signatures, on the command line, in a file, or by default."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = {
    "segment": "tissue compartments: st.tl.segment",
    "regions": "connected regions as a graph: st.tl.region_graph",
    "embed": "region embeddings and attention: st.tl.embed",
    "biomarkers": "genes that mark each group: st.tl.biomarkers",
    "report": "all results as one HTML file: st.report",
}
NOTHING = "nothing was written."
_OURS = ("adata", "path", "copy", "show_progress")


class UsageError(Exception):
    """What was asked for cannot be done; nothing was started."""


@dataclass(frozen=True)
class Option:
    """An option: its type as a signature writes it, its default, and what it means."""

    type: str
    default: Any
    help: str


# the options of the command line's own, and those of `run` that it takes from the steps
OWN = {
    "table": Option("str | None", None, "write the table as CSV, too"),
    "quiet": Option("bool", False, "neither progress bar nor a line for each step"),
}
_RUN = {
    "input": Option(
        "Sequence[str]", (), ".h5ad files or .zarr folders; several are joined on their shared genes, and the column "
        "of --library-key (default: library) names the file; default: generated tissue",
    ),
    "library_key": Option("str | bool | None", None, "obs column that names the section"),
    "groupby": Option(
        "str | None", None, "obs column to find biomarkers for (default: the segments; of generated tissue: disease)"
    ),
    "max_memory": Option("float | None", None, "GB for the dense working arrays of a step (default: 2)"),
    "out": Option("str", "demo", "where to write"),
    "overwrite": Option("bool", False, "replace the results in --out once the new ones are complete"),
    "resume": Option("bool", False, "go on with the unfinished run in --out (or start, if there is none)"),
}  # fmt: skip
# the calls of a run, and their options beside those that all have
CALLS = {
    "segment": ("library_key", "n_segments", "labels_key", "model", "save_model", "pretrained", "use_rep", "image_key",
                "accelerator", "devices"),
    "region_graph": ("library_key",),
    "embed": ("use_rep", "accelerator", "devices"),
    "biomarkers": ("library_key", "groupby", "reference", "alternative", "covariates", "protect"),
}  # fmt: skip
ALL_HAVE = ("layer", "spatial_key", "random_state")


def function_of(step: str) -> Callable[..., None]:
    """Return the public function behind a step."""
    from stxtools import report, tl

    return report if step == "report" else getattr(tl, {"regions": "region_graph"}.get(step, step))


def options_of(command: str) -> dict[str, Option]:
    """Return the options of a command: all parameters but the data and what the command line does itself."""
    own = {"quiet": OWN["quiet"]} | ({"table": OWN["table"]} if command == "biomarkers" else {})
    if command == "run":
        steps = [(options_of(step), (*ALL_HAVE, *CALLS[step])) for step in reversed(CALLS)]
        return {name: o for options, taken in steps for name, o in options.items() if name in taken} | _RUN | own
    described = _described(function_of(command))
    parameters = inspect.signature(function_of(command)).parameters
    return own | {
        name: Option(str(p.annotation), p.default, described.get(name, ""))
        for name, p in parameters.items() if name not in _OURS
    }  # fmt: skip


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


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the options of a command, without defaults: what was not given must not hide what the file says."""
    for name, option in options_of(command).items():
        text = option.help.replace("%", "%%")
        if option.default not in (None, (), inspect.Parameter.empty) and not isinstance(option.default, bool):
            text += f" (default: {option.default})"
        how: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        either = parser.add_mutually_exclusive_group()
        either.add_argument(f"--{flag(name)}", **how, **_KINDS[_kind(option.type)][2], **_choices(option.type))
        if name == "library_key":
            how |= {"action": "store_const", "const": False, "help": "all observations are one section"}
            either.add_argument("--one-section", **how)
    parser.add_argument(
        "--config", metavar="FILE", help="TOML or JSON file with these options (n_segments = 7); the command line wins"
        + ("" if command == "run" else f"; those in a table [{command}] are of this step alone"),
    )  # fmt: skip


def flag(name: str) -> str:
    """Return what a parameter is called on the command line."""
    return "seed" if name == "random_state" else name.replace("_", "-")


def integer_or_text(text: str) -> int | str:
    """Read a number of devices, or a list of them."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _or_none(number: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return text if text == "none" else number(text)

    parse.__name__ = number.__name__  # argparse names it in its error
    return parse


# what a file may hold, how that is called, and how argparse reads it
_KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "Mapping": (Mapping, "a table", {"type": json.loads, "metavar": "JSON"}),
    "Sequence": ((str, list), "a text or a list of texts", {"nargs": "+", "action": "extend", "metavar": "NAME"}),
    "int | str": ((int, str), "an integer or a text", {"type": integer_or_text, "metavar": "N"}),
    "bool": (bool, "true or false", {"action": argparse.BooleanOptionalAction}),
    "int": (int, "an integer", {"type": _or_none(int), "metavar": "N"}),
    "float": ((int, float), "a number", {"type": _or_none(float), "metavar": "N"}),
    "str": (str, "a text", {}),
}


def _kind(annotation: str) -> str:
    """Return the first kind of value that a type begins with, or a mapping or list that it names anywhere."""
    found = (k for k in _KINDS if annotation.startswith(k) or (k in annotation and k in ("Mapping", "Sequence")))
    return next(found, "str")


def _choices(annotation: str) -> dict[str, Any]:
    if not annotation.startswith("Literal") or "Sequence" in annotation:
        return {}
    return {"choices": re.findall(r"'([^']+)'", annotation) + (["none"] if annotation.endswith("| None") else [])}


def gathered(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put the command line over the file; what neither gives has its default, in `run` here, in a step there."""
    command, path = arguments["command"], arguments.get("config")
    known = options_of(command)
    values = {} if path is None else _from_file(path, command, known)
    values |= {name: value for name, value in arguments.items() if name in known}
    for name, value in values.items():
        kind, one = known[name].type, value[0] if isinstance(value, list) and len(value) == 1 else value
        if one == "none" and kind.endswith("| None"):
            values[name] = None
        elif kind.startswith("str") or f"Literal[{one!r}]" in kind:  # of a name where lists alone are taken, a list
            values[name] = one
    absent = [name for name, o in known.items() if o.default is inspect.Parameter.empty and name not in values]
    if absent:
        raise UsageError(f"{command} needs {', '.join(f'--{flag(name)}' for name in absent)}.")
    return {name: option.default for name, option in known.items()} | values if command == "run" else values


def _from_file(path: str, command: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the options in a file: those at its top that the command has, and those in a step's own table."""
    found = _loaded(path)
    own, anywhere, of = {}, sorted(known), ""
    if command != "run":
        own, of = found.get(command, {}), f" of {command}"
        if not isinstance(own, Mapping):
            raise UsageError(f"{path!r}: {command!r} is a table of options, not {own!r}.")
        found = {key: value for key, value in found.items() if key not in STEPS}
        anywhere = sorted({name for step in STEPS for name in options_of(step)})
    values: dict[str, Any] = {}
    for table, names in ((found, anywhere), (own, sorted(known))):
        here = [(_name(path, key, names, of), value) for key, value in table.items()]
        twice = {name for i, (name, _) in enumerate(here) if name in dict(here[:i])}
        if twice:
            raise UsageError(f"{path!r} sets {min(twice)!r} twice, with - and with _.")
        values |= {name: _checked(path, name, value, known[name].type) for name, value in here if name in known}
    return values


def _loaded(path: str) -> dict[str, Any]:
    kind = "JSON" if Path(path).suffix == ".json" else "TOML"
    try:
        with Path(path).expanduser().open("rb") as file:
            found = json.load(file) if kind == "JSON" else tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"There is no configuration file {path!r}.") from None
    except OSError as err:
        raise UsageError(f"The configuration file {path!r} cannot be read: {err.strerror}.") from err
    except ValueError as err:  # of either parser, and of text that is no UTF-8
        raise UsageError(f"{path!r} is no valid {kind}: {err}") from err
    if not isinstance(found, dict):
        raise UsageError(f"{path!r} must hold an object of options, not {type(found).__name__}.")
    return found


def _name(path: str, key: str, known: Collection[str], of: str) -> str:
    """Return what an option in a file is called in Python, or say which one was meant."""
    name = "random_state" if key == "seed" else key.replace("-", "_")
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}."
        raise UsageError(f"{path!r} sets {key!r}, which is no option{of}; {hint}")
    return name


def _checked(path: str, name: str, value: Any, annotation: str) -> Any:
    """Check a value in a file: the functions check it too, but `run` would call the last of them late."""
    kinds, wanted, _ = _KINDS[_kind(annotation)]
    choices = _choices(annotation).get("choices")
    if value is None or (value == "none" and annotation.endswith("| None")):
        return None
    listed = value if isinstance(value, list) else []
    if not isinstance(value, kinds) or (isinstance(value, bool) and "bool" not in annotation) or (
        kinds == (str, list) and not all(isinstance(v, str) for v in listed)
    ):  # fmt: skip
        raise UsageError(f"{path!r}: {name!r} is {wanted}, not {value!r}.")
    if choices and value not in choices:
        raise UsageError(f"{path!r}: {name!r} is one of {', '.join(choices)}, not {value!r}.")
    return [value] if kinds == (str, list) and isinstance(value, str) else value


def text_of(err: BaseException) -> str:
    """Return the text of an error; that of a KeyError has no quotes around it."""
    if isinstance(err, OSError) and err.strerror:
        return err.strerror if err.filename is None else f"{err.strerror}: {err.filename}"
    return str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err) or type(err).__name__


def as_flags(message: str, names: Collection[str]) -> str:
    """Say ``--labels-key=`` where a function says ```labels_key=```."""

    def said(match: re.Match[str]) -> str:
        return f"`--{flag(match[1])}{match[2]}" if match[1] in names else match[0]

    message = message.replace("`library_key=False`", "`--one-section`").replace("settings.max_", "--max-")
    return re.sub(r"`(\w+)(=)", said, message).replace("=`", "`").replace("`covariates`", "`--covariates`")


def tell(text: str) -> None:
    """Write a line with the time of day."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
