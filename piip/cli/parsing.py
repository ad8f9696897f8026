"""From typed functions to command lines, by jsonargparse; every complaint becomes one sentence."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from piip.errors import ConfigError, PiipError, require
from piip.train.typed import argument_errors, explain, field_types

_OPTIONAL = r"(?:Optional\[)?{}(?:\]| \| null)?"
_TYPES_IN_WORDS = (
    (_OPTIONAL.format(r"(?:<class 'Path'>|Path)"), "path"),
    (_OPTIONAL.format(r"tuple\[str, \.\.\.\]"), "texts"),
    (_OPTIONAL.format(r"tuple\[[^\]]*(?:\[[^\]]*\][^\]]*)?\]"), "numbers"),
    (_OPTIONAL.format("str"), "text"),
    (_OPTIONAL.format("int"), "whole number"),
    (_OPTIONAL.format("float"), "number"),
    (r"(?:Union\[bool, |bool \| )Literal\['(\w+)'\]\]?", r"true, false or \1"),
    ("bool", "true or false"),
    (_OPTIONAL.format(r"Literal\[(.*?)\]"), r"one of \1"),
    (r"dict\[.*?\]", "{key: value, ...}"),
    (r"int \| str", "whole number or text"),
)


def call(function: Callable[..., Any], arguments: Sequence[str], prog: str) -> Any:
    """Call a function with what a command line says.

    Required parameters are positional arguments, and so is a function's only one; a list takes all that follow;
    the others are options. A parameter whose type is a dataclass (a recipe) is a YAML file, and each of its
    settings an option.

    Args:
        function: Typed, with a docstring that describes its parameters.
        arguments: The command line after the verb.
        prog: What the usage line begins with.

    Raises:
        ConfigError: The command line does not fit the function.
    """
    types = {name: kind for name, kind in typing.get_type_hints(function).items() if name != "return"}
    recipe = next((name for name, kind in types.items() if dataclasses.is_dataclass(kind)), None)
    lists = [name for name, kind in types.items() if typing.get_origin(kind) is list]
    parser = _new_parser(prog, function)
    positional = [*lists, *([recipe] if recipe else [])]
    for name in positional:
        parser.add_argument(
            name, nargs="+" if name in lists else None, type=Path, help=_describe(function, name)
        )
    if len(types) == 1 and not positional:
        positional = list(types)
        default = inspect.signature(function).parameters[positional[0]].default
        parser.add_argument(*types, nargs="?", default=default, help=_describe(function, positional[0]))
    parser.add_function_arguments(function, as_positional=True, skip=set(positional))
    parser._action_groups[-1].title = "settings"  # jsonargparse repeats the description
    given = _written_out(function, arguments)
    if recipe is None:
        return function(**vars(_parse(parser, given)))
    parser.usage = f"{prog} {recipe.upper()} [--out OUT] [--resume] [--section.setting VALUE ...]"
    return function(**_with_recipe(parser, recipe, types[recipe], given))


def _new_parser(prog: str, function: Callable[..., Any] | None = None) -> Any:
    jsonargparse = require("jsonargparse", "cli", "The command line")
    text = inspect.getdoc(function) or "" if function else ""
    summary = _unquoted(text.partition("\nArgs:")[0].strip())
    return jsonargparse.ArgumentParser(
        prog=prog,
        description=summary,
        formatter_class=_plain_help(jsonargparse.DefaultHelpFormatter),
        exit_on_error=False,
        allow_abbrev=False,
    )


def _plain_help(formatter: Any) -> Any:
    """Return a formatter that says in words what a value is."""

    class PlainHelp(formatter):
        def _expand_help(self, action: Any) -> str:
            text = _unquoted(super()._expand_help(action))
            for pattern, words in _TYPES_IN_WORDS:
                text = re.sub(rf"(?<=type: ){pattern}(?=[,)])", words, text)
            return re.sub(r"(?<=default: )\((.*?),?\)(?=\))", r"\1", text)  # a tuple, as it is typed

    return PlainHelp


def _unquoted(text: str) -> str:
    """Return a docstring's text without the backticks around code, which a terminal would show."""
    return text.replace("`", "")


def _parse(parser: Any, arguments: Sequence[str], known: Iterable[str] = ()) -> Any:
    try:
        return parser.instantiate(parser.parse_args(list(arguments)))
    except PiipError:
        raise
    except argument_errors() as error:
        names = known or [action.dest for action in parser._actions]
        raise ConfigError(explain(error, names)) from error


def _with_recipe(parser: Any, name: str, kind: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Return a function's parameters; the recipe is the file of the first argument, changed by the others."""
    from piip.train.recipe import load_recipe

    parser.add_class_arguments(kind)
    if arguments and not arguments[0].startswith("-"):
        parser.set_defaults(load_recipe(arguments[0]).to_dict())
    values = vars(_parse(parser, arguments, field_types(kind)))
    settings = {field.name: values.pop(field.name) for field in dataclasses.fields(kind)}
    return values | {name: kind(**settings)}


def _written_out(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Write ``--sizes 1120,896,448`` as the list, and a bare ``--resume`` as the value, that jsonargparse reads."""
    types = {f"--{name.removeprefix('recipe.')}": str(kind) for name, kind in field_types(function).items()}
    words: list[str] = []
    for position, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        following = arguments[position + 1 : position + 2]
        if equals and "tuple[" in types.get(option, ""):
            word = f"{option}={_as_list(value)}"
        elif words and "tuple[" in types.get(words[-1], ""):
            word = _as_list(word)
        elif types.get(word) == str(bool) and not {*following} & {"true", "false"}:
            word = f"{word}=true"
        words.append(word)
    return words


def _as_list(text: str) -> str:
    return text if text.startswith("[") else f"[{text}]"


def _describe(function: Callable[..., Any], name: str) -> str:
    """Return what the docstring says about a parameter."""
    match = re.search(
        rf"^\s*{name}: (.*?)(?=^\s*\w+: |^\s*$|\Z)", inspect.getdoc(function) or "", re.M | re.S
    )
    return " ".join(match[1].split()) if match else ""
