"""Frozen dataclasses that are checked, hashable, and convertible to and from plain dictionaries."""

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from piip.errors import ConfigError, nearest


class FrozenDict(dict[Any, Any]):
    """A dictionary of plain values that cannot change and can be hashed."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("A description does not support item assignment; make a new one with replace().")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


@dataclasses.dataclass(frozen=True)
class Described:
    """Base of frozen dataclasses that describe something.

    ``class Name(Described, called="name")`` says what messages call it; by default, they use the class's name.

    Values are brought to the types of their fields (lists become tuples, dictionaries become descriptions), so
    that equal descriptions are equal however they were written. A field of type Mapping is frozen, too.

    Raises:
        ConfigError: A value does not have the type of its field, or `check` refuses it.
    """

    called: ClassVar[str]

    def __init_subclass__(cls, called: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.called = called or cls.__name__

    def __post_init__(self) -> None:
        """Bring every value to the type of its field, then `check` them together."""
        kind: Any = type(self)
        for name, hint in _field_types(kind):
            value = getattr(self, name)
            try:
                fitted = _fit(value, hint)
            except _Unfit as unfit:
                choices = f" {nearest(str(value), unfit.choices)}" if unfit.choices else ""
                raise ConfigError(
                    f"{self.called}.{name} is {value!r}; give {_in_words(hint)}.{choices}"
                ) from None
            object.__setattr__(self, name, fitted)
        self.check()

    def check(self) -> None:
        """Refuse values of the right types that contradict each other or are out of range."""

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON-ready dictionaries, lists, strings and numbers."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the description from `to_dict`'s form.

        Raises:
            ConfigError: A key is unknown, missing or holds an impossible value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.called} is {values!r}; give a dictionary of its fields.")
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"{cls.called} has no key {key!r}. {nearest(str(key), known)}")
        for name, spec in known.items():
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise ConfigError(f"{cls.called} needs the key {name!r}.")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed.

        Raises:
            ConfigError: A field is unknown or the result is impossible.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self).from_dict(fields | changes)

    def check_range(
        self, name: str, low: float, high: float = math.inf, *, above: bool = False, closed: bool = False
    ) -> None:
        """Refuse a number, or an entry of a tuple, that is out of range; None is no number.

        Args:
            name: The field.
            low: Smallest number allowed.
            high: Number that is already too large.
            above: ``low`` itself is too small.
            closed: ``high`` itself is allowed.
        """
        value = getattr(self, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if number < low or (above and number == low) or number > high or (not closed and number == high):
                start = f"above {low}" if above else f"from {low}"
                end = "" if high == math.inf else f" to {high}" if closed else f" to below {high}"
                raise ConfigError(f"{self.called}.{name} is {value!r}; give a number {start}{end}.")


def plain(value: Any) -> Any:
    """Return descriptions as dictionaries and tuples as lists, as JSON and YAML have them."""
    if isinstance(value, Described):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


class _Unfit(Exception):
    """A value does not have the type of its field, whose ``choices`` may be few."""

    def __init__(self, choices: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.choices = choices


@functools.cache
def _field_types(kind: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind)]


def _fit(value: Any, hint: Any) -> Any:
    """Return a value with the type of a hint."""
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, get_args(hint))
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise _Unfit(get_args(hint))
        return value
    if origin is tuple:
        return _fit_tuple(value, get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        fitted = _fit_mapping(value, *get_args(hint))
        return dict(fitted) if origin is dict else fitted
    if hint is Any:
        return _fit_plain(value)
    if isinstance(hint, type) and issubclass(hint, Described):
        return hint.from_dict(value) if isinstance(value, Mapping) else _of_type(value, hint)
    return _FITS[hint](value)


def _fit_union(value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in hints:
        return None
    for hint in hints:
        if hint is not types.NoneType:
            try:
                return _fit(value, hint)
            except _Unfit:
                continue
    raise _Unfit


def _fit_tuple(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise _Unfit
    items = tuple(value)
    if hints[-1] is Ellipsis:
        return tuple(_fit(item, hints[0]) for item in items)
    if len(items) != len(hints):
        raise _Unfit
    return tuple(_fit(item, hint) for item, hint in zip(items, hints, strict=True))


def _fit_mapping(value: Any, key_hint: Any, item_hint: Any) -> FrozenDict:
    if not isinstance(value, Mapping):
        raise _Unfit
    return FrozenDict({_fit(key, key_hint): _fit(item, item_hint) for key, item in value.items()})


def _fit_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _fit_mapping(value, str, Any)
    if isinstance(value, list | tuple):
        return tuple(_fit_plain(item) for item in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise _Unfit
    return value


def _fit_int(value: Any) -> int:
    try:
        return operator.index(_not_bool(value))
    except TypeError:
        raise _Unfit from None


def _fit_float(value: Any) -> float:
    try:
        number = math.fsum((_not_bool(value),))  # refuses texts, unlike float()
    except TypeError:
        raise _Unfit from None
    if not math.isfinite(number):
        raise _Unfit
    return number


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which Python takes for a number
        raise _Unfit
    return value


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Unfit
    return value


_FITS: dict[Any, Callable[[Any], Any]] = {
    int: _fit_int,
    float: _fit_float,
    bool: functools.partial(_of_type, kind=bool),
    str: functools.partial(_of_type, kind=str),
}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _in_words(hint: Any) -> str:
    """Return what a hint asks for, as it stands after "give"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is types.NoneType else _in_words(part) for part in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a list with {_in_words(inner[0])} each"
    if origin is tuple:
        return f"[{', '.join(map(_in_words, inner))}]"
    if origin is not None:
        return "a dictionary of numbers, texts and lists"
    return _WORDS.get(hint) or f"{hint.__name__} or its dictionary"
