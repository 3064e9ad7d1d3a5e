"""Records of options: each value declared once, with its type, default and meaning; parsed, refused and listed from there.

A record is a frozen dataclass whose fields are `option(default, help)`. No jax: absl reads a config before jax may be imported.
"""

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from electra_jax.cli import UserError

R = TypeVar("R")
_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", tuple: "a tuple, such as (1, 2)"}


def option(default: Any, help: str = "") -> Any:
    """A field of a record."""
    return dataclasses.field(default=default, metadata={"help": help})


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises UserError unless `value` is allowed, with the nearest that is."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}{hint(str(value), allowed)}")


def at_least(record: Any, section: str, **bounds: float) -> None:
    """Raises UserError unless each of these fields of the record is at least its bound."""
    for name, bound in bounds.items():
        if not getattr(record, name) >= bound:
            raise UserError(f"{section}.{name} is {getattr(record, name)}: it must be at least {bound}")


def from_zero_up(record: Any, section: str, *names: str) -> None:
    """Raises UserError unless each of these fields of the record is a finite number from 0 up."""
    for name in names:
        if not 0.0 <= getattr(record, name) < math.inf:
            raise UserError(f"{section}.{name} is {getattr(record, name)}: it must be a number from 0 up")


def load(table: Mapping[str, str], name: str) -> types.ModuleType:
    """The module that one of a folder's choices lives in. A folder names its choices as {name: module}, so that a config can be checked
    against them before any of them, or jax, is imported."""
    return importlib.import_module(table[name])


def parse(record: type[R], values: Mapping[str, Any], section: str) -> R:
    """The record of these values. Raises UserError for a name that it has not, lists what it has, and for a value of another type.

    section: the part of the config that the fields stand in, "model"; "" where they stand at its top.
    """
    kinds, dot = _kinds(record), f"{section}." if section else ""
    for name in values:
        check_name(record, name, section)
    return record(**{name: _typed(value, kinds[name], dot + name) for name, value in values.items()})


def check_name(record: type, name: str, section: str) -> None:
    """Raises UserError, which lists the record's options, unless it has one of this name."""
    if name not in (known := names(record)):
        flag, owner = (f"{section}.{name}", section) if section else (name, "the config itself")
        raise UserError(f"--config.{flag}: no such field{hint(name, known) or ':'} {owner} has {', '.join(listed(record))}")


def _typed(value: Any, kind: Any, name: str) -> Any:
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in allowed:
        return None
    kind = next(typing.get_origin(each) or each for each in allowed if each is not types.NoneType)
    if kind is tuple and isinstance(value, list | tuple):
        return _frozen(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is int and abs(value) >= 2**53:
        raise UserError(f"{name} is {value}: no whole number of a config is so large")
    if type(value) is not kind:
        raise UserError(f"{name} is {value!r}: it must be {_NAMES.get(kind, kind.__name__)}")
    return value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _kinds(record: type) -> dict[str, Any]:
    """{name: type} of the record's options; a field that is none (a section of a recipe) is not among them."""
    hints = typing.get_type_hints(record)
    return {field.name: hints[field.name] for field in _fields(record)}


def plain_types(record: type) -> dict[str, type]:
    """{name: the type of its values, without None and without what a tuple holds}."""
    found = {}
    for name, kind in _kinds(record).items():
        parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        each = next(part for part in parts if part is not types.NoneType)
        found[name] = typing.get_origin(each) or each
    return found


def _fields(record: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(record) if "help" in field.metadata]


def names(record: type) -> list[str]:
    """Of its options."""
    return [field.name for field in _fields(record)]


def values(record: Any) -> dict[str, Any]:
    """{name: value} of a record's options."""
    return {name: getattr(record, name) for name in names(type(record))}


def listed(record: type) -> list[str]:
    """Each option as "name (type, default)"."""
    kinds = _kinds(record)
    return [f"{field.name} ({_kind_name(kinds[field.name])}, {field.default!r})" for field in _fields(record)]


def help_lines(record: type, section: str) -> list[str]:
    """A line an option for --help: flag, type, default, meaning."""
    kinds, dot = _kinds(record), f"{section}." if section else ""
    return [
        f"  --config.{dot}{field.name} ({_kind_name(kinds[field.name])}, {field.default!r}): {field.metadata['help']}"
        for field in _fields(record)
    ]


def _kind_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_kind_name(each) for each in typing.get_args(kind))
    return "None" if kind is types.NoneType else (typing.get_origin(kind) or kind).__name__


def hint(name: str, allowed: Iterable[str]) -> str:
    """ "; did you mean ...?", or nothing where nothing is near."""
    near = difflib.get_close_matches(name, tuple(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse_arg(arg: str | None, *, presets: Iterable[str], default: str, flags: Iterable[str]) -> tuple[str, frozenset[str]]:
    """Splits a config file's argument, `small` or `base,flash`, into a preset and its variants.

    Raises UserError for a word that is neither, naming the nearest.
    """
    words = [word for word in (arg or default).split(",") if word]
    preset = words[0] if words else default
    one_of("the config's first word", preset, presets)
    for word in words[1:]:
        one_of("the config's variant", word, flags)
    return preset, frozenset(words[1:])
