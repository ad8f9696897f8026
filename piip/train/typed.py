"""Typed dataclasses from plain values, by jsonargparse; every complaint becomes one sentence."""

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from piip.errors import ConfigError, PiipError, nearest, require

Kind = TypeVar("Kind")

_SHORT_TYPES = (
    (re.compile(r"<class '(?:\w+\.)*(\w+)'>"), r"\1"),
    (re.compile(r"typing\."), ""),
    (re.compile(r"Literal\[(.*?)\]"), r"one of \1"),
    (re.compile(r"Optional\[(.*)\]"), r"\1 or null"),
)


def parse_dataclass(kind: type[Kind], values: Mapping[str, Any], source: str) -> Kind:
    """Build a dataclass, and the dataclasses inside, from nested plain values.

    Args:
        kind: The dataclass.
        values: Its fields; keys must be known.
        source: Where the values come from, for messages.

    Raises:
        ConfigError: A value has the wrong type or is refused by the dataclass.
    """
    parser = require("jsonargparse", "cli", "Reading a recipe").ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        parsed = parser.instantiate(parser.parse_object(dict(values)))
    except PiipError:
        raise
    except argument_errors() as error:
        raise ConfigError(f"{source}: {explain(error)}") from error
    return kind(**vars(parsed))


def explain(error: Exception, known: Iterable[str] = ()) -> str:
    """Return jsonargparse's complaint as one sentence."""
    text = " ".join(str(error).split())
    if "unrecognized arguments" in text:
        name = text.rpartition("unrecognized arguments: ")[2].split()[0]
        option = name.split("=")[0].lstrip("-")
        return f"There is no argument {name.split('=')[0]!r}. {nearest(option, known)}"
    if nested := re.search(r"\"(\w+)\".*NestedArg\(key='([\w.]+)'", text):
        return f"There is no argument '--{'.'.join(nested.groups())}'; give --{nested[1]} itself."
    match = re.search(r'key "([\w.]+)": (.*)$', text)
    if match is None:
        return text[:1].upper() + text[1:].rstrip(".") + "."
    name, complaint = match.groups()
    value = re.search(r"Got value: (.*?)(?: Given|$)|Given value: (.*)$", complaint)
    wanted = re.search(r"Expected an? (.*?)\.? Got value|Subtypes: \[(.*?)\] Errors", complaint)
    if value is None or wanted is None:
        return f"{name}: {complaint.rstrip('.')}."
    expected = next(filter(None, wanted.groups()))
    for pattern, replacement in _SHORT_TYPES:
        expected = pattern.sub(replacement, expected)
    return f"{name} is {next(filter(None, value.groups()))!r}; expected {expected}."


def field_types(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return the types of all settings of a dataclass and of the dataclasses inside, by dotted name."""
    types: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    hints.pop("return", None)
    for name, inner in hints.items():
        if dataclasses.is_dataclass(inner):
            types |= field_types(inner, f"{prefix}{name}.")
        else:
            types[f"{prefix}{name}"] = inner
    return types


def argument_errors() -> tuple[type[Exception], ...]:
    """Return what jsonargparse raises for values that do not fit."""
    jsonargparse = require("jsonargparse", "cli", "The command line")
    return (jsonargparse.ArgumentError, TypeError, KeyError)
