"""Rows of named values -> examples, for all formats. All rules about what a row may hold are in this file."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from electra_jax.cli import UserError
from electra_jax.finetune.examples import Answers, Example
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.readers.lines import decode
from electra_jax.options import hint

# Layout's field for a column -> the option by which a user names the column.
_OPTIONS = {"texts": "task.text_columns", "label": "task.label_column", "start": "task.start_column", "id": "task.id_column"}


def example(row: Mapping[str, Any], layout: Layout, where: str, number: int, counts: Counter) -> Example | None:
    """The row's example; None if the row is dropped, which is counted in `counts`.

    Args:
      row: column -> value, which is text, a number, a list, or None. Columns that the layout does not name are ignored.
      number: the row's number from 0, which is its ID if the layout names no column of IDs.
    """
    texts = _words(row, layout, where) if layout.kind == "tags" else tuple(text(row[name], name, where) for name in layout.texts)
    if not (texts and all(map(str.strip, texts))):
        if layout.drop and layout.labelled:
            counts["dropped: an empty text"] += 1
            return None
        if not layout.drop:
            what = "there is no word" if layout.kind == "tags" else f"{_empty(texts, layout)} is empty"
            raise UserError(f"{where}: {what}: remove the row{_or_drop('drop', layout) if layout.labelled else _or_drop('keep', layout)}")
        counts["with an empty text"] += 1
    label = _label(row, texts, layout, where, counts)
    id_ = str(number)
    if layout.id:
        if not (id_ := _scalar(row[layout.id], layout.id, where)):
            raise UserError(f"{where}: its {layout.id!r} is empty: give the row a name, or name no column (task.id_column)")
    return Example(id_, texts, label, where)


def _or_drop(verb: str, layout: Layout) -> str:
    return f", or {verb} and count such rows (task.bad_rows=drop)" if layout.format else ""


def columns_of(names: Sequence[str], layout: Layout, where: str, mend: str = "") -> dict[str, int]:
    """The place of each of the layout's columns among `names`. UserError if a column is missing that a row must have,
    or if one occurs twice.

    names: those in the header. where: the header's place in the file. mend: a further hint for the message.
    """
    if double := [name for name, count in Counter(names).items() if count > 1 and name and name in (*layout.columns, layout.label)]:
        raise UserError(f"{where} names the column {double[0]!r} twice: rename one")
    missing = [name for name in layout.columns if name not in names]
    if missing:
        raise UserError(f"{where} {missing_column(missing[0], names, layout)}{mend}")
    wanted = dict.fromkeys((*layout.columns, *(name for name in (layout.label, layout.start) if name in names)))
    return {name: names.index(name) for name in wanted if name}


def missing_column(name: str, names: Iterable[str], layout: Layout) -> str:
    """The end of a message: "has no column ...", with the columns that there are, the most similar name, and the option to mend it."""
    names = list(map(str, names))
    shown = _some([repr(each if len(each) <= 40 else each[:37] + "...") for each in names]) or "none at all"
    use = next((use for use in _OPTIONS if name == getattr(layout, use) or name in layout.texts and use == "texts"), "texts")
    parts = tuple(map(str.strip, name.split(",")))
    if use == "texts" and len(parts) == 2 and set(parts) <= set(names):
        return f"has no column {name!r}, but {shown}: name two as {parts} ({_OPTIONS[use]})"
    return f"has no column {name!r}, but {shown}{hint(name, names)}: name the right one ({_OPTIONS[use]})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")


def delimited(rows: Iterable[tuple[int, Sequence[str]]], path: str, layout: Layout, counts: Counter) -> Iterator[Example]:
    """Examples of a table of texts, such as a TSV file.

    rows: (number of the line in which the row begins, its columns), with the header; an empty line has no columns.
    """
    columns, width, number = None, 0, 0
    for line, fields in rows:
        where = f"{path}:{line}"
        if not fields:
            counts["blank lines"] += 1
            continue
        if columns is None:
            width = len(fields)
            if layout.header:
                without = "" if layout.format == "glue" else ", unless task.header=False says that it does not"
                mend = f". Its first line must name the columns{without}{_other_delimiter(fields)}"
                columns = columns_of(fields, layout, where, mend)
                continue
            columns = _numbered(width, layout, where)
            if (
                (label := fields[columns[layout.label]].strip() if layout.label in columns else "")
                and layout.labels
                and label not in layout.labels
            ):
                raise UserError(
                    f"{where}: {label!r} is none of the labels {_some(layout.labels)}. "
                    "This file has no header: if that line is one, remove it"
                )
        if len(fields) != width:
            if layout.drop and layout.labelled:
                counts["dropped: another number of columns"] += 1
                number += 1
                continue
            raise UserError(
                f"{where} has {len(fields)} columns, and the first line {width}: is there a delimiter or a quote in a text? "
                f"Mend the row{_or_drop('drop', layout) if layout.labelled else ''}"
            )
        found = example({name: fields[position] for name, position in columns.items()}, layout, where, number, counts)
        number += 1
        if found is not None:
            yield found


def _numbered(width: int, layout: Layout, where: str) -> dict[str, int]:
    columns = {}
    for name in (*layout.columns, layout.label, layout.start):
        if not name:
            continue
        if not name.removeprefix("-").isdecimal():
            raise UserError(
                f"{where}: a file without a header has columns 0 to {width - 1}, not {name!r}: number them, or task.header=True"
            )
        if not -width <= int(name) < width:
            if name in layout.columns:
                raise UserError(
                    f"{where} has no column {name}, but 0 to {width - 1}: number the right one (task.text_columns, .label_column)"
                )
            continue
        columns[name] = int(name) % width
    # Unless it is given, the labels' column is the last one, which in a file of texts alone is a text.
    if columns.get(layout.label) in {columns[name] for name in layout.texts}:
        if layout.labelled:
            raise UserError(f"{where} has no column of labels beside its texts: add one, or name the right ones (task.label_column)")
        del columns[layout.label]
    return columns


def _other_delimiter(fields: Sequence[str]) -> str:
    if len(fields) > 1:
        return ""
    other = max(";\t,|", key=fields[0].count)
    return f" (are they parted by {other!r}? task.delimiter={other!r})" if other in fields[0] else ""


# --- Values


def text(value: Any, name: str, where: str) -> str:
    """A column's value as text; None is "". UserError for any other type, and for half of a surrogate pair, which JSON can contain."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return decode(value, f"{where}: {name!r}")
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {name!r} is of type {type(value).__name__}, not text: name a column of text (task.text_columns, task.label_column)"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: {name!r} has half of a surrogate pair, which is no character: write the whole one") from None
    return value


def _words(row: Mapping[str, Any], layout: Layout, where: str) -> tuple[str, ...]:
    return _several(row[layout.texts[0]], layout.texts[0], where, None)


def _several(value: Any, name: str, where: str, separator: str | None) -> tuple[str, ...]:
    """The parts of a list, or of a text that is split at the separator (None: at white space). UserError for an empty part."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        parts = tuple(text(each, name, where).strip() if isinstance(each, str | bytes) else _scalar(each, name, where) for each in value)
    else:
        whole = text(value, name, where)
        parts = tuple(whole.split() if separator is None else map(str.strip, whole.split(separator)) if whole.strip() else ())
    if not all(map(str.strip, parts)):
        raise UserError(f"{where}: part {1 + next(n for n, part in enumerate(parts) if not part.strip())} of {name!r} is empty: remove it")
    return parts


def _scalar(value: Any, name: str, where: str) -> str:
    """A class as text: true and false as in JSON, and 1.0 as "1", because a column of whole numbers becomes floats if values are
    missing."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(
                f"{where}: {name!r} is {value}: it must be a text or a whole number (labels that are numbers: task.kind=number)"
            )
        value = int(value)
    if isinstance(value, int):
        return str(value)
    return text(value, name, where)


def _empty(texts: Sequence[str], layout: Layout) -> str:
    return repr(layout.texts[next(n for n, each in enumerate(texts) if not each.strip())])


def _is_missing(value: Any) -> bool:
    if value is None or isinstance(value, float) and math.isnan(value):
        return True
    return isinstance(value, str | bytes) and not value.strip()


def _label(row: Mapping[str, Any], texts: tuple[str, ...], layout: Layout, where: str, counts: Counter) -> Any:
    value = row.get(layout.label)
    # For "classes" and "answer", an empty value is a label: no class, or no answer.
    absent = not layout.label or layout.label not in row
    absent = absent or _is_missing(value) and (layout.kind not in ("classes", "answer") or not layout.labelled)
    if absent:
        if layout.labelled:
            raise UserError(f"{where}: {layout.label!r} is empty: give the row its label, or remove it")
        counts["without a label"] += 1
        return None
    label = _LABELS[layout.kind](value, row, texts, layout, where)
    if layout.kind == "answer":
        counts["unanswerable"] += not label.texts
    elif layout.kind == "classes":
        counts["without any class"] += not label
    return label


def _class(value: Any, row: Mapping, texts: tuple[str, ...], layout: Layout, where: str) -> str:
    return known(_scalar(value, layout.label, where).strip(), layout, where)  # "a, x" of a table has the label of "a,x"


def known(label: str, layout: Layout, where: str) -> str:
    """The label. UserError if the layout lists labels and this is none of them."""
    if layout.labels and label not in layout.labels:
        raise UserError(f"{where}: the label {label!r} is none of {_some(layout.labels)}{hint(label, layout.labels)}: mend the row")
    return label


def _classes(value: Any, row: Mapping, texts: tuple[str, ...], layout: Layout, where: str) -> tuple[str, ...]:
    labels = _several(value, layout.label, where, layout.separator)
    return tuple(known(label, layout, where) for label in dict.fromkeys(labels))


def _number(value: Any, row: Mapping, texts: tuple[str, ...], layout: Layout, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        is_header = not layout.header and where.endswith(":1")
        mend = "if the line is a header, say task.header=True and give columns by their names" if is_header else "write it as 3.5"
        raise UserError(f"{where}: {layout.label!r} is {value!r}, which is no number: {mend}") from None
    low, high = layout.range or (-math.inf, math.inf)
    if not (math.isfinite(number) and low <= number <= high):
        raise UserError(f"{where}: {layout.label!r} is {value}, and must be {f'from {low:g} to {high:g}' if layout.range else 'finite'}")
    return number


def _tags(value: Any, row: Mapping, texts: tuple[str, ...], layout: Layout, where: str) -> tuple[str, ...]:
    tags = _several(value, layout.label, where, None)
    if len(tags) != len(texts):
        raise UserError(f"{where} has {len(texts)} words and {len(tags)} tags: give each word one")
    return tags


def _answers(value: Any, row: Mapping, texts: tuple[str, ...], layout: Layout, where: str) -> Answers:
    starts = row.get(layout.start)
    if isinstance(value, Mapping):  # as Hugging Face's and TFDS's SQuAD write it
        if not {"text", "answer_start"} <= set(value):
            raise UserError(f"{where}: {layout.label!r} has no text and answer_start, but {', '.join(map(str, value))}")
        value, starts = value["text"], value["answer_start"]
    value, starts = (each.tolist() if hasattr(each, "tolist") else each for each in (value, starts))
    value, starts = ([] if _is_missing(each) else each if isinstance(each, list | tuple) else [each] for each in (value, starts))
    answers = tuple(text(each, layout.label, where) for each in value)
    if not layout.start and not isinstance(row.get(layout.label), Mapping):
        return Answers(answers, tuple(_only_place(texts[1], answer, where) for answer in answers))
    if len(answers) != len(starts):
        raise UserError(f"{where} has {len(answers)} answers and {len(starts)} offsets: give each answer one")
    for answer, start in zip(answers, starts, strict=True):
        check_answer(texts[1], answer, start, where)
    return Answers(answers, tuple(int(start) for start in starts))


def check_answer(context: str, answer: str, start: Any, where: str) -> None:
    """Raises UserError unless the answer stands in the context at that character."""
    try:
        if int(start) != float(start):
            raise ValueError
        start = int(start)
    except (TypeError, ValueError, OverflowError):  # JSON's numbers have no bound, and may be Infinity
        raise UserError(f"{where}: the answer's offset is {start!r}: it must be a whole number of characters") from None
    if not answer:
        raise UserError(f"{where}: an answer is empty: remove it (a question without an answer has none at all)")
    if start >= 0 and context.startswith(answer, start):
        return
    told = f"{answer!r}" if len(answer) <= 60 else f"{answer[:57]!r}..."
    if not 0 <= start < len(context):
        told = f"the offset {start} of the answer {told} lies beyond the context's {len(context)} characters"
    else:
        told = f"the answer {told} does not stand at character {start} of its context, where {context[start : start + 20]!r} is"
    raise UserError(f"{where}: {told}: {_places_mend(context, answer)}")


def _places(context: str, answer: str) -> list[int]:
    places, start = [], context.find(answer)
    while start >= 0:
        places.append(start)
        start = context.find(answer, start + 1)
    return places


def _places_mend(context: str, answer: str) -> str:
    places = _places(context, answer)
    if not places:
        return "it stands nowhere there, so mend the text (offsets count characters, not bytes)"
    if len(places) == 1:
        return f"it stands at {places[0]} alone, so write that (offsets count characters, not bytes)"
    return f"it stands at {', '.join(map(str, places[:8]))}{' ...' if len(places) > 8 else ''}, so write the one that is meant"


def _only_place(context: str, answer: str, where: str) -> int:
    places = _places(context, answer) if answer else []
    if len(places) != 1:
        raise UserError(
            f"{where}: the answer {answer!r} stands {len(places)} times in its context: "
            + ("mend the text" if not places else "say where, in a column of offsets (task.start_column)")
        )
    return places[0]


_LABELS = {"class": _class, "classes": _classes, "number": _number, "tags": _tags, "answer": _answers}
