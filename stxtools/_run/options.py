"""Options of ``python -m stxtools run``: on the command line, in a TOML or JSON file, or by default."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


class UsageError(Exception):
    """What was asked for cannot be done; nothing was started."""


def _option(default: Any, group: str, help: str, **how: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": help, **how})


@dataclass(frozen=True)
class Options:
    """The options with their defaults; a field ``labels_key`` is ``--labels-key`` and ``labels_key = ...`` in TOML."""

    input: tuple[str, ...] = _option(
        (), "input", ".h5ad files or .zarr folders; several are joined on their shared genes, and the column of "
        "--library-key (default: library) names the file; default: generated tissue", metavar="FILE", many=True,
    )  # fmt: skip
    library_key: str | None = _option(None, "input", "obs column that names the section", metavar="COLUMN")
    one_section: bool = _option(False, "input", "all observations are one section, even where positions coincide")
    layer: str | None = _option(None, "input", "layer with expression (default: counts, else X)", metavar="LAYER")
    spatial_key: str = _option("spatial", "input", "obsm key of the coordinates", metavar="KEY")
    use_rep: str | None = _option(None, "input", "obsm key to segment and embed (default: X_pca, else a PCA)",
                                  metavar="KEY")  # fmt: skip
    image_key: str | None = _option(None, "input", "image whose colours are read too, e.g. lowres", metavar="IMAGE")

    n_segments: int | None = _option(None, "segments", "number of segments (default: chosen)", metavar="K")
    labels_key: str | None = _option(None, "segments", "obs column with some labelled observations", metavar="COLUMN")
    model: str | None = _option(None, "segments", "saved model to apply instead of training one", metavar="FILE")
    pretrained: str | None = _option(None, "segments", "saved model to start the training from", metavar="FILE")
    save_model: str | None = _option(None, "segments", "where to save the trained model", metavar="FILE")

    groupby: str | None = _option(
        None, "biomarkers", "obs column to find biomarkers for (default: the segments; of generated tissue: disease)",
        metavar="COLUMN",
    )  # fmt: skip
    reference: str = _option("rest", "biomarkers", "group that the others are compared with, or rest", metavar="GROUP")
    covariates: tuple[str, ...] = _option(
        (), "biomarkers", "composition, or obs columns and obsm keys, to adjust for", metavar="NAME", many=True
    )
    protect: str = _option("thinning", "biomarkers", "how groups found in the same counts are tested",
                           choices=("thinning", "none"))  # fmt: skip

    seed: int = _option(0, "computation", "seed of every random choice", metavar="N")
    accelerator: str = _option("auto", "computation", "auto, cpu, gpu ...", metavar="NAME")
    devices: int | str = _option(1, "computation", "number of devices, a list (0,1), or auto", metavar="N")
    max_memory: float | None = _option(None, "computation", "GB for the dense working arrays of a step (default: 2)",
                                       metavar="GB")  # fmt: skip

    out: str = _option("demo", "output", "where to write", metavar="FOLDER")
    overwrite: bool = _option(False, "output", "replace the results in --out once the new ones are complete")
    resume: bool = _option(False, "output", "go on with the unfinished run in --out (or start, if there is none)")
    quiet: bool = _option(False, "output", "neither progress bar nor a line for each step")


def integer_or_text(text: str) -> int | str:
    """Read a number of devices, or a list of them."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


# what a TOML file may hold, how that is called, and how argparse reads it
_KINDS: dict[str, tuple[Any, str, Callable[[str], Any]]] = {
    "str": ((str,), "a text", str),
    "int": ((int,), "an integer", int),
    "float": ((int, float), "a number", float),
    "bool": ((bool,), "true or false", bool),
    "int | str": ((int, str), "an integer or a text", integer_or_text),
}
_TYPES = {f.name: f.type for f in fields(Options)}
_FREE = {"out", "overwrite", "resume", "quiet", "max_memory"}  # they do not change the result


def add_arguments(run: argparse.ArgumentParser) -> None:
    """Add all options, without defaults: what was not given must not hide what the TOML file says."""
    groups: dict[str, Any] = {}
    for f in fields(Options):
        name = f.metadata["group"]
        group = groups.setdefault(name, run.add_argument_group(name))
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f.metadata["help"]}
        if isinstance(f.default, bool):
            group.add_argument(f"--{f.name.replace('_', '-')}", action="store_true", **how)
            continue
        if f.default not in (None, ()) and "default" not in how["help"]:
            how["help"] += f" (default: {f.default})"
        how |= {k: f.metadata[k] for k in ("metavar", "choices") if k in f.metadata}
        if f.metadata.get("many"):
            how |= {"nargs": "+", "action": "extend"}
        else:
            how["type"] = _KINDS[str(f.type).removesuffix(" | None")][2]
        group.add_argument(f"--{f.name.replace('_', '-')}", **how)
    run.add_argument(
        "--config", metavar="FILE", help="TOML or JSON file with these options (n_segments = 7); the command line wins"
    )


def gathered(arguments: Mapping[str, Any]) -> Options:
    """Put the command line over the file over the defaults.

    Raises
    ------
    UsageError
        If the file cannot be read or names something that is no option.
    """
    path = arguments.get("config")
    values = {} if path is None else read_config(path)
    values |= {name: value for name, value in arguments.items() if name in _TYPES}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    options = Options(**values)
    if options.overwrite and options.resume:
        raise UsageError("--overwrite starts anew and --resume goes on; give one of them.")
    if options.one_section and (options.library_key is not None or len(options.input) > 1):
        raise UsageError("--one-section excludes --library-key and several inputs.")
    return options


def load_config(path: str) -> dict[str, Any]:
    """Read a TOML file, or a JSON file that holds an object."""
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


def read_config(path: str) -> dict[str, Any]:
    """Read a file of options, each checked to be one and of the right type."""
    out = {}
    for key, value in load_config(path).items():
        name = option_name(path, key, _TYPES)
        if name in out:
            raise UsageError(f"{path!r} sets {name!r} twice, with - and with _.")
        out[name] = _checked(path, name, value)
    return out


def option_name(path: str, key: str, known: Collection[str], of: str = "") -> str:
    """Return what an option in a file is called in Python, or say which one was meant."""
    name = key.replace("-", "_")
    name = "random_state" if name == "seed" and "seed" not in known else name
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}."
        raise UsageError(f"{path!r} sets {key!r}, which is no option{of}; {hint}")
    return name


def _checked(path: str, name: str, value: Any) -> Any:
    spec = next(f for f in fields(Options) if f.name == name)
    kind = str(spec.type).removesuffix(" | None")
    if spec.metadata.get("many"):
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(v, str) for v in listed):
            raise UsageError(f"{path!r}: {name!r} is a text or a list of texts, not {value!r}.")
        return listed
    kinds, wanted, _ = _KINDS[kind]
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind == "bool"):
        raise UsageError(f"{path!r}: {name!r} is {wanted}, not {value!r}.")
    if "choices" in spec.metadata and value not in spec.metadata["choices"]:
        raise UsageError(f"{path!r}: {name!r} is one of {', '.join(spec.metadata['choices'])}, not {value!r}.")
    return float(value) if kind == "float" else value


def that_matter(options: Options) -> dict[str, Any]:
    """Return the options that decide the result, as JSON can hold them."""
    values = {f.name: getattr(options, f.name) for f in fields(Options) if f.name not in _FREE}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def as_flags(message: str, names: Collection[str] = _TYPES) -> str:
    """Say ``--labels-key=`` where a function says ```labels_key=```."""

    def flag(match: re.Match[str]) -> str:
        name = "seed" if match[1] == "random_state" else match[1]
        return f"`--{name.replace('_', '-')}{match[2]}" if match[1] in names or name in names else match[0]

    message = message.replace("`library_key=False`", "`--one-section`")
    return re.sub(r"`(\w+)(=)", flag, message).replace("=`", "`").replace("`covariates`", "`--covariates`")


def tell(text: str) -> None:
    """Write a line with the time of day."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
