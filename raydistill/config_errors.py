"""Turns pydantic's findings into the lines that a user reads."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from raydistill.errors import did_you_mean

Location = tuple[int | str, ...]


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line a mistake: dotted path, given value, what is allowed, nearest valid name."""
    lines: dict[str, str] = {}
    for finding in error.errors(include_url=False):
        path, owner, inner = _walk(model, finding["loc"])
        dotted = ".".join(filter(None, [prefix, *path]))
        line = _line(dotted, finding, owner, inner)
        if dotted in lines and line != lines[dotted]:  # the members of a union complain one by one
            line = f"{lines[dotted]}, or {line.partition(': ')[2]}"
        lines[dotted] = line
    return list(lines.values())


_WORDS = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "string_pattern_mismatch": "must begin with a letter or digit and hold only letters, digits, '.', '_' and '-'",
    "string_type": "must be text",
    "too_short": "must have at least one entry",
    "tuple_type": "must be a list",
}
"""Plain words for what pydantic calls by the names of types."""


def _line(dotted: str, finding: Any, owner: type[BaseModel], model: type[BaseModel] | None) -> str:
    kind, value = finding["type"], finding["input"]
    if kind == "missing":
        return f"{dotted}: required, but not given"
    if kind == "extra_forbidden":
        name, fields = str(finding["loc"][-1]), list(owner.model_fields)
        if not name:  # a value stands where the hyper-parameters of a method should
            return f"{dotted} = {value!r}: must be a mapping (allowed keys: {', '.join(fields)})"
        hint = did_you_mean(name, fields) or _did_you_mean_inside(name, owner)
        return f"{dotted}: unknown key{hint} (allowed: {', '.join(fields)})"
    if kind == "model_type" and model is not None:
        return f"{dotted} = {value!r}: must be a mapping (allowed keys: {', '.join(model.model_fields)})"
    message = _message(finding)
    if isinstance(value, dict | BaseModel) and kind == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted} = {value!r}: {message}"


def _did_you_mean_inside(name: str, owner: type[BaseModel]) -> str:
    """Return a hint at the one section which has a key of that name, or an empty string where none or several have."""
    found = [
        f"{section}.{name}"
        for section, field in owner.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and name in field.annotation.model_fields
    ]
    return f"; did you mean '{found[0]}'?" if len(found) == 1 else ""


def _message(finding: Any) -> str:
    kind, message = finding["type"], finding["msg"]
    if kind == "literal_error":
        choices = [part.strip("' ") for part in finding["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"must be one of {', '.join(choices)}{did_you_mean(finding['input'], choices)}"
    if kind == "value_error":
        return str(finding["ctx"]["error"])
    if kind in _WORDS:
        return _WORDS[kind]
    message = message.removeprefix("Input should be ")
    return message if message.startswith("must") else f"must be {message[:1].lower()}{message[1:]}"


def _walk(model: type[BaseModel], location: Location) -> tuple[list[str], type[BaseModel], type[BaseModel] | None]:
    """Follow a location through nested models; steps that pydantic adds for members of unions are left out.

    Returns the path, the model that owns its last key, and the model that is expected there, if one is.
    """
    path: list[str] = []
    owner: type[BaseModel] | None = model
    last = model
    for step in location:
        if owner is not None:
            path.append(str(step))
            last = owner
            field = owner.model_fields.get(str(step))
            annotation = field.annotation if field else None
            owner, is_leaf_union = _model_in(annotation), _is_union(annotation)
            if owner is None and is_leaf_union:
                break
        elif not str(step).startswith(("function-", "is-instance", "[key]", "dict[", "literal[")):
            path.append(str(step))
    return path, last, owner


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    return next(_models(annotation), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation) if _is_union(annotation) else ():
        yield from _models(argument)
