"""Makes the pages of docs/reference from the command line and the schema themselves.

python docs/generate.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from raydistill.cli import app
from raydistill.config import Experiment

REFERENCE = Path(__file__).parent / "reference"
MADE = "Made by `python docs/generate.py`; a test keeps it up to date."
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_WORDS = {"number": "number", "integer": "whole number", "boolean": "true, false", "null": "null", "string": "text"}


def commands_page() -> str:
    """Every command with its arguments and options, as the command line declares them."""
    told = [_command(name, command) for name, command in _commands("raydistill", typer.main.get_command(app))]
    introduction = (
        "`raydistill COMMAND --help` tells the same. `--json` ends stdout with one JSON object. Exit code 0 is success,"
        " 130 an interrupt, 2 a mistake in what was asked for, 1 anything else that went wrong."
    )
    return "\n\n".join(["# Commands", MADE, introduction, *told]) + "\n"


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for part, inner in sorted(command.commands.items()):
            yield from _commands(f"{name} {part}", inner)
    else:
        yield name, command


def _command(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    usage = " ".join([name, *(_metavar(each) for each in arguments)])
    rows = [f"| `{_cell(_metavar(each))}` | {_cell(each.help)} | {_default(each)} |" for each in arguments]
    rows += [f"| `{_cell(_option(each))}` | {_cell(each.help)} | {_default(each)} |" for each in options]
    table = ["| argument or option | is | default |", "|---|---|---|", *rows] if rows else []
    return "\n\n".join([f"## {name}", f"`{usage}`", inspect.cleandoc(command.help or ""), "\n".join(table)]).strip()


def _metavar(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _option(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    known = parameter.default
    if known is None or known is False or callable(known) or str(known).startswith("Sentinel"):
        return ""
    return f"`{known}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def experiment_page() -> str:
    """Every key of an experiment, section by section, as the schema has it."""
    introduction = (
        "An experiment is one YAML file; `key.path=value` on the command line sets any of these keys instead of the "
        "file's. Unknown keys are mistakes. A default of `-` means that the key must be given. Hyper-parameters of "
        "methods: [Methods](../methods.md); pages on [data](../data.md), [cache](../cache.md), [training](../train.md) "
        "and [sweeps](../sweeps.md) say what the keys are for."
    )
    sections = [_section(path, kind) for path, kind in _sections("", Experiment, set())]
    return "\n\n".join(["# The keys of an experiment", MADE, introduction, *sections]) + "\n"


def _sections(path: str, kind: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield each section once, where it first stands."""
    seen.add(kind)
    yield path, kind
    for name, field in kind.model_fields.items():
        for inner in _models(field.annotation):
            if inner not in seen and name != "methods":
                yield from _sections(f"{path}.{name}".lstrip("."), inner, seen)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _section(path: str, kind: type[BaseModel]) -> str:
    schema = kind.model_json_schema()
    rows = []
    for name, field in kind.model_fields.items():
        inner = next(_models(field.annotation), None)
        allowed = _allowed(schema["properties"][name], schema.get("$defs", {}))
        about = _cell(field.description or (f"see `{kind.__name__}`" if inner is kind else ""))
        rows.append(f"| `{name}` | {_cell(allowed)} | {_shown(field)} | {about} |")
    table = "\n".join(["| key | allowed | default | is |", "|---|---|---|---|", *rows])
    title = f"## `{path}`" if path else "## The top level"
    return "\n\n".join([title, inspect.cleandoc(kind.__doc__ or ""), table])


def _shown(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "-"
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _allowed(known[schema["$ref"].rpartition("/")[2]], known)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_allowed(choice, known) for choice in schema[several]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return _list(schema, known)
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"names → {_allowed(inner, known)}" if isinstance(inner, Mapping) else "section"
    bounds = " and ".join(f"{sign} {schema[key]:.12g}" for key, sign in _BOUNDS.items() if key in schema)
    return " ".join(filter(None, [_WORDS.get(str(kind), "any"), bounds]))


def _list(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"[{', '.join(_allowed(item, known) for item in schema['prefixItems'])}]"
    return f"list of {_allowed(schema.get('items', {}), known)}"


PAGES = {"commands.md": commands_page, "experiment.md": experiment_page}


def main() -> None:
    """Write the pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
