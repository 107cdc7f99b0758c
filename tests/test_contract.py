"""The rules of the public API, checked on every function that a namespace exports."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import pytest

# What DESIGN names; an export that is lost shows here, a new one needs no entry.
PUBLIC = {
    "pp": "add_noise align normalize rasterize split_counts",
    "tl": "attention_fidelity biomarkers compare describe distill embed evaluate multitask pretrain region_graph "
    "segment targets tune",
    "pl": "attention biomarkers evaluation history region_graph robustness segment sensitivity targets",
    "get": "biomarkers evaluation regions",
    "io": "from_spatialdata read read_annotations to_spatialdata write_annotations",
    "datasets": "synthetic_tissue",
    "models": "Segmenter TissueNet TissueStudent load",
}
DEFAULTS = {
    "accelerator": "auto",
    "ax": None,
    "copy": False,
    "devices": 1,
    "key_added": None,
    "layer": None,
    "library_key": None,
    "random_state": 0,
    "show_progress": None,
    "spatial_key": "spatial",
    "use_rep": None,
}
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _functions(*namespaces: str) -> list[str]:
    modules = {name: importlib.import_module(f"stxtools.{name}") for name in namespaces}
    return [f"{namespace}.{name}" for namespace, module in modules.items() for name in module.__all__]


@pytest.fixture
def function(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return the public function of that name."""
    namespace, name = request.param.split(".")
    return getattr(importlib.import_module(f"stxtools.{namespace}"), name)


def _sections(function: Callable[..., Any]) -> dict[str, list[str]]:
    """Return the docstring's numpydoc sections by title, and its first lines under ``""``."""
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    sections: dict[str, list[str]] = {"": []}
    title = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line and re.fullmatch(r"-{3,}", following):
            title = line
            sections[title] = []
        elif not re.fullmatch(r"-{3,}", line):
            sections[title].append(line)
    return sections


@pytest.mark.parametrize("namespace", PUBLIC)
def test_namespace_exports_the_designed_names(namespace: str) -> None:
    module = importlib.import_module(f"stxtools.{namespace}")
    assert set(module.__all__) >= set(PUBLIC[namespace].split())
    assert list(module.__all__) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = module.no_such_function


@pytest.mark.parametrize("function", _functions("pp", "tl", "pl", "get"), indirect=True)
def test_signature_follows_the_rules_of_the_api(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    first = next(iter(parameters.values()))
    assert first.name == "adata"
    assert first.annotation in {"AnnData", "AnnData | Sequence[AnnData]"}
    assert sum(p.kind in POSITIONAL for p in parameters.values()) <= 3, "more than three positional parameters"
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    for p in parameters.values():
        assert p.annotation is not Parameter.empty, f"`{p.name}` has no type"
        assert not isinstance(p.default, (list, dict, set)), f"the default of `{p.name}` can be changed by a caller"
        if p.name in DEFAULTS:
            assert p.kind is Parameter.KEYWORD_ONLY, f"`{p.name}` can be given by position"
            computes = not function.__module__.startswith("stxtools.pl.") or function.__name__ == "annotate"
            wanted = DEFAULTS[p.name] if p.name != "spatial_key" or computes else None  # as the results were made
            assert p.default == wanted, f"`{p.name}={p.default!r}`"
            assert type(p.default) is type(wanted)


@pytest.mark.parametrize("function", _functions("pp", "tl"), indirect=True)
def test_pp_and_tl_return_none_or_a_changed_copy(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    assert "copy" in signature.parameters
    assert "key_added" in signature.parameters or function.__module__.startswith("stxtools.pp.")
    many = "| list[AnnData] " if signature.parameters["adata"].annotation != "AnnData" else ""
    assert signature.return_annotation == f"AnnData {many}| None"


@pytest.mark.parametrize("function", _functions("pp", "tl", "pl", "get", "io", "datasets"), indirect=True)
def test_docstring_has_all_sections_and_parameters_and_is_short(function: Callable[..., Any]) -> None:
    sections, text = _sections(function), inspect.getdoc(function) or ""
    assert " ".join(sections[""]).split("  ")[0], "no summary"
    assert sections[""][0].endswith("."), "the summary is one sentence on one line"
    names = list(inspect.signature(function).parameters)
    wanted = {"Returns", "Examples"} | ({"Parameters"} if names else set())
    assert wanted <= set(sections), f"sections missing: {sorted(wanted - set(sections))}"
    heads = [line for line in sections.get("Parameters", []) if line and not line.startswith(" ")]
    assert not [h for h in heads if " : " in h], "types stand in the signature only"
    assert [name.strip().lstrip("*") for head in heads for name in head.split(",")] == names
    assert ">>> " in "\n".join(sections["Examples"]) or "::" in "\n".join(sections["Examples"])
    assert re.findall(r"%\(\w+\)s", text) == [], "a placeholder is not filled"
    assert len(text.splitlines()) <= 75
    assert max(map(len, text.splitlines())) <= 116
