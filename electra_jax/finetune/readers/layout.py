"""The description of a file from which every reader knows how rows become examples."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """A column is given by its name in the header or, if the file has none, by its number as text: from 0, or from -1 backwards."""

    format: str  # a key of readers.FORMATS
    kind: str  # "class", "classes", "number", "tags" or "answer"
    texts: tuple[str, ...] = ()  # one column, or two for a pair; for tags that of the words; for an answer those of question and context
    label: str = ""  # the column of labels; for an answer, of its texts; "": labels are not needed, and not read
    start: str = ""  # for an answer, the column of its offsets; "": the context must have the answer's text exactly once
    id: str = ""  # the column of IDs; "": the row's number
    labels: tuple[str, ...] = ()  # all labels, in the order of the model's outputs; (): any label is allowed
    range: tuple[float, float] | None = None  # of a number: (lowest, highest)
    separator: str = ","  # between several labels in one text
    header: bool = True  # the first line names the columns
    delimiter: str = ""  # between columns; "": the format's own
    quotes: bool | None = None  # columns may stand in double quotes; None: as usual in the format
    scheme: str = "auto"  # for tags, one of tags.SCHEMES, or "auto"
    lenient: bool = False  # tags that break their scheme are read as conlleval reads them
    labelled: bool = True  # a row without a label is refused, as in train and dev
    drop: bool = False  # bad rows are dropped and counted; without `labelled`, only empty texts are bad rows, and kept

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*self.texts, *filter(None, (self.label if self.labelled else "", self.start if self.labelled else "", self.id)))
