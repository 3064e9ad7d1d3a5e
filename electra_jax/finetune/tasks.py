"""The tasks that a config can name: their files, columns, labels, metrics and published settings, in one record each.

Sources of the files' names and columns: nyu-mll/GLUE-baselines `download_glue_data.py`, rajpurkar/SQuAD-explorer, the pages of the CoNLL
shared tasks, leondz/emerging_entities_17, UniversalDependencies/UD_English-EWT. Sources of the orders of labels, epochs, row lengths and
both orders of a pair: google-research/electra `finetune/classification/classification_tasks.py` and `configure_finetuning.py`. `published`
is the table "Expected Results" of its README. Tasks that google-research/electra has not (WNLI, CoNLL-2003, UD, WNUT-17) take its defaults.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from electra_jax.finetune.readers.layout import Layout

OWN = "own"  # the name of a task that a config describes: see config.py
KINDS = ("class", "classes", "number", "tags", "answer")
# The metrics of each kind of task, the headline metric first.
METRICS = {
    "class": ("accuracy",),
    "classes": ("micro_f1", "macro_f1", "accuracy"),
    "number": ("spearman", "pearson"),
    "tags": ("f1", "precision", "recall", "accuracy"),
    "answer": ("f1", "exact"),
}


class Upload(NamedTuple):
    """A file of predictions as gluebenchmark.com takes it: the line `index<TAB>prediction`, then one line for each row of the test set."""

    file: str
    split: str  # the test set whose predictions it has
    rows: int


class Tfds(NamedTuple):
    """The same task in TensorFlow Datasets."""

    name: str
    splits: Mapping[str, str]  # ours -> theirs
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Task:
    """A task. Its splits are "train", "dev" and "test". MNLI has two dev and two test sets, "dev_matched", "dev_mismatched" and so on; the
    first dev set gives the headline."""

    name: str
    title: str  # as the paper's tables write it
    layout: Layout
    files: Mapping[str, tuple[str, ...]]  # split -> the names that its file may have in the task's folder, compressed or not
    folders: tuple[str, ...] = ()  # the names of the task's folder within a folder of several tasks
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)  # for splits whose files have another layout
    metrics: tuple[str, ...] = ()  # the headline metric first; (): METRICS of the kind
    epochs: float = 3.0
    length: int = 128  # tokens per row
    both_orders: bool = False  # train on each pair in both orders, because their order means nothing
    unanswerable: bool = False  # some questions have no answer
    uploads: tuple[Upload, ...] = ()
    tfds: Tfds | None = None
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)  # GLUE's: model size -> the median on the dev set, in percent
    trained_on: str = ""  # for a task without a training set: the task whose model predicts it
    source: str = ""  # where to get its files

    @property
    def kind(self) -> str:
        return self.layout.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the model's outputs. Those of tags, and of a user's own task, are known once the files have been
        read. Tags of spans are in BIOES here, as published."""
        return self.layout.labels

    @property
    def headline(self) -> str:
        return self.metrics[0]

    @property
    def of_spans(self) -> bool:
        """Whether its tags are of spans, which are in IOB2 in its examples. Otherwise each tag is of its word alone."""
        return self.kind == "tags" and self.layout.scheme != "tokens"

    def __post_init__(self):
        if not self.metrics:
            object.__setattr__(self, "metrics", METRICS[self.kind])

    def layout_of(self, split: str) -> Layout:
        """The layout of a split's file. `labelled` is off for test sets, whose rows may have a label but need not."""
        return dataclasses.replace(self.layouts.get(split, self.layout), labelled=not split.startswith("test"))


def learned_from(splits: Iterable[str]) -> tuple[str, str]:
    """The names of the training set and of the (first) dev set, by which the best seed is chosen."""
    return "train", next(split for split in splits if split.startswith("dev"))


BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("contradiction", "entailment", "neutral")
_GLUE = "gluebenchmark.com/tasks"
_SQUAD_SOURCE = "rajpurkar.github.io/SQuAD-explorer"
_TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def _sizes(small: float, base: float, large: float) -> dict[str, float]:
    return {"small": small, "base": base, "large": large}


def _glue(name: str, title: str, folders: tuple[str, ...], layout: Layout, rows: int, tfds: tuple[str, ...], **more) -> Task:
    """A task of GLUE with one dev set. tfds: (name in TFDS, the columns of texts there)."""
    upload = more.pop("upload", folders[0])
    theirs = dataclasses.replace(layout, texts=tfds[1:], label="label", id="idx")
    files = more.pop("files", _TSV)
    more["tfds"] = Tfds(f"glue/{tfds[0]}", {split: theirs for split, theirs in _SPLITS.items() if split in files}, theirs)
    return Task(name, title, layout, files, folders=folders, uploads=(Upload(f"{upload}.tsv", "test", rows),), source=_GLUE, **more)


def _tsv(labels: tuple[str, ...], label: str, *texts: str, kind: str = "class", **more) -> Layout:
    return Layout("glue", kind, texts, label, labels=labels, **more)


def _index(layout: Layout) -> Mapping[str, Layout]:
    """The layouts of a task whose test set has a column of row numbers, while train and dev have none."""
    return {"test": dataclasses.replace(layout, id="index")}


def _tags(texts: tuple[str, ...], label: str, scheme: str, format: str = "columns") -> Layout:
    return Layout(format, "tags", texts, label, scheme=scheme)


_COLA = Layout("glue", "class", ("3",), "1", labels=BINARY, header=False)  # train and dev have no header
_COLA_TEST = _tsv(BINARY, "label", "sentence", id="index")
_SST2 = _tsv(BINARY, "label", "sentence")
_MRPC = _tsv(BINARY, "Quality", "#1 String", "#2 String")
_STSB = _tsv((), "score", "sentence1", "sentence2", kind="number", range=(0.0, 5.0), id="index")
# Bad rows are dropped, because train.tsv has rows that a line end cuts in two (nyu-mll/GLUE-baselines issue 5), and empty questions.
_QQP = _tsv(BINARY, "is_duplicate", "question1", "question2", id="id", drop=True)
_MNLI = _tsv(MNLI, "gold_label", "sentence1", "sentence2", id="index")
_PAIR = _tsv(ENTAILMENT, "label", "sentence1", "sentence2", id="index")
_SQUAD = Layout("squad", "answer", ("question", "context"), "answers")
_TFDS_SQUAD = Layout("tfds", "answer", ("question", "context"), "answers", id="id")
_WORDS = ("0",)

TASKS = {
    task.name: task
    for task in (
        _glue(
            "cola",
            "CoLA",
            ("CoLA", "cola"),
            _COLA,
            1063,
            ("cola", "sentence"),
            layouts={"test": _COLA_TEST},
            metrics=("matthews", "accuracy"),
            published=_sizes(57.0, 67.7, 69.1),
        ),
        _glue(
            "sst2",
            "SST-2",
            ("SST-2", "sst"),
            _SST2,
            1821,
            ("sst2", "sentence"),
            layouts=_index(_SST2),
            published=_sizes(91.2, 95.1, 96.9),
        ),
        _glue(
            "mrpc",
            "MRPC",
            ("MRPC", "mrpc"),
            _MRPC,
            1725,
            ("mrpc", "sentence1", "sentence2"),
            layouts=_index(_MRPC),
            metrics=("accuracy", "f1"),
            both_orders=True,
            published=_sizes(88.0, 89.5, 90.8),
        ),
        _glue(
            "stsb",
            "STS-B",
            ("STS-B", "sts"),
            _STSB,
            1379,
            ("stsb", "sentence1", "sentence2"),
            epochs=10.0,
            both_orders=True,
            published=_sizes(87.5, 91.2, 92.6),
        ),
        _glue(
            "qqp",
            "QQP",
            ("QQP", "qqp"),
            _QQP,
            390_965,
            ("qqp", "question1", "question2"),
            metrics=("accuracy", "f1"),
            published=_sizes(89.0, 91.5, 92.4),
        ),
        Task(
            "mnli",
            "MNLI",
            _MNLI,
            # The diagnostic set is predicted with MNLI's model, as published (`classification_tasks.py`, MNLI.get_test_splits).
            files={split: (f"{split}.tsv",) for split in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")}
            | {"test_diagnostic": ("diagnostic.tsv", "../diagnostic/diagnostic.tsv", "../AX/AX.tsv")},
            folders=("MNLI", "mnli"),
            source=_GLUE,
            uploads=(
                Upload("MNLI-m.tsv", "test_matched", 9796),
                Upload("MNLI-mm.tsv", "test_mismatched", 9847),
                Upload("AX.tsv", "test_diagnostic", 1104),
            ),
            tfds=Tfds(
                "glue/mnli",
                {
                    "train": "train",
                    "dev_matched": "validation_matched",
                    "dev_mismatched": "validation_mismatched",
                    "test_matched": "test_matched",
                    "test_mismatched": "test_mismatched",
                },
                dataclasses.replace(_MNLI, texts=("premise", "hypothesis"), label="label", id="idx"),
            ),
            published=_sizes(81.3, 88.8, 90.9),
        ),
        _glue(
            "qnli",
            "QNLI",
            ("QNLI", "qnli"),
            _tsv(ENTAILMENT, "label", "question", "sentence", id="index"),
            5463,
            ("qnli", "question", "sentence"),
            published=_sizes(88.4, 93.2, 95.0),
        ),
        _glue(
            "rte",
            "RTE",
            ("RTE", "rte"),
            _PAIR,
            3000,
            ("rte", "sentence1", "sentence2"),
            epochs=10.0,
            published=_sizes(66.7, 82.7, 88.0),
        ),
        _glue(
            "wnli",
            "WNLI",
            ("WNLI", "wnli"),
            dataclasses.replace(_PAIR, labels=BINARY),
            146,
            ("wnli", "sentence1", "sentence2"),
        ),
        _glue(
            "ax",
            "AX",
            ("diagnostic", "mnli", "MNLI", "AX"),
            dataclasses.replace(_PAIR, labels=MNLI),
            1104,
            ("ax", "premise", "hypothesis"),
            files={"test": ("diagnostic.tsv", "AX.tsv")},
            upload="AX",
            metrics=("matthews", "accuracy"),
            trained_on="mnli",
        ),
        Task(
            "squad1",
            "SQuAD 1.1",
            _SQUAD,
            files={"train": ("train-v1.1.json", "train.json"), "dev": ("dev-v1.1.json", "dev.json")},
            folders=("squad", "squadv1"),
            source=_SQUAD_SOURCE,
            epochs=2.0,
            length=512,
            tfds=Tfds("squad/v1.1", {"train": "train", "dev": "validation"}, _TFDS_SQUAD),
        ),
        Task(
            "squad2",
            "SQuAD 2.0",
            _SQUAD,
            files={"train": ("train-v2.0.json", "train.json"), "dev": ("dev-v2.0.json", "dev.json")},
            folders=("squad",),
            source=_SQUAD_SOURCE,
            epochs=2.0,
            length=512,
            unanswerable=True,
            tfds=Tfds("squad/v2.0", {"train": "train", "dev": "validation"}, _TFDS_SQUAD),
        ),
        Task(
            "conll2003",
            "CoNLL-2003",
            # The shared task's files are in IOB1; copies whose files are called train.txt, valid.txt and test.txt are in IOB2.
            _tags(_WORDS, "-1", "auto"),
            files={"train": ("eng.train", "train.txt"), "dev": ("eng.testa", "valid.txt", "dev.txt"), "test": ("eng.testb", "test.txt")},
            folders=("conll2003", "ner"),
            source="www.clips.uantwerpen.be/conll2003/ner",
            tfds=Tfds("conll2003", {"train": "train", "dev": "dev", "test": "test"}, _tags(("tokens",), "ner", "auto", "tfds")),
        ),
        Task(
            "conll2000",
            "CoNLL-2000",
            _tags(_WORDS, "-1", "iob2"),
            # The shared task has no dev set. The published code is given the test set as dev.txt, and its README has the result on that
            # set.
            files={"train": ("train.txt",), "dev": ("dev.txt", "test.txt")},
            folders=("conll2000", "chunk"),
            source="www.clips.uantwerpen.be/conll2000/chunking",
            length=256,
        ),
        Task(
            "ud",
            "UD English-EWT",
            _tags(("form",), "upos", "tokens", "conllu"),
            files={split: (f"en_ewt-ud-{split}.conllu",) for split in ("train", "dev", "test")},
            folders=("ud_english_ewt", "UD_English-EWT"),
            source="github.com/UniversalDependencies/UD_English-EWT",
            metrics=("accuracy",),
            tfds=Tfds(
                "universal_dependencies/en_ewt",
                {"train": "train", "dev": "dev", "test": "test"},
                _tags(("tokens",), "upos", "tokens", "tfds"),
            ),
        ),
        Task(
            "wnut17",
            "WNUT-17",
            _tags(_WORDS, "-1", "iob2"),
            files={"train": ("wnut17train.conll",), "dev": ("emerging.dev.conll",), "test": ("emerging.test.annotated",)},
            folders=("wnut17", "emerging_entities_17"),
            source="github.com/leondz/emerging_entities_17",
        ),
    )
}
