"""Options of the commands, from the signatures of the public functions, and their values."""

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
from pathlib import Path
from typing import Any, NamedTuple

STEPS = {
    "segment": "tissue compartments: st.tl.segment",
    "regions": "connected regions as a graph: st.tl.region_graph",
    "embed": "region embeddings and attention: st.tl.embed",
    "biomarkers": "genes that mark each group: st.tl.biomarkers",
    "describe": "gene sets, ligand-receptor pairs and names of each group: st.tl.describe",
    "targets": "drugs, tractability and safety of these genes: st.tl.targets",
    "compare": "conditions, with the patient as unit: st.tl.compare",
    "report": "all results as one HTML file: st.report",
}
_NO_OPTIONS = ("adata", "path", "copy", "show_progress")  # parameters that the command line sets


class UsageError(Exception):
    """Arguments, files and data do not fit; nothing was started."""


class Option(NamedTuple):
    """An option: its annotation in the signature, its default, and its description."""

    type: str
    default: Any
    help: str


# by command: options that are no parameters of its functions, and other descriptions (texts) of those that are
_FILE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("options.json").read_text("utf-8"))
_EXTRA = {
    command: {name: Option(*option) for name, option in options.items() if isinstance(option, list)}
    for command, options in _FILE.items()
}
# the calls of a run, and their options beside the common ones
CALLS = {
    "segment": ("library_key", "n_segments", "labels_key", "model", "save_model", "pretrained", "use_rep", "image_key",
                "accelerator", "devices"),
    "region_graph": ("library_key",),
    "embed": ("use_rep", "accelerator", "devices"),
    "biomarkers": ("library_key", "subject_key", "groupby", "reference", "alternative", "covariates", "protect"),
}  # fmt: skip
COMMON = ("layer", "spatial_key", "random_state")


def function_of(step: str) -> Callable[..., None]:
    from stxtools import report, tl

    return report if step == "report" else getattr(tl, {"regions": "region_graph"}.get(step, step))


def options_of(command: str) -> dict[str, Option]:
    """Return the options of a command: the parameters of its functions, and those of the command line."""
    extra = _EXTRA["all"] | _EXTRA.get(command, {})
    if command == "run":
        # of an option that several calls have, the first call describes it: it comes last here
        steps = [(options_of(step), (*COMMON, *CALLS[step])) for step in reversed(CALLS)]
        return {name: o for options, names in steps for name, o in options.items() if name in names} | extra
    descriptions = _descriptions(function_of(command)) | _FILE.get(command, {})
    parameters = inspect.signature(function_of(command)).parameters.items()
    taken = {name: p for name, p in parameters if name not in _NO_OPTIONS}
    return extra | {n: Option(str(p.annotation), p.default, descriptions.get(n, "")) for n, p in taken.items()}


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return the description of each parameter, from the docstring."""
    from stxtools._docs import described_parameters

    section = (inspect.getdoc(function) or "").partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", section).replace("``", "")
    return {name: " ".join(map(str.strip, lines)) for name, (_, *lines) in described_parameters(plain).items()}


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the options of a command, without defaults: those would hide the values in the file."""
    for name, option in options_of(command).items():
        text = option.help.replace("%", "%%")
        if option.default not in (None, [], (), inspect.Parameter.empty) and not isinstance(option.default, bool):
            text += f" (default: {option.default})"
        common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        group = parser.add_mutually_exclusive_group()
        group.add_argument(f"--{flag(name)}", **common, **_type_of(option.type)[2], **_choices(option.type))
        if name == "library_key":
            common |= {"action": "store_const", "const": False, "help": "all observations are one section"}
            group.add_argument("--one-section", **common)
    parser.add_argument(
        "--config", metavar="FILE", help="TOML or JSON file with these options (n_segments = 7); the command line wins"
        + ("" if command == "run" else f"; those in a table [{command}] are of this step alone"),
    )  # fmt: skip


def flag(name: str) -> str:
    """Return the name of a parameter on the command line."""
    return "seed" if name == "random_state" else name.replace("_", "-")


def _int_or_str(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _json(text: str) -> Any:
    return json.loads(text)


def _file_or_json(text: str) -> Any:
    return json.loads(text) if text.lstrip().startswith("{") else text


_json.__name__ = _file_or_json.__name__ = "JSON"  # argparse names it in its error


def _or_none(number: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return text if text == "none" else number(text)

    parse.__name__ = number.__name__  # argparse names it in its error
    return parse


# by the name of a type: its classes in a file, its description, and how argparse reads it
_TYPES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "Table | Mapping": ((str, dict), "a file or a table of files", {"type": _file_or_json, "metavar": "FILE"}),
    "Mapping": (dict, "a table", {"type": _json, "metavar": "JSON"}),
    "Sequence": ((str, list), "a text or a list of texts", {"nargs": "+", "action": "extend", "metavar": "NAME"}),
    "int | str": ((int, str), "an integer or a text", {"type": _int_or_str, "metavar": "N"}),
    "bool": (bool, "true or false", {"action": argparse.BooleanOptionalAction}),
    "int": (int, "an integer", {"type": _or_none(int), "metavar": "N"}),
    "float": ((int, float), "a number", {"type": _or_none(float), "metavar": "N"}),
    "str": (str, "a text", {}),
}


def _type_of(annotation: str) -> tuple[Any, str, dict[str, Any]]:
    """Return the first type that an annotation begins with, or a mapping or sequence that it has anywhere."""
    names = (n for n in _TYPES if annotation.startswith(n) or (n in annotation and n in ("Mapping", "Sequence")))
    return _TYPES[next(names, "str")]


def _choices(annotation: str) -> dict[str, Any]:
    if not annotation.startswith("Literal") or "Sequence" in annotation:
        return {}
    return {"choices": re.findall(r"'([^']+)'", annotation) + ["none"] * annotation.endswith("| None")}


def parse_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options on the command line and in the file; of ``run`` also the defaults of the others."""
    command, path = arguments["command"], arguments.get("config")
    options = options_of(command)
    values = {} if path is None else _read_config(path, command, options)
    values |= {name: value for name, value in arguments.items() if name in options}
    for name, value in values.items():
        annotation = options[name].type
        # argparse reads a list wherever several are allowed; one name, "none" or "all" may stand for itself
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        if single == "none" and annotation.endswith("| None"):
            values[name] = None
        elif annotation.startswith("str") or f"Literal[{single!r}]" in annotation:
            values[name] = single
    missing = [name for name, o in options.items() if o.default is inspect.Parameter.empty and name not in values]
    if missing:
        raise UsageError(f"{command} needs {', '.join(f'--{flag(name)}' for name in missing)}.")
    return {name: option.default for name, option in options.items()} | values if command == "run" else values


def _read_config(path: str, command: str, options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the options of a command in a file: those at its top, and those in the table of a step."""
    content, table = _load(path), {}
    allowed, of_command = sorted(options), ""
    if command != "run":
        table, of_command = content.get(command, {}), f" of {command}"
        if not isinstance(table, dict):
            raise UsageError(f"{path!r}: {command!r} is a table of options, not {table!r}.")
        content = {key: value for key, value in content.items() if key not in STEPS}
        allowed = sorted({name for step in STEPS for name in options_of(step)})
    values = _by_parameter(path, content, allowed, of_command) | _by_parameter(path, table, sorted(options), of_command)
    return {name: _check_value(path, name, v, options[name].type) for name, v in values.items() if name in options}


def _load(path: str) -> dict[str, Any]:
    file_format = "JSON" if Path(path).suffix == ".json" else "TOML"
    try:
        with Path(path).expanduser().open("rb") as file:
            content = json.load(file) if file_format == "JSON" else tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"There is no configuration file {path!r}.") from None
    except OSError as err:
        raise UsageError(f"The configuration file {path!r} cannot be read: {err.strerror}.") from err
    except ValueError as err:  # of either parser, and of text that is not UTF-8
        raise UsageError(f"{path!r} is not valid {file_format}: {err}") from err
    if not isinstance(content, dict):
        raise UsageError(f"{path!r} must hold an object of options, not {type(content).__name__}.")
    return content


def _by_parameter(path: str, table: dict[str, Any], allowed: list[str], of_command: str) -> dict[str, Any]:
    """Return the values in a table of a file by the names of parameters."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = "random_state" if key == "seed" else key.replace("-", "_")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(allowed)}."
            raise UsageError(f"{path!r} sets {key!r}, which is not an option{of_command}; {hint}")
        if name in values:
            raise UsageError(f"{path!r} sets {name!r} twice, with - and with _.")
        values[name] = value
    return values


def _check_value(path: str, name: str, value: Any, annotation: str) -> Any:
    """Check a value in a file: the functions check it too, but `run` would call the last of them late."""
    classes, description, _ = _type_of(annotation)
    choices = _choices(annotation).get("choices")
    if value is None or (value == "none" and annotation.endswith("| None")):
        return None
    is_list = isinstance(value, list)
    is_bool_for_int = isinstance(value, bool) and "bool" not in annotation
    if not isinstance(value, classes) or is_bool_for_int or (is_list and not all(isinstance(v, str) for v in value)):
        raise UsageError(f"{path!r}: {name!r} is {description}, not {value!r}.")
    if choices and value not in choices:
        raise UsageError(f"{path!r}: {name!r} is one of {', '.join(choices)}, not {value!r}.")
    return [value] if classes == (str, list) and not is_list else value


def error_text(err: BaseException) -> str:
    """Return the text of an error; that of a KeyError without quotes."""
    if isinstance(err, OSError) and err.strerror:
        return err.strerror if err.filename is None else f"{err.strerror}: {err.filename}"
    return str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err) or type(err).__name__


def as_flags(message: str, names: Collection[str]) -> str:
    """Replace parameters in a message, such as ```labels_key=```, by flags, ``--labels-key``, and calls by commands."""

    def to_flag(match: re.Match[str]) -> str:
        return f"`--{flag(match[1])}{match[2]}" if match[1] in names else match[0]

    message = re.sub(r"`st\.tl\.(\w+)\([^`]*\)`", lambda m: f"`stxtools {m[1]}`", message)
    message = message.replace("`stxtools region_graph`", "`stxtools regions`")
    message = message.replace("`library_key=False`", "`--one-section`").replace("settings.max_", "--max-")
    return re.sub(r"`(\w+)(=|`)", to_flag, message).replace("=`", "`")


def log(text: str, quiet: bool) -> None:
    """Write a line with the time of day, unless ``quiet``."""
    if not quiet:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stderr.flush()
