"""Chunks by the rules of conlleval: each rule by hand, random tags against regular expressions, and what the script itself printed.

PRINTED holds the figures of the Perl script (version 2004-01-26) for the sentences that `sentences` and `altered` draw here, and for real
ones; `altered` and they must not change without it.
"""

import itertools
import random
import re

import pytest

from electra_jax.finetune.tag_metrics import Chunk, Counts, chunks, published_chunks, score_tags

# Each rule of `chunks`: tags, and the chunks as TYPE:FIRST-LAST.
RULES = {
    "IOB2": ("B-NP I-NP O B-VP", "NP:0-1 VP:3-3"),
    "IOB1: B only parts neighbours of one type": ("I-NP I-NP B-NP I-NP O I-VP", "NP:0-1 NP:2-3 VP:5-5"),
    "IOE2": ("I-NP E-NP E-NP I-NP E-NP", "NP:0-1 NP:2-2 NP:3-4"),
    "IOE1: E only parts neighbours of one type": ("I-NP E-NP I-NP I-NP O I-NP", "NP:0-1 NP:2-3 NP:5-5"),
    "I begins after O": ("O I-NP", "NP:1-1"),
    "I begins at the start of a sentence": ("I-NP", "NP:0-0"),
    "E begins after O": ("O E-NP O", "NP:1-1"),
    "another type begins a chunk at I": ("B-NP I-VP I-VP I-NP", "NP:0-0 VP:1-2 NP:3-3"),
    "another type begins a chunk at E": ("B-NP E-VP", "NP:0-0 VP:1-1"),
    "B after B": ("B-NP B-NP", "NP:0-0 NP:1-1"),
    "E does not part I from B before it": ("B-NP I-NP E-NP", "NP:0-2"),
    "the first hyphen parts the type": ("B-my-type I-my-type I-my-other", "my-type:0-1 my-other:2-2"),
    "no prefix before the hyphen": ("-NP -NP O -NP", "NP:0-1 NP:3-3"),
    "other prefixes go on": ("U-NP L-NP I-NP U-VP", "NP:0-2 VP:3-3"),
    "other prefixes do not begin a chunk without type": ("NN NN O VB", ""),
    "no types": ("B I O I B E I O E", ":0-1 :3-3 :4-5 :6-6 :8-8"),
    "a chunk without a type": ("B-NP I I-NP", "NP:0-0 :1-1 NP:2-2"),
    "an empty type": ("B- I-", ":0-1"),
    "O with a type": ("B-NP O-NP I-NP O-NP X-NP", "NP:0-0 NP:2-2"),
    "a full stop is outside": ("B-NP . I-NP . .", "NP:0-0 NP:2-2"),
    "I and E do not begin after a full stop of their own type": (". I . E .-NP I-NP", ""),
    "no chunk": ("O O", ""),
    "no word": ("", ""),
    "brackets": ("[-NP [-NP O ]-NP ]-NP", "NP:0-0 NP:1-1 NP:3-3 NP:4-4"),
}
# Where the script does otherwise; its chunks are given third.
BEYOND_THE_SCRIPT = {
    "BIOES": ("S-NP B-NP E-NP B-NP I-NP E-NP S-NP O S-VP", "NP:0-0 NP:1-2 NP:3-5 NP:6-6 VP:8-8", "one NP of 7 words"),
    "S after I": ("B-NP I-NP S-NP I-NP", "NP:0-1 NP:2-2 NP:3-3", "one NP of 4 words"),
    "any prefix after E": ("E-NP X-NP", "NP:0-0 NP:1-1", "one NP of 2 words"),
    "type 0": ("B-0 S-0", "0:0-0 0:1-1", "one of no type"),
    "B after another prefix": ("X-NP B-NP", "NP:0-0 NP:1-1", "one NP of 2 words"),
    "a full stop of the chunk's type": ("B-NP .-NP I-NP", "NP:0-0", "one NP of 3 words"),
}


def parsed(text: str) -> list[Chunk]:
    parts = [re.fullmatch(r"(.*):(\d+)-(\d+)", part).groups() for part in text.split()]
    return [Chunk(type_, int(first), int(last)) for type_, first, last in parts]


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(rule):
    tags, want = RULES[rule]
    assert chunks(tags.split()) == parsed(want)


@pytest.mark.parametrize("rule", BEYOND_THE_SCRIPT)
def test_where_the_script_does_otherwise(rule):
    tags, want, _ = BEYOND_THE_SCRIPT[rule]
    assert chunks(tags.split()) == parsed(want)


# --- Random tags

ALPHABETS = {  # prefixes, types
    "IOB": (("O", "B", "I"), ("NP", "VP", "a-b", "")),
    "IOE": (("O", "I", "E"), ("NP", "VP", "a-b", "")),
    "strange": (("O", "I", "X", ""), ("NP", "VP", "a-b")),
    "BIOES": (("O", "B", "I", "E", "S"), ("NP", "VP", "")),
    "all": (("O", "B", "I", "E", "S", ".", "[", "]", "X", ""), ("NP", "VP", "a-b", "0", "")),
}


def sentences(alphabet: str, seed: int) -> list[list[str]]:
    """1,000 sentences of 0 to 11 random tags, most of them malformed."""
    r = random.Random(f"{alphabet} {seed}")
    prefixes, types = ALPHABETS[alphabet]
    made = []
    for _ in range(1000):
        words = [(prefixes[int(r.random() * len(prefixes))], types[int(r.random() * len(types))]) for _ in range(int(r.random() * 12))]
        made.append([prefix if prefix == "O" or not type_ else f"{prefix}-{type_}" for prefix, type_ in words])
    return made


def altered(tags: list[list[str]], seed: int) -> list[list[str]]:
    """Predictions that are right but for one tag in six, which is taken from anywhere."""
    r, every = random.Random(seed), sorted({tag for sentence in tags for tag in sentence})
    return [[every[int(r.random() * len(every))] if r.random() < 1 / 6 else tag for tag in sentence] for sentence in tags]


def chunks_by_pattern(tags: list[str]) -> list[Chunk]:
    """The same chunks from the prefixes of each stretch of words of one type, as a regular expression finds them."""
    words = [re.fullmatch(r"([^-]*)-?(.*)", tag).groups() for tag in tags]
    letters = [(("X" if prefix not in list("OBIES.[]") else prefix.replace("[", "S").replace("]", "S")), type_) for prefix, type_ in words]
    found, number = [], 0
    for (outside, type_), group in itertools.groupby(letters, key=lambda word: (word[0] in "O.", word[1])):
        stretch = "".join(prefix for prefix, _ in group)
        if not outside:
            before, type_before = letters[number - 1] if number else ("O", "")
            start = 0
            if type_before == type_ and not (before == "O" and stretch[0] in "BIES"):
                start = re.match("[XI]*E?", stretch).end()  # after a word outside, of the same type, these do not begin a chunk
            for match in re.finditer("[SE]|[BIX][IX]*E?", stretch[start:]):
                found.append(Chunk(type_, number + start + match.start(), number + start + match.end() - 1))
        number += len(stretch)
    return found


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_random_tags_against_regular_expressions(alphabet):
    found = 0
    for tags in sentences(alphabet, 0):
        assert chunks(tags) == chunks_by_pattern(tags), tags
        found += len(chunks(tags))
    assert found > 1000


# --- What the script printed of `altered(tags, 1)`

PRINTED = {  # name: words; gold, predicted and right chunks; accuracy in percent; the same three of each type
    "IOB": (
        (5507, 3409, 3585, 2860, 85.382241),
        {"": (868, 897, 722), "NP": (839, 881, 696), "VP": (854, 910, 721), "a-b": (848, 897, 721)},
    ),
    "IOE": (
        (5465, 3430, 3584, 2873, 85.507777),
        {"": (832, 859, 687), "NP": (824, 876, 693), "VP": (905, 934, 757), "a-b": (869, 915, 736)},
    ),
    "strange": (
        (5653, 3297, 3396, 2618, 85.653635),
        {"NP": (1106, 1142, 871), "VP": (1097, 1127, 878), "a-b": (1094, 1127, 869)},
    ),
    "conll2000/test.txt": (
        (47377, 23852, 29184, 18062, 84.325728),
        {
            "ADJP": (438, 1232, 359),
            "ADVP": (866, 1550, 715),
            "CONJP": (9, 835, 7),
            "INTJ": (2, 410, 1),
            "LST": (5, 803, 3),
            "NP": (12422, 12743, 8742),
            "PP": (4811, 4821, 4066),
            "PRT": (106, 493, 94),
            "SBAR": (535, 1302, 470),
            "VP": (4658, 4995, 3605),
        },
    ),
    "wnut17/emerging.dev.conll": (
        (15733, 836, 3140, 649, 84.592894),
        {
            "corporation": (34, 451, 25),
            "creative-work": (105, 523, 69),
            "group": (39, 460, 31),
            "location": (74, 428, 55),
            "person": (470, 779, 379),
            "product": (114, 499, 90),
        },
    ),
}


def assert_as_printed(name: str, gold: list[list[str]], predicted: list[list[str]]) -> None:
    (words, *overall, accuracy), by_type = PRINTED[name]
    got = score_tags(gold, predicted)
    assert (got.num_words, got.overall) == (words, Counts(*overall))
    assert got.accuracy == pytest.approx(accuracy / 100, abs=1e-8)
    assert list(got.by_type.items()) == sorted((type_, Counts(*counts)) for type_, counts in by_type.items())


@pytest.mark.parametrize("alphabet", ["IOB", "IOE", "strange"])
def test_random_tags_as_the_script_scores_them(alphabet):
    gold = sentences(alphabet, 0)
    assert_as_printed(alphabet, gold, altered(gold, 1))


@pytest.mark.parametrize("name", ["conll2000/test.txt", "wnut17/emerging.dev.conll"])
def test_real_tags_as_the_script_scores_them(name, shared_data):
    gold = [[]]
    for line in (shared_data / name).read_text(encoding="utf-8").splitlines():
        if line.strip():
            gold[-1].append(line.split()[-1])
        elif gold[-1]:
            gold.append([])
    assert_as_printed(name, gold, altered(gold, 1))


def spans_as(scheme: str, seed: int) -> list[list[str]]:
    """1,000 sentences of the same random chunks, written in IOB2 or BIOES."""
    r, made = random.Random(seed), []
    for _ in range(1000):
        tags = []
        while (draw := r.random()) < 0.85:
            type_ = ("NP", "VP", "PP")[int(r.random() * 3)]
            size = 1 + int(r.random() * 4)
            if draw < 0.3:
                tags += ["O"] * size
            elif scheme == "IOB2":
                tags += [f"B-{type_}", *[f"I-{type_}"] * (size - 1)]
            else:
                tags += [f"B-{type_}", *[f"I-{type_}"] * (size - 2), f"E-{type_}"] if size > 1 else [f"S-{type_}"]
        made.append(tags)
    return made


def test_bioes_is_scored_as_its_chunks_in_iob2():
    """What S, and E before B, are read as: conlleval itself is right on IOB2 alone."""
    for iob2, bioes in zip(spans_as("IOB2", 0), spans_as("BIOES", 0), strict=True):
        assert chunks(iob2) == chunks(bioes) == published_chunks(iob2) == published_chunks(bioes)


def test_the_published_chunks():
    """As finetune/tagging/tagging_utils.py of google-research/electra finds them in tags that are not well-formed."""
    assert published_chunks("I-NP I-VP".split()) == parsed("VP:0-1")
    assert published_chunks("I-NP B-NP I-NP O I-PP I-NP".split()) == parsed("NP:0-0 NP:1-2 NP:4-5")
    assert published_chunks("B-NP E-NP I-NP E-VP S-NP I-NP".split()) == parsed("VP:0-3 NP:4-5")
    assert published_chunks([]) == published_chunks(["O"]) == []


# --- Counting


def test_a_chunk_is_right_by_its_ends_and_its_type_alone():
    gold = ["B-NP I-NP I-NP O B-VP".split()]
    assert score_tags(gold, ["B-NP I-NP O O B-VP".split()]).overall == Counts(2, 2, 1)  # another end
    assert score_tags(gold, ["O I-NP I-NP O B-VP".split()]).overall == Counts(2, 2, 1)  # another beginning
    assert score_tags(gold, ["B-PP I-PP I-PP O B-VP".split()]).overall == Counts(2, 2, 1)  # another type
    got = score_tags(gold, ["I-NP I-NP E-NP O I-VP".split()])  # other prefixes
    assert (got.overall, got.accuracy) == (Counts(2, 2, 2), 2 / 5)


def test_no_chunk_runs_from_one_sentence_into_the_next():
    assert score_tags([["B-NP"], [], ["I-NP"]], [["B-NP"], [], ["I-NP"]]).overall == Counts(2, 2, 2)


def test_types_that_only_one_side_has_are_listed():
    got = score_tags([["B-b", "B-a", "O"]], [["B-c", "B-a", "O"]])
    assert list(got.by_type.items()) == [("a", Counts(1, 1, 1)), ("b", Counts(1, 0, 0)), ("c", Counts(0, 1, 0))]
    assert got.figures() == {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "accuracy": 2 / 3}
    assert (got.by_type["b"].precision, got.by_type["b"].f1, got.by_type["c"].recall, got.by_type["c"].f1) == (0.0, 0.0, 0.0, 0.0)


def test_without_a_chunk_all_is_0_but_the_accuracy():
    assert score_tags([["O", "O"]], [["O", "O"]]).figures() == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}


def test_f1_is_of_precision_and_recall():
    for gold, predicted, right in itertools.product(range(4), range(4), range(4)):
        if right <= min(gold, predicted):
            counts = Counts(gold, predicted, right)
            both = counts.precision + counts.recall
            assert counts.f1 == pytest.approx(2 * counts.precision * counts.recall / both if both else 0.0)


def test_accuracy_compares_prefix_and_type():
    assert score_tags([["B-NP", "O-NP", "B-", "-NP"]], [["B-VP", "O", "B", "NP"]]).accuracy == 1 / 4  # "B-" is "B"


def test_what_cannot_be_scored_is_refused():
    for gold in ([], [[]], [[], []]):
        with pytest.raises(ValueError, match="no word"):
            score_tags(gold, gold)
    with pytest.raises(ValueError, match="sentence 1 .* has 2 gold tags and 1 predicted"):
        score_tags([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError):
        score_tags([["O"]], [])
