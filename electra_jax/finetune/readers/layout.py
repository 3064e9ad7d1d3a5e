"""How a file's rows become examples: what every reader is told."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """A column is named by its name in the header or, where the file has none, by its number from 0 (or from -1 backwards) as text."""

    format: str  # a key of readers.FORMATS
    kind: str  # "class", "classes", "number", "tags" or "answer"
    texts: tuple[str, ...] = ()  # one column, or two: a pair; of tags: the words'; of an answer: the question's and the context's
    label: str = ""  # of an answer: the column of its texts; "", where they are not asked for: whatever labels there are are not read
    start: str = ""  # of an answer: the column of its offsets; "": an answer stands where its text stands, if only once
    id: str = ""  # "": the row's number
    labels: tuple[str, ...] = ()  # all that there are, in the order of the model's outputs; none: any
    range: tuple[float, float] | None = None  # of a number
    separator: str = ","  # between several labels in one text
    header: bool = True  # the first line names the columns
    delimiter: str = ""  # between columns; "": the format's
    quotes: bool | None = None  # columns may stand in double quotes; None: the format's
    scheme: str = "auto"  # of tags: one of tags.SCHEMES, or "auto"
    lenient: bool = False  # tags that break their scheme are read as conlleval reads them
    labelled: bool = True  # a row without a label is refused, as in train and dev
    drop: bool = False  # a bad row is dropped and counted; in a file without labels only empty texts are bad rows, and they are kept

    @property
    def columns(self) -> tuple[str, ...]:
        """All that a row must have."""
        return (*self.texts, *filter(None, (self.label if self.labelled else "", self.start if self.labelled else "", self.id)))
