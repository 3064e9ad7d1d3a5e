"""What is compared: an entry is a pretraining config that differs from the others in a few words."""

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax.cli import UserError

# What the budget decides, so that neither an entry nor a flag may.
OF_BUDGET = {name: "--flops, from which the steps of each entry follow" for name in ("train.steps", "schedule.decay_steps")}
# What must be the same for all entries, by regex, and what says it.
COMMON = {
    r"seed": "--seeds",
    **OF_BUDGET,
    r"(data|eval)\..*": "the flag --config.{field}, for all entries",
}
HELD_OUT_MASK_RATE = 0.15  # eval.mask_rate, unless a flag says another: held-out losses compare only under the same masks


class Entry(NamedTuple):
    name: str
    variants: tuple[str, ...]  # of the config's argument, beside those that all entries have
    fields: Mapping[str, Any]  # {"section.field": value}

    def fields_of(self, seed: int) -> dict[str, Any]:
        """`fields` for a run with this seed, which init_from may name: init_from=runs/first-{seed}."""
        return {**self.fields, **({"init_from": self.fields["init_from"].replace("{seed}", str(seed))} if self.begins_by_seed else {})}

    @property
    def begins_by_seed(self) -> bool:
        return "{seed}" in str(self.fields.get("init_from", ""))

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.,=+-]+", "_", self.name)


def parse(text: str) -> Entry:
    """The entry that "NAME: VARIANT SECTION.FIELD=VALUE ..." describes; without "NAME:", the whole text is its name.

    UserError for a field that is common to all entries.
    """
    named = re.match(r"([^=:]+):\s+(.*)", text)
    name, spec = (named[1].strip(), named[2]) if named else (text.strip(), text)
    words = _words(spec, f"--entry={text!r}", "NAME: VARIANT SECTION.FIELD=VALUE ...")
    if not name or not words:
        raise UserError(f"--entry={text!r}: it must have a variant, such as electra or mlm, or fields SECTION.FIELD=VALUE")
    fields = _fields(words)
    for field in sorted(fields):
        if by := next((by for common, by in COMMON.items() if re.fullmatch(common, field)), ""):
            raise UserError(f"--entry={text!r}: {field} is decided by {by.format(field=field)}: leave it out")
    # The default objective has no variant.
    variants = tuple(word for word in words if "=" not in word and word != "electra")
    return Entry(name, variants, fields)


def fields_of(text: str, flag: str) -> dict[str, Any]:
    """Of "SECTION.FIELD=VALUE ..."."""
    words = _words(text, f"{flag}={text!r}", "SECTION.FIELD=VALUE ...")
    if bare := [word for word in words if "=" not in word]:
        raise UserError(f"{flag}={text!r}: {bare[0]!r} has no value: write SECTION.FIELD=VALUE ...")
    return _fields(words)


def parse_all(texts: Sequence[str]) -> list[Entry]:
    """UserError unless there are entries, whose names and folders differ."""
    found = [parse(text) for text in texts]
    if not found:
        raise UserError("there is nothing to compare: --entry=electra --entry=mlm")
    for number, entry in enumerate(found):
        if any(entry.folder.lower() == other.folder.lower() for other in found[:number]):
            raise UserError(f"two entries are called {entry.name!r}, or nearly so: give one another name, --entry='NAME: ...'")
    return found


def _words(text: str, what: str, form: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{what}: {error}: write {form}") from None


def _fields(words: Sequence[str]) -> dict[str, Any]:
    return {name: _value(value) for name, _, value in (word.partition("=") for word in words if "=" in word)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
