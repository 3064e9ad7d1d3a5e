"""Readers of labelled files in the official formats with their traps, from files and from TFDS; what each says of a file that is wrong."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data.readers import tfds
from electra_jax.finetune import opening
from electra_jax.finetune.config import TaskConfig
from electra_jax.finetune.examples import Answers
from electra_jax.finetune.readers.layout import Layout
from electra_jax.finetune.tasks import TASKS
from tests.finetune.reading import CONTEXT, pairs, put, read, refused

# --- GLUE's TSV


def glue(name, split="train", **changes):
    return dataclasses.replace(TASKS[name].layout_of(split), **changes)


def test_mrpc_with_its_mark_and_free_quotes(tmp_path):
    """The file begins with a byte-order mark, and a quote has no other: a reader that heeds quotes would join the rows between."""
    rows = [
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t702876\t702977\tAmrozi accused his brother , whom he called " the witness " .\t"Referring to him , he said .',
        '0\t2108705\t2108831\t" Yucaipa owned it\t Yucaipa bought it ."',
        "1\t5\t6\tone\u2028line\ttwo\rone",
    ]
    path = put(tmp_path, "train.tsv", b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    examples = read(path, glue("mrpc")).examples
    assert [example.label for example in examples] == ["1", "0", "1"]
    assert examples[0].texts == ('Amrozi accused his brother , whom he called " the witness " .', '"Referring to him , he said .')
    assert examples[2].texts == ("one\u2028line", "two\rone")  # neither ends a line
    assert [(example.id, example.where) for example in examples] == [(str(n), f"{path}:{n + 2}") for n in range(3)]
    test = put(tmp_path, "test.tsv", 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n7\t1\t2\t"a\tb\n')
    assert read(test, glue("mrpc", "test")).examples == [("7", ('"a', "b"), None, f"{test}:2")]


_MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)


def test_mnli_and_the_diagnostic_set(tmp_path):
    """train and dev have another number of columns (one annotator or five), and gold_label is the last of them."""
    row = "3\t31193\t31193n\tgovernment\t( ( a ) b )\t( c )\t(ROOT a)\t(ROOT c)\tA premise .\tA hypothesis .\t"
    train = put(tmp_path, "train.tsv", f"{_MNLI}\tlabel1\tgold_label\n{row}neutral\tneutral\n")
    dev = put(
        tmp_path,
        "dev_matched.tsv",
        f"{_MNLI}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n{row}neutral\tentailment\tneutral\tneutral\tneutral\tentailment\n",
    )
    test = put(tmp_path, "test_matched.tsv", f"{_MNLI}\n{row.rstrip()}\n")
    texts = ("A premise .", "A hypothesis .")
    assert read(train, glue("mnli")).examples[0][:3] == ("3", texts, "neutral")
    assert read(dev, glue("mnli", "dev_matched")).examples[0][:3] == ("3", texts, "entailment")
    reading = read(test, glue("mnli", "test_matched"))
    assert reading.examples[0][:3] == ("3", texts, None) and reading.counts == {"rows": 1, "without a label": 1}
    ax = put(tmp_path, "diagnostic.tsv", "index\tsentence1\tsentence2\n0\tThe cat sat .\tThe cat did not sit .\n")
    assert read(ax, glue("ax", "test")).examples[0][:3] == ("0", ("The cat sat .", "The cat did not sit ."), None)
    unknown = put(tmp_path, "dev_mismatched.tsv", f"{_MNLI}\tgold_label\n{row}-\n")  # as the corpus itself marks a row without agreement
    refused(unknown, ":2: the label '-' is none of contradiction, entailment, neutral", layout=glue("mnli", "dev_mismatched"))


def test_qnli(tmp_path):
    path = put(tmp_path, "dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWhat is it?\tIt is that.\tnot_entailment\n")
    assert read(path, glue("qnli", "dev")).examples == [("0", ("What is it?", "It is that."), "not_entailment", f"{path}:2")]


def test_qqp_with_its_broken_rows(tmp_path):
    """nyu-mll/GLUE-baselines issue 5: a question of the published train.tsv holds a line end, so that its halves stand on two lines."""
    rows = [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133273\t213221\t213222\tHow is it?\tHow is that?\t1",
        '97930\t1\t2\tIs it so?\t"',
        '"\tWas he a real historical figure?\t0',
        "402555\t536040\t536041\tHow can I make it?\t\t0",
    ]
    path = put(tmp_path, "train.tsv", "\n".join(rows) + "\n")
    reading = read(path, glue("qqp"))
    assert [example[:3] for example in reading.examples] == [("133273", ("How is it?", "How is that?"), "1")]
    assert reading.counts == {"rows": 4, "dropped: another number of columns": 2, "dropped: an empty text": 1}
    refused(path, ":4 has 5 columns|:3 has 5 columns", "task.bad_rows=drop", layout=glue("qqp", drop=False))
    # Every row of the test set gets a prediction: an empty question is kept and counted, and a broken row is no published file.
    test = put(tmp_path, "test.tsv", "id\tquestion1\tquestion2\n0\tWhy?\t\n1\tA?\tB?\n")
    reading = read(test, glue("qqp", "test"))
    assert [example.texts for example in reading.examples] == [("Why?", ""), ("A?", "B?")] and reading.counts["with an empty text"] == 1
    refused(put(tmp_path, "test.tsv", "id\tquestion1\tquestion2\n0\tWhy?\n"), ":2 has 2 columns", layout=glue("qqp", "test"))


def test_cola_has_a_header_in_its_test_set_alone(tmp_path):
    train = put(tmp_path, "train.tsv", 'gj04\t1\t\tThey drank the "pub dry.\nbc01\t0\t*\tThey drank the pub.\n')
    reading = read(train, glue("cola"))
    assert pairs(reading) == [(('They drank the "pub dry.',), "1"), (("They drank the pub.",), "0")]
    test = put(tmp_path, "test.tsv", "index\tsentence\n0\tBill whistled past the house.\n")
    assert read(test, glue("cola", "test")).examples[0][:3] == ("0", ("Bill whistled past the house.",), None)
    header = put(tmp_path, "dev.tsv", "source\tlabel\tnotes\tsentence\ngj04\t1\t\tThe boat sank.\n")
    refused(header, ":1: 'label' is none of the labels 0, 1", "has no header: if that line is one, remove it", layout=glue("cola", "dev"))
    bare = put(tmp_path, "test.tsv", "0\tBill whistled past the house.\n1\tThe car honked.\n")
    refused(bare, ":1 has no column 'sentence', but '0', 'Bill whistled", "first line must name the columns", layout=glue("cola", "test"))


def test_stsb_is_a_number_from_0_to_5(tmp_path):
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    row = "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane\tAn air plane\t"
    path = put(tmp_path, "train.tsv", head + row + "3.800\n")
    assert pairs(read(path, glue("stsb"))) == [(("A plane", "An air plane"), 3.8)]
    for score, says in (("5.1", "must be from 0 to 5"), ("nan", "must be from 0 to 5"), ("good", "no number"), ("3,8", "no number")):
        refused(put(tmp_path, "train.tsv", head + row + score + "\n"), f":2: 'score' is .*{says}", layout=glue("stsb"))


# --- SQuAD


def squad(folder, *questions, context=CONTEXT, name="dev.json"):
    return put(folder, name, json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}))


def question(id="q1", *answers, **more):
    return {"id": id, "question": "Where?", "answers": [{"text": text, "answer_start": start} for text, start in answers], **more}


SQUAD = TASKS["squad2"].layout


def test_squad(tmp_path):
    path = squad(
        tmp_path,
        question("a", ("Houston, Texas", 20), ("Houston", 36)),
        question("b", is_impossible=True, plausible_answers=[{"text": "Houston", "answer_start": 20}]),
        question("c", ("Music", 56), is_impossible=False),  # characters are counted, not UTF-8's bytes and not UTF-16's halves
        {"id": "d", "question": "Why?", "answers": []},  # 1.1 has no mark
    )
    reading = read(path, SQUAD)
    assert [example.label for example in reading.examples] == [
        Answers(("Houston, Texas", "Houston"), (20, 36)),
        Answers((), ()),
        Answers(("Music",), (56,)),
        Answers((), ()),
    ]
    assert reading.examples[0][:2] == ("a", ("Where?", CONTEXT)) and reading.examples[0].where == f"{path}: question a"
    assert reading.counts == {"rows": 4, "unanswerable": 2}
    unlabelled = squad(tmp_path, {"id": "a", "question": "Where?"})
    assert read(unlabelled, SQUAD, labelled=False).examples[0].label is None
    refused(unlabelled, "question a: 'answers' is missing", layout=SQUAD)


@pytest.mark.parametrize(
    ("questions", "says"),
    [
        (
            [question("a", ("Texas", 0))],
            "question a: the answer 'Texas' does not stand at character 0 .*it stands at 29 alone, so write that",
        ),
        ([question("a", ("Houston", 21))], "it stands at 20, 36, so write the one that is meant"),
        ([question("a", ("Dallas", 21))], "it stands nowhere there, so mend the text"),
        ([question("a", ("Music", 57))], "it stands at 56 alone"),
        ([question("a", ("Texas", 900))], "offset 900 .* lies beyond the context's 62 characters: it stands at 29"),
        ([question("a", ("Music.", -6))], "offset -6 .* lies beyond"),
        ([question("a", ("", 3))], "question a: an answer is empty"),
        ([question("a", ("Texas", "29"))], "question a: 'answer_start' is missing or of another type"),
        ([question("a"), question("a")], "question a: the id 'a' stands at .*question a already"),
        ([question("a", ("Texas", 29), is_impossible=True)], "has answers and is_impossible=true"),
        ([question("a", is_impossible=False)], "has no answer, and is_impossible is false"),
        ([{"id": "a", "question": " ", "answers": []}], "question a: its question is empty"),
        ([{"question": "Where?", "answers": []}], "article 1, paragraph 1: 'id' is missing"),
        (["Where?"], "article 1, paragraph 1: 'id' is missing"),
        ([{"id": "a", "question": "\ud800?", "answers": []}], "half of a surrogate pair"),
        ([{"id": "\ud800", "question": "Where?", "answers": []}], "article 1, paragraph 1: 'id' has half of a surrogate pair"),
        ([question("a", ("Texas", 10**400))], "question a: the answer's offset is 10+: it must be"),
    ],
)
def test_bad_squad(tmp_path, questions, says):
    refused(squad(tmp_path, *questions), says, layout=SQUAD)


def test_squad_cut_short(tmp_path):
    whole = open(squad(tmp_path, question("a", ("Texas", 29))), "rb").read()
    for end in range(1, len(whole) - 1, 7):
        refused(put(tmp_path, "dev.json", whole[:end]), "is not JSON", layout=SQUAD)
    refused(put(tmp_path, "dev.json", whole[:-5]), ":1 is not JSON .*cut short: download it again", layout=SQUAD)
    refused(put(tmp_path, "dev.json", '{"data": [1]}'), "article 1: 'paragraphs' is missing", layout=SQUAD)
    refused(put(tmp_path, "dev.json", "[]"), "'data' is missing", layout=SQUAD)
    refused(put(tmp_path, "dev.json", "1" * 5000), "is not SQuAD's JSON .*digits", layout=SQUAD)
    refused(squad(tmp_path), "holds no example", layout=SQUAD)
    refused(put(tmp_path, "dev.json", '{"data": ' + "9" * 5000 + "}"), "is not SQuAD's JSON .*4300 digits", layout=SQUAD)
    refused(put(tmp_path, "dev.json", b'{"data":\n"\xff"}'), ":2: byte 2 is 0xff, which is no UTF-8", layout=SQUAD)


# --- Columns

NER = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
Bonn NNP I-NP I-LOC
Koeln NNP I-NP B-LOC

-DOCSTART- -X- O O

BRUSSELS NNP I-NP I-LOC
"""


def test_conll2003_is_iob1_and_has_marks_between_documents(tmp_path):
    """www.clips.uantwerpen.be/conll2003/ner: B- stands only where a span of the same type follows at once."""
    path = put(tmp_path, "eng.train", NER)
    reading = read(path, TASKS["conll2003"].layout)
    assert [example.texts for example in reading.examples] == [
        ("EU", "rejects", "German", "call"),
        ("Peter", "Blackburn", "Bonn", "Koeln"),
        ("BRUSSELS",),
    ]
    assert [example.label for example in reading.examples] == [
        ("B-ORG", "O", "B-MISC", "O"),
        ("B-PER", "I-PER", "B-LOC", "B-LOC"),
        ("B-LOC",),
    ]
    assert [example.where for example in reading.examples] == [f"{path}:{line}" for line in (3, 8, 15)]
    assert reading.counts == {"rows": 3, "documents": 2}
    copy = put(tmp_path, "train.txt", re.sub("(?m)(?<=[OP] )I-(ORG|MISC|LOC)|I-PER(?=\nBlack)", lambda m: f"B-{m[0][2:]}", NER))
    assert [example.label for example in read(copy, TASKS["conll2003"].layout).examples] == [each.label for each in reading.examples]
    refused(path, "eng.train:3: I-ORG follows the beginning, and in IOB2 .*write B-ORG", layout=TASKS["conll2003"].layout, scheme="iob2")


def test_tags_that_break_their_scheme(tmp_path):
    path = put(tmp_path, "train.txt", "a X B-NP\nb X I-NP\nc X I-VP\n\nd X B-NP\ne X O\n")
    layout = TASKS["conll2000"].layout
    refused(path, "train.txt:3: I-VP follows I-NP, .*write B-VP, or read .*task.lenient_tags=True", layout=layout)
    refused(path, "train.txt:3: I-VP", layout=layout, scheme="auto")
    reading = read(path, layout, lenient=True)
    assert [example.label for example in reading.examples] == [("B-NP", "I-NP", "B-VP"), ("B-NP", "O")]
    assert reading.counts == {"rows": 2, "with tags that break their scheme, read as conlleval reads them": 1}
    typo = put(tmp_path, "train.txt", "a X B-NP\nb X B_NP\n")
    for lenient in (False, True):
        refused(typo, "train.txt:2: 'B_NP' is neither O nor", layout=layout, scheme="auto", lenient=lenient)


def test_wnut_parts_with_tabs_and_its_empty_lines_hold_one(tmp_path):
    path = put(tmp_path, "wnut17train.conll", "Empire\tB-location\nState\tI-location\n\t\n\u200b\tO\nnew york\tO\n\n\n")
    reading = read(path, TASKS["wnut17"].layout)
    assert pairs(reading) == [(("Empire", "State"), ("B-location", "I-location")), (("\u200b", "new york"), ("O", "O"))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a NN B-NP\nb B-NP\n", ":2 has 2 columns, and the first word 3"),
        ("a\nb\n", ":1 has no column of tags"),
        ("a\tO\n\tO\n", ":2: its word is empty"),
        ("a\tO\nb\t\n", ":2: its tag is empty"),
        ("-DOCSTART- -X- O O\n\n", "holds no example .*documents: 1"),
    ],
)
def test_bad_columns(tmp_path, content, says):
    refused(put(tmp_path, "train.txt", content), says, layout=TASKS["conll2000"].layout)


def test_columns_without_tags_and_of_other_numbers(tmp_path):
    path = put(tmp_path, "test.txt", "Peter\nsleeps\n\nso\n")
    layout = dataclasses.replace(TASKS["conll2000"].layout, labelled=False)
    reading = read(path, layout)
    assert [(each.texts, each.label) for each in reading.examples] == [(("Peter", "sleeps"), None), (("so",), None)]
    path = put(tmp_path, "train.txt", "1 Peter   NNP  B-PER x\n2 sleeps VBZ O x \n")
    assert pairs(read(path, layout, texts=("1",), label="3")) == [(("Peter", "sleeps"), ("B-PER", "O"))]
    assert pairs(read(path, layout, texts=("1",), label="2", scheme="auto")) == [(("Peter", "sleeps"), ("NNP", "VBZ"))]
    refused(path, ":1 has no column 7, but 0 to 4", layout=layout, texts=("7",))
    refused(path, ":1: columns have numbers here", layout=layout, texts=("word",))


# --- CoNLL-U

UD = """# newdoc id = n
# sent_id = s-1
# text = I don't.
1\tI\tI\tPRON\tPRP\t_\t3\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t0\troot\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t3:dep\t_
4\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_

# text = Go
1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""


def test_conllu(tmp_path):
    path = put(tmp_path, "en.conllu", UD)
    reading = read(path, TASKS["ud"].layout)
    assert reading.examples == [
        ("s-1", ("I", "do", "n't", "."), ("PRON", "AUX", "PART", "PUNCT"), f"{path}:4"),
        ("1", ("Go",), ("VERB",), f"{path}:12"),
    ]
    assert reading.counts == {"rows": 2, "multiword tokens left out": 1, "empty nodes left out": 1}
    assert read(path, TASKS["ud"].layout, label="xpos").examples[0].label == ("PRP", "VBP", "RB", ".")
    bare = put(tmp_path, "bare.conllu", re.sub("(PRON|AUX|PART|PUNCT|VERB)", "_", UD))
    assert [each.label for each in read(bare, TASKS["ud"].layout, labelled=False).examples] == [None, None]
    refused(bare, ":4: word 1 of the sentence has no upos", layout=TASKS["ud"].layout)
    with pytest.raises(UserError, match="must be one of .*upos.*did you mean 'xpos'"):
        read(path, TASKS["ud"].layout, label="pos")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("3\tn't\tnot\tPART", "5\tn't\tnot\tPART", ":7: the word's id is '5' where 3 is due"),
        ("\n\n# text = Go\n", "\n", ":10: the word's id is '1' where 5 is due"),
        ("\n\n# text", "\n# text", ":10: a comment stands within a sentence"),
        ("1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_", "1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_", ":12 has 9 columns, and CoNLL-U 10"),
        ("1\tGo", "1\t", ":12: its form is empty"),
    ],
)
def test_bad_conllu(tmp_path, old, new, says):
    assert old in UD
    refused(put(tmp_path, "en.conllu", UD.replace(old, new)), says, layout=TASKS["ud"].layout)


# --- TFDS


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Small data sets with the features of GLUE's, CoNLL-2003's, UD's and SQuAD's, built on this disk; TFDS knows them by their files."""
    import tensorflow_datasets as published

    f = published.features
    folder = tmp_path_factory.mktemp("tfds")

    def build(name, features, **splits):
        class Small(published.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = published.core.Version("1.0.0")

            def _info(self):
                return published.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

            def _split_generators(self, download_manager):
                return {split: iter(list(enumerate(rows))) for split, rows in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Small.name = name
        Small(file_format="array_record", data_dir=folder).download_and_prepare()

    text, label = f.Text(), lambda *names: f.ClassLabel(names=names)
    sentence = {"sentence": text, "idx": np.int32}
    rows = [{"sentence": f"naïve {n}", "idx": n, "label": n % 2} for n in range(6)]
    build(
        "small_cola",
        {**sentence, "label": label("unacceptable", "acceptable")},
        train=rows,
        validation=rows[:2],
        test=[{**rows[0], "label": -1}],
    )
    pair = {"premise": text, "hypothesis": text, "idx": np.int32, "label": label("entailment", "neutral", "contradiction")}
    rows = [{"premise": f"p{n}", "hypothesis": f"h{n}", "idx": n, "label": n % 3} for n in range(3)]
    build("small_mnli", pair, train=rows, validation_matched=rows, validation_mismatched=rows[:1])
    pair = {"sentence1": text, "sentence2": text, "idx": np.int32, "label": np.float32}
    rows = [{"sentence1": "a", "sentence2": "b", "idx": n, "label": label} for n, label in ((0, 3.8), (1, -1.0))]
    build("small_stsb", pair, train=rows[:1], test=rows[1:])
    tags = {"tokens": f.Sequence(text), "ner": f.Sequence(label("O", "B-PER", "I-PER"))}
    build("small_ner", tags, train=[{"tokens": ["Jo", "Li", "ran"], "ner": [1, 2, 0]}], dev=[{"tokens": ["he"], "ner": [0]}])
    tags = {"tokens": f.Sequence(text), "upos": f.Sequence(label("AUX", "PART", "_"))}
    build("small_ud", tags, train=[{"tokens": ["don't", "do", "n't"], "upos": [2, 0, 1]}])
    answers = f.Sequence({"text": text, "answer_start": np.int32})
    features = {"id": np.str_, "question": text, "context": text, "answers": answers}
    one = {"question": "Where?", "context": CONTEXT}
    build(
        "small_squad",
        features,
        train=[
            {**one, "id": "a", "answers": {"text": ["Texas"], "answer_start": [29]}},
            {**one, "id": "b", "answers": {"text": [], "answer_start": []}},
        ],
    )
    published.core.add_data_dir(folder)


def theirs(name, **changes):
    return dataclasses.replace(TASKS[name].tfds.layout, **changes)


def test_tfds(built):
    reading = read("tfds:small_cola:train", theirs("cola"))
    assert sorted((each.id, each.texts, each.label) for each in reading.examples) == [
        (str(n), (f"naïve {n}",), str(n % 2)) for n in range(6)
    ]
    assert read("tfds:small_cola:test", theirs("cola", labelled=False)).examples[0].label is None
    assert [round(each.label, 4) for each in read("tfds:small_stsb:train", theirs("stsb")).examples] == [3.8]
    assert read("tfds:small_stsb:test", theirs("stsb", labelled=False)).examples[0].label is None
    assert sorted(each[:3] for each in read("tfds:small_mnli:validation_matched", theirs("mnli")).examples) == [
        (str(n), (f"p{n}", f"h{n}"), ("entailment", "neutral", "contradiction")[n]) for n in range(3)
    ]
    assert pairs(read("tfds:small_ner:train", theirs("conll2003"))) == [(("Jo", "Li", "ran"), ("B-PER", "I-PER", "O"))]
    reading = read("tfds:small_ud:train", theirs("ud"))
    assert pairs(reading) == [(("do", "n't"), ("AUX", "PART"))] and reading.counts["multiword tokens left out"] == 1
    labels = {each.id: each.label for each in read("tfds:small_squad:train", theirs("squad1")).examples}
    assert labels == {"a": Answers(("Texas",), (29,)), "b": Answers((), ())}
    own = Layout("tfds", "class", ("sentence",), "label")
    assert {each.label for each in read("tfds:small_cola:train", own).examples} == {"unacceptable", "acceptable"}
    assert "tensorflow" not in sys.modules


def test_bad_tfds(built):
    refused("tfds:small_cola:train", "has no column 'premise', but .*'sentence'", layout=theirs("mnli"))
    refused(
        "tfds:small_cola:train", "row [1-6]: the label '(un)?acceptable' is none of a, b, c", layout=theirs("cola", labels=("a", "b", "c"))
    )
    refused("tfds:small_cola:test", "row 1: 'label' is empty", layout=theirs("cola"))
    refused("tfds:small_stsb:test", "row 1: 'label' is empty", layout=theirs("stsb"))
    refused("tfds:small_cola:nothing", "Unknown split 'nothing'", layout=theirs("cola"))
    refused("tfds:glue/mrpc:train", "must have been built before", layout=theirs("mrpc"))
    refused("tfds:no_such_thing:train", "not found", layout=theirs("cola"))


def test_what_tfds_has_not_built_is_missing(built):
    """So that a table over many tasks goes on without it."""
    assert re.search("tfds:glue/mrpc:train: .*must have been built before", opening.missing(TaskConfig("mrpc", "tfds:"), ["train", "dev"]))
    assert opening.missing(TaskConfig("cola", "tfds:small_cola"), ["train", "dev"]) == ""


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.tfds], ids=lambda task: task.name)
def test_the_columns_and_classes_that_tfds_has(task):
    """By the published builders' own code."""
    layout, name = task.tfds.layout, task.tfds.name
    features = tfds.open_builder("tfds:", name).info.features
    assert set(layout.columns) <= set(features)
    names = getattr(getattr(features[layout.label], "feature", features[layout.label]), "names", None)
    if task.kind == "class":
        assert len(names) == len(layout.labels) and (layout.labels == ("0", "1") or set(names) == set(layout.labels))
    else:
        assert (names is None) == (task.kind != "tags")
