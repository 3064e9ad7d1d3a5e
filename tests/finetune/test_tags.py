"""Schemes of tags, into one another and into spans; what breaks one."""

import random
import re

import pytest

from electra_jax.finetune import tags

IOB1 = ("I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "I-ORG", "B-ORG", "I-ORG")
IOB2 = ("B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-ORG", "I-ORG", "B-ORG", "I-ORG")
BIOES = ("B-PER", "E-PER", "S-PER", "O", "S-LOC", "B-ORG", "E-ORG", "B-ORG", "E-ORG")
SPANS = [(0, 2, "PER"), (2, 3, "PER"), (4, 5, "LOC"), (5, 7, "ORG"), (7, 9, "ORG")]


@pytest.mark.parametrize("given", [IOB1, IOB2, BIOES])
def test_schemes_into_one_another(given):
    assert tags.spans(given) == SPANS
    assert [tags.convert(given, scheme) for scheme in ("iob1", "iob2", "bioes")] == [IOB1, IOB2, BIOES]


def test_any_spans_survive_all_schemes():
    r = random.Random(0)
    for _ in range(300):
        length, position, spans = r.randrange(1, 12), 0, []
        while position < length:
            end = r.randrange(position, length) + 1
            if r.random() < 0.7:
                spans.append((position, end, r.choice(["NP", "VP", "creative-work"])))
            position = end
        written = {scheme: tags.write(spans, length, scheme) for scheme in ("iob1", "iob2", "bioes")}
        for scheme, sequence in written.items():
            assert tags.spans(sequence) == spans and tags.first_break(sequence, scheme) is None
            if spans:
                assert tags.scheme_of([sequence, written[scheme]]) == scheme
            assert tags.normalized([sequence], scheme, False, None) == ([written["iob2"]], 0)
    bilou = tuple(tag.replace("E-", "L-").replace("S-", "U-") for tag in BIOES)
    assert tags.spans(["U-A", "U-A", "B-A", "L-A"]) == [(0, 1, "A"), (1, 2, "A"), (2, 4, "A")]
    assert tags.convert(bilou, "iob2") == IOB2 and tags.first_break(bilou, "bioes") is None


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (["O", "I-A", "I-A"], [(1, 3, "A")]),  # I after O opens
        (["B-A", "I-B", "I-B"], [(0, 1, "A"), (1, 3, "B")]),  # a change of type parts
        (["B-A", "B-A", "I-A"], [(0, 1, "A"), (1, 3, "A")]),
        (["E-A", "E-A", "O", "S-A", "I-A"], [(0, 1, "A"), (1, 2, "A"), (3, 4, "A"), (4, 5, "A")]),  # E and S close
        (["B-A", "E-A", "I-A"], [(0, 2, "A"), (2, 3, "A")]),
        (["B-A", "S-A"], [(0, 1, "A"), (1, 2, "A")]),
        ([], []),
    ],
)
def test_spans_are_read_as_conlleval_reads_them(sequence, expected):
    assert tags.spans(sequence) == expected


@pytest.mark.parametrize(
    ("scheme", "sequence", "position", "mend"),
    [
        ("iob2", ["O", "I-A"], 1, "write B-A"),
        ("iob2", ["I-A"], 0, "follows the beginning.*write B-A"),
        ("iob2", ["B-B", "I-A"], 1, "I-A follows B-B.*write B-A"),
        ("iob1", ["O", "B-A"], 1, "write I-A"),
        ("iob1", ["I-B", "B-A"], 1, "write I-A"),
        ("bioes", ["B-A", "O"], 0, "write S-A"),
        ("bioes", ["B-A", "I-A"], 1, "write E-A"),
        ("bioes", ["B-A", "E-B"], 0, "write S-A"),
        ("bioes", ["O", "E-A"], 1, "write S-A"),
        ("bioes", ["S-A", "I-A", "E-A"], 1, "write B-A"),
        ("iob2", ["B-A", "E-A"], 1, "no tag of IOB2"),
        ("iob2", ["B_A"], 0, "neither O nor"),
        ("iob2", ["B-"], 0, "neither O nor"),
    ],
)
def test_what_breaks_a_scheme(scheme, sequence, position, mend):
    found = tags.first_break(sequence, scheme)
    assert found[0] == position and re.search(mend, found[1])


def test_the_scheme_of_a_file():
    assert tags.scheme_of([["NN", "VB"], ["DT"]]) == "tokens"
    assert tags.scheme_of([["O", "O"]]) == "iob2"
    assert tags.scheme_of([IOB2, IOB2, ["O", "I-A"]]) == "iob2"  # its odd tag is the one that is told
    assert tags.scheme_of([IOB1, IOB1, ["O", "B-A"]]) == "iob1"
    assert tags.scheme_of([["O", "S-A"]]) == "bioes"
