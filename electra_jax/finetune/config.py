"""Which task a run fine-tunes on (a known one by its name, or a user's own), and how it is learned. No jax."""

import dataclasses
import math

from electra_jax.cli import UserError
from electra_jax.finetune.readers import FORMATS
from electra_jax.finetune.tags import SCHEMES
from electra_jax.finetune.tasks import KINDS, OWN, TASKS
from electra_jax.options import at_least, from_zero_up, one_of, option

NULL_THRESHOLD = -2.75  # for SQuAD 2.0's no-answer score: qa_na_threshold in configure_finetuning.py
WIDEST_RANGE = 1e30  # from the lowest number to the highest, to stay within float32
HEADS = ("classification", "sequence_classification", "token_classification", "joint_answer", "question_answering")


def null_threshold(head: str) -> float:
    """The threshold of the no-answer score unless finetune.no_answer_threshold is given: as published, and 0 for transformers' own head."""
    return 0.0 if head == "question_answering" else NULL_THRESHOLD


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    name: str = option(OWN, f"{', '.join(TASKS)}; or {OWN}: a task of yours, which the options below describe")
    path: str = option("", "the folder of the task's files, or of several tasks' folders; or a file of yours; tfds: or tfds:NAME for TFDS")
    train: str = option("", "the name of the training file in task.path (or of TFDS's split); '': the task's own")
    dev: str = option("", "the name of the file that is evaluated on; '': the task's own")
    test: str = option("", "the name of the file that is predicted; '': the task's own")
    dev_share: float = option(0.1, "in a task of yours without a dev file, hold out this share of the training rows, chosen by a hash")
    dev_from_train: float = option(0.0, "take this share of the training rows, chosen by a hash, as the dev set: to choose settings by")
    format: str = option("auto", f"auto (by the files' endings), {', '.join(FORMATS)}")
    kind: str = option("class", "class: one label; classes: several or none; number; tags: one for each word; answer: a part of a context")
    text_columns: tuple = option((), "one; two of a pair; of tags the words'; of answers ('question', 'context'). (): text, or words")
    label_column: str = option("", "that of labels, numbers, tags or answers; '': label, tags or answers; in CoNLL columns the last")
    start_column: str = option("", "that of an answer's offset in characters; '': none, the context has the answer's text exactly once")
    id_column: str = option("", "a name for each row, which predictions repeat; '': the row's number")
    labels: tuple = option((), "all labels in the order of the model's outputs; (): those of the training file, sorted")
    label_range: tuple | None = option(None, "of numbers: (lowest, highest); None: those of the training file")
    separator: str = option(",", "between several labels in one text")
    header: bool = option(True, "the first line of a .csv or .tsv names its columns; otherwise they are numbered from '0'")
    delimiter: str = option("", "between the columns of a .csv or .tsv; '': a comma, a tab")
    quotes: bool | None = option(None, "columns may stand in double quotes; None: in a .csv, not in a .tsv")
    tag_scheme: str = option("", f"auto, {', '.join(SCHEMES)} (each tag is of its word alone); '': the task's own, of yours auto")
    lenient_tags: bool = option(False, "tags that break their scheme are read as conlleval reads them, and counted, not refused")
    bad_rows: str = option(
        "", "refuse or drop (and count) rows with an empty text or another number of columns; '': the task's own, for yours refuse"
    )

    def __post_init__(self):
        one_of("task.name", self.name, (*TASKS, OWN))
        one_of("task.kind", self.kind, KINDS)
        one_of("task.format", self.format, ("auto", *FORMATS))
        one_of("task.tag_scheme", self.tag_scheme, ("", "auto", *SCHEMES))
        one_of("task.bad_rows", self.bad_rows, ("", "refuse", "drop"))
        for name in ("text_columns", "labels"):
            if not all(isinstance(each, str) and each for each in getattr(self, name)):
                raise UserError(f"task.{name} is {getattr(self, name)}: it must be a tuple of texts, such as ('a', 'b')")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"task.labels is {self.labels}: each label once")
        if not 0.0 < self.dev_share < 1.0:
            raise UserError(f"task.dev_share is {self.dev_share}: it must be between 0 and 1")
        if not 0.0 <= self.dev_from_train < 1.0:
            raise UserError(f"task.dev_from_train is {self.dev_from_train}: it must be from 0 to below 1")
        if self.label_range is not None:
            numbers = all(isinstance(each, int | float) and math.isfinite(each) for each in self.label_range)
            if not (numbers and len(self.label_range) == 2 and 0 < self.label_range[1] - self.label_range[0] <= WIDEST_RANGE):
                raise UserError(f"task.label_range is {self.label_range}: it must be (lowest, highest), at most {WIDEST_RANGE:g} apart")
        if len(self.delimiter) > 1 or self.delimiter in ("\n", "\r", '"'):
            raise UserError(f"task.delimiter is {self.delimiter!r}: it must be one character, and no line end or quote")
        if not self.separator:
            raise UserError("task.separator is empty: it must be what stands between two labels, such as ','")
        self._check_task()

    def _check_task(self):
        kind = self.kind if self.name == OWN else TASKS[self.name].kind
        wide = {"tags": (1,), "answer": (2,)}.get(kind, (1, 2))
        if self.text_columns and len(self.text_columns) not in wide:
            raise UserError(f"task.text_columns is {self.text_columns}: of task.kind={kind} it names {' or '.join(map(str, wide))}")
        of_kind = {
            "start_column": ("answer",),
            "label_range": ("number",),
            "separator": ("classes",),
            "labels": ("class", "classes"),
            "tag_scheme": ("tags",),
            "lenient_tags": ("tags",),
        }
        of_yours = ["format", "kind", "text_columns", "label_column", "start_column", "id_column", "labels", "label_range", "separator"]
        of_yours += ["header", "delimiter", "quotes", "dev_share"]
        if self.name == "ud":  # whose files have the tags of two schemes
            of_yours.remove("label_column")
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == field.default:
                continue
            if self.name != OWN and field.name in of_yours:
                raise UserError(f"task.{field.name} describes a task of yours (task.name={OWN}), and {self.name} has its own: leave it out")
            if kind not in of_kind.get(field.name, KINDS):
                raise UserError(f"task.{field.name} is for task.kind={' or '.join(of_kind[field.name])}, and this is {kind}: leave it out")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """How a task is learned. Each field from `pooler_slot` on keeps one defect of the published code (google-research/electra), and
    configs/finetune.py:TASK,faithful sets them all. The functions that receive a field say where that code has the defect."""

    head: str = option("", f"{', '.join(HEADS)}; '': the published one for the task's kind")
    length: int = option(0, "tokens per row; 0: the task's, as published")
    from_scratch: bool = option(False, "begin with random weights in the shape of init_from: what its training was worth")
    epochs: float = option(0.0, "passes over the training rows, from which train.steps follows; 0: the task's, as published")
    warmup_share: float = option(0.1, "the share of the steps until the rate is at its peak, unless schedule.warmup_steps is given")
    layer_decay: float = option(0.8, "the rate of each layer as a share of the one above it; 1: all learn alike")
    row_lengths: int = option(6, "batches have at most so many row lengths, each a program to compile; 1: all rows are padded to `length`")
    both_orders: bool | None = option(None, "train on each pair in both orders; None: as published, for MRPC and STS-B")
    no_answer_threshold: float | None = option(None, "a larger no-answer score means no answer; None: -2.75, of question_answering 0")
    keep: str = option("best", "which seeds' models are kept in the workdir: best, or all")
    pooler_slot: bool = option(False, "layer-wise rates count a layer for a pooler that is not there: the last layer has the decay twice")
    sum_over_batch: bool = option(False, "the loss is a sum over the batch, so that the gradients' norm is nearly always clipped")
    one_shuffle: bool = option(False, "every seed sees the rows in the same order")
    answerable_by_question: bool = option(False, "windows that miss the answer to an answerable question are labelled as answerable")
    match_lowered_answers: bool = option(False, "training questions without their lower-cased answer around its offset are dropped")
    answers_by_words: bool = option(False, "answers are found as whole words and pieces, predicted texts by aligning lower-cased letters")
    cut_by_word_count: bool = option(False, "tagged sentences are cut by a rule that counts words as well, often before the row is full")
    lower_tagged_words: bool = option(False, "tagged words are lower-cased and stripped of accents with every vocabulary")
    tags_type: int = option(0, "the type of a tagged sentence's tokens: published is 1")
    published_tag_scores: bool = option(False, "spans end before B, S, O and with the sentence alone; words cut off are not scored")

    def __post_init__(self):
        one_of("finetune.head", self.head, ("", *HEADS))
        one_of("finetune.keep", self.keep, ("best", "all"))
        from_zero_up(self, "finetune", "epochs")
        at_least(self, "finetune", row_lengths=1)
        if self.no_answer_threshold is not None and math.isnan(self.no_answer_threshold):
            raise UserError(f"finetune.no_answer_threshold is {self.no_answer_threshold}: it must be a number")
        if self.length:
            at_least(self, "finetune", length=4)  # [CLS], a piece of a pair's first text, and two [SEP]
        if not 0.0 <= self.warmup_share < 1.0:
            raise UserError(f"finetune.warmup_share is {self.warmup_share}: it must be from 0 to below 1")
        if not 0.0 <= self.layer_decay <= 1.0:
            raise UserError(f"finetune.layer_decay is {self.layer_decay}: it must be from 0 to 1")
        if self.tags_type not in (0, 1):
            raise UserError(f"finetune.tags_type is {self.tags_type}: it must be 0 or 1")
