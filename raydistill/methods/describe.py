"""What there is to know about a method, read off its class: for ``raydistill list methods NAME`` and the docs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from raydistill.methods.base import Method, Needs
from raydistill.methods.registry import method_class

_CACHED = frozenset({"logits", "embedding"})
_WIDTH = 110
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Description:
    """A method in words.

    ``parameters`` maps each hyper-parameter to (what is allowed, default), ``ranges`` those of the ready-made search
    space to their entry there, ``ranges_from`` says where these come from.
    """

    name: str
    paper: str
    equation: str
    text: str
    student: str
    teacher: str
    cache: str
    mixing: str
    parameters: Mapping[str, tuple[str, str]]
    ranges: Mapping[str, str]
    ranges_from: str


def describe(name: str) -> Description:
    """Describe a method with its default hyper-parameters. Raises ``ConfigError`` for an unknown name."""
    kind = method_class(name)
    needs = kind().needs()
    columns = ", ".join(sorted(needs.columns))
    return Description(
        name=name,
        paper=kind.paper,
        equation=kind.equation,
        text=inspect.cleandoc(kind.__doc__ or "").replace("``", "`"),
        student="; ".join(part for part in (_outputs(needs.student), _images(needs), columns) if part),
        teacher=_outputs(needs.teacher) or "none",
        cache=_cache(needs),
        mixing=_mixing(kind()),
        parameters=_parameters(kind),
        ranges={field: _range(entry) for field, entry in kind.search_space.items()},
        ranges_from=kind.search_source,
    )


def lines(about: Description) -> Iterator[str]:
    """The description as plain text."""
    yield f"{about.name}: {about.paper}"
    yield f"    {about.equation}"
    yield ""
    yield about.text
    yield ""
    yield f"student: {about.student}"
    yield f"teacher: {about.teacher}"
    yield f"cache:   {about.cache}"
    yield f"mixup and CutMix: {about.mixing}"
    yield ""
    width = max(map(len, about.parameters))
    for field, (allowed, default) in about.parameters.items():
        yield f"{field:<{width}}  default {default:<10}  {allowed}"
    yield ""
    yield "ready-made search space:"
    yield from wrap(about.ranges_from, _WIDTH)
    for field, entry in about.ranges.items():
        yield f"{field:<{width}}  {entry}"


def _outputs(sides: Mapping[int, frozenset[str]]) -> str:
    by_names: dict[str, list[int]] = {}
    for view, names in sorted(sides.items()):
        by_names.setdefault(", ".join(sorted(names)), []).append(view)
    several = len({*sides}) > 1
    return "; ".join(
        names + (f" of view{'s' if len(views) > 1 else ''} {_span(views)}" if several or views != [0] else "")
        for names, views in by_names.items()
    )


def _span(views: list[int]) -> str:
    if len(views) > 2 and views == list(range(views[0], views[-1] + 1)):
        return f"{views[0]} to {views[-1]}"
    return ", ".join(map(str, views))


def _images(needs: Needs) -> str:
    return f"pixels of view{'s' if len(needs.images) > 1 else ''} {_span(sorted(needs.images))}" if needs.images else ""


def _cache(needs: Needs) -> str:
    if not needs.teacher:
        return "no teacher"
    if any(needs.draws[view].turns for view in needs.teacher if view in needs.draws):
        return "no: views that are drawn in a way of the method's own"
    wanted = {name for names in needs.teacher.values() for name in names}
    return "yes" if wanted <= _CACHED else "large: whole feature maps; run the teacher live"


def _mixing(method: Method) -> str:
    refusal = method.refuses_mixing()
    if refusal is not None:
        return f"no: {refusal}"
    return "yes, but its own crops are not mixed" if method.needs().views_are_drawn else "yes"


def _parameters(kind: type[Method]) -> dict[str, tuple[str, str]]:
    schemas = kind.model_json_schema()["properties"]
    defaults = {field: info.default for field, info in kind.model_fields.items()}
    return {
        field: (_allowed(schemas[field]), "none" if default is None else str(default))
        for field, default in defaults.items()
    }


def _range(entry: Mapping[str, Sequence[Any]]) -> str:
    """An entry of a search space as YAML has it."""
    return ", ".join(f"{kind}: [{', '.join(map(str, values))}]" for kind, values in entry.items())


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_allowed(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = {"number": "number", "integer": "whole number", "boolean": "true, false", "null": "none", "array": "list"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([kind.get(str(schema.get("type")), str(schema.get("type", "text"))), *bounds])
