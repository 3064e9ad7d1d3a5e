"""Tags scored in chunks as by conlleval, the scorer of CoNLL-2000 (version 2004-01-26), which also reads malformed tags.

A chunk is right if its first word, its last word and its type are those of a gold chunk. `chunks` has conlleval's rules for where chunks
begin and end, `published_chunks` those of ELECTRA's published code; the rest is counting.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

OUTSIDE = ("O", ".")
ALONE = ("S", "[", "]")  # prefixes of chunks of one word


class Chunk(NamedTuple):
    type: str  # "" if its tags have no type
    first: int  # the numbers of the first and the last word in the sentence, both included
    last: int


class Counts(NamedTuple):
    """How many chunks there are. A quotient with the denominator 0 is 0, as in conlleval."""

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
    by_type: dict[str, Counts]  # for each type of a gold or predicted chunk, sorted
    accuracy: float  # the fraction of words whose tag is right
    num_words: int

    def figures(self) -> dict[str, float]:
        """The figures of the second line that conlleval prints, as fractions."""
        counts = self.overall
        return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1, "accuracy": self.accuracy}


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix, type) around the first hyphen: "B-my-type" has the type "my-type"; a tag without a hyphen is a prefix, its type ""."""
    prefix, _, type_ = tag.partition("-")
    return prefix, type_


def chunks(tags: Iterable[str]) -> list[Chunk]:
    """The chunks of one sentence, in order, by the rules of conlleval. The tags may be in IOB1, IOB2, IOE1, IOE2 or BIOES.

    - A word with the prefix O or a full stop is outside of chunks; if it has a type ("O-NP"), that matters to the word's accuracy alone.
    - A word begins a chunk if its type differs from the type of the word before, whatever the prefixes: I-NP after O, I-NP after B-VP.
    - If the types are the same, B begins a chunk, and so does E or I after E or after O ("O" "I" without types).
    - So E ends a chunk, and a chunk ends before the next one begins, before a word outside of chunks, and with the sentence.
    - A word of any other prefix continues the chunk of its type, if one is open.

    conlleval does not know S, and does not end a chunk between E-NP and B-NP, so it merges neighbours of one type in BIOES. Here S is a
    chunk of one word and E always ends a chunk, so that the score equals conlleval's for the same chunks in IOB2; seqeval does the same.
    Four more oddities of conlleval are not kept, because no tag scheme leads to them. It reads the type "0" as no type. It continues a
    chunk through a full stop of the same type. It lets B-NP continue a chunk after X-NP, where X is an unknown prefix. And it opens a
    chunk at "[" without ending the chunk before, which then is never right.
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
    """Whether a word that is not outside of chunks begins one. before: the prefix of the word before; prefix: its own."""
    return not same_type or prefix == "B" or prefix in ALONE or before in ("E", *ALONE) or (before == "O" and prefix in ("I", "E"))


def published_chunks(tags: Iterable[str]) -> list[Chunk]:
    """The chunks of one sentence as the published code finds them (google-research/electra, finetune/tagging/tagging_utils.py,
    get_span_labels). A chunk ends only before B, S and O and with the sentence; it does not end after E, nor where the type changes, and
    its type is that of its last word. On well-formed IOB2 and BIOES this gives the same as `chunks`; in IOB1 it merges neighbours of
    different types.
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
      find: the function that finds the chunks of a sentence.

    ValueError if the two have different numbers of sentences or words, or no word at all.
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
