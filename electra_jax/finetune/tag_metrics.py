"""Tags scored in chunks, as conlleval does it: the scorer of CoNLL-2000 (version 2004-01-26), whose reading of malformed tags is lenient.

A chunk is right if its first word, its last word and its type are those of a gold chunk. All that is special is where chunks begin and
end (`chunks`); the rest is counting. How the published code of ELECTRA finds them is beside it (`published_chunks`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

OUTSIDE = ("O", ".")
ALONE = ("S", "[", "]")  # a chunk of one word each


class Chunk(NamedTuple):
    type: str  # "" where the tag has none
    first: int  # numbers of words in their sentence, both included
    last: int


class Counts(NamedTuple):
    """How many chunks there are. A quotient of nothing is 0, as in conlleval."""

    gold: int
    predicted: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.gold + self.predicted) if self.right else 0.0


class TagScores(NamedTuple):
    overall: Counts
    by_type: dict[str, Counts]  # sorted; each type of a gold or a predicted chunk
    accuracy: float  # the fraction of words whose tag is right
    num_words: int

    def figures(self) -> dict[str, float]:
        """What conlleval prints in its second line, as fractions."""
        counts = self.overall
        return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1, "accuracy": self.accuracy}


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix, type) around the first hyphen: "B-my-type" has the type "my-type"; a tag without a hyphen is a prefix, its type ""."""
    prefix, _, type_ = tag.partition("-")
    return prefix, type_


def chunks(tags: Iterable[str]) -> list[Chunk]:
    """The chunks of one sentence, in order, by the rules of conlleval; tags may be of IOB1, IOB2, IOE1, IOE2 or BIOES.

    - O and a full stop stand outside; a type after them ("O-NP") counts for nothing but the word's accuracy.
    - A word begins a chunk if its type differs from the type of the word before, whatever the prefixes: I-NP after O, I-NP after B-VP.
    - With the same type, B begins one, and so does E or I after E or after O ("O" "I" without types).
    - So E ends a chunk, and a chunk ends before the next begins, before a word outside, and with the sentence.
    - A word of any other prefix goes on with the chunk of its type, if one is open.

    conlleval knows no S, and does not end a chunk between E-NP and B-NP, so it merges neighbours of one type in BIOES. Here S is a chunk
    of one word and E always ends one, which gives what conlleval gives for the same chunks in IOB2; seqeval does the same. Four more
    oddities are not kept, none of which a tag scheme leads to: conlleval takes the type "0" for none; lets a chunk run on through a full
    stop of its own type; lets B-NP go on with a chunk after X-NP of an unknown prefix; and opens a chunk at "[" without ending the one
    before, which then is never right.
    """
    found: list[Chunk] = []
    open_first, before, type_before = None, "O", ""
    number = -1
    for number, tag in enumerate(tags):
        prefix, type_ = split_tag(tag)
        begins = prefix not in OUTSIDE and _begins(before, prefix, type_ == type_before)
        if open_first is not None and (begins or prefix in OUTSIDE):
            found.append(Chunk(type_before, open_first, number - 1))
            open_first = None
        if begins:
            open_first = number
        before, type_before = prefix, type_
    if open_first is not None:
        found.append(Chunk(type_before, open_first, number))
    return found


def _begins(before: str, prefix: str, same_type: bool) -> bool:
    """Whether a word that is not outside begins a chunk, by the prefix of the word before and its own."""
    return not same_type or prefix == "B" or prefix in ALONE or before in ("E", *ALONE) or (before == "O" and prefix in ("I", "E"))


def published_chunks(tags: Iterable[str]) -> list[Chunk]:
    """The chunks of one sentence as the published code finds them (google-research/electra, finetune/tagging/tagging_utils.py,
    get_span_labels): a chunk ends before B, S and O and with the sentence alone, neither after E nor where the type changes, and its
    type is that of its last word. The same as `chunks` on well-formed IOB2 and BIOES; in IOB1 it merges neighbours of other types.
    """
    found: list[Chunk] = []
    open_first, type_before = None, ""
    number = -1
    for number, tag in enumerate(tags):
        prefix, type_ = split_tag(tag)
        if open_first is not None and (prefix in ("B", "S") or tag == "O"):
            found.append(Chunk(type_before, open_first, number - 1))
            open_first = None
        if open_first is None and tag != "O":
            open_first = number
        type_before = type_
    if open_first is not None:
        found.append(Chunk(type_before, open_first, number))
    return found


def score_tags(
    gold: Iterable[Sequence[str]],
    predicted: Iterable[Sequence[str]],
    find: Callable[[Iterable[str]], list[Chunk]] = chunks,
) -> TagScores:
    """Precision, recall and F1 of the chunks, overall and by type, and the accuracy of the tags.

    Args:
      gold, predicted: a sequence of tags for each sentence; a sentence may be empty. No chunk runs from one into the next.
      find: the chunks of a sentence.

    ValueError: the two have not the same sentences, or there is no word.
    """
    counts = {name: Counter() for name in Counts._fields}
    num_words = num_right = 0
    for number, (truth, called) in enumerate(zip(gold, predicted, strict=True)):
        if len(truth) != len(called):
            raise ValueError(f"sentence {number} (from 0) has {len(truth)} gold tags and {len(called)} predicted")
        true_chunks, called_chunks = set(find(truth)), set(find(called))
        for name, some in (("gold", true_chunks), ("predicted", called_chunks), ("right", true_chunks & called_chunks)):
            counts[name].update(chunk.type for chunk in some)
        num_words += len(truth)
        num_right += sum(split_tag(one) == split_tag(other) for one, other in zip(truth, called, strict=True))
    if not num_words:
        raise ValueError("there is no word to score")
    by_type = {type_: Counts(*(counts[name][type_] for name in Counts._fields)) for type_ in sorted(counts["gold"] | counts["predicted"])}
    overall = Counts(*(counts[name].total() for name in Counts._fields))
    return TagScores(overall, by_type, num_right / num_words, num_words)
