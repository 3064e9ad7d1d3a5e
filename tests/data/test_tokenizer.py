"""WordPiece against BERT's algorithm in plain Python; for both kinds: specials, training, saving, bad vocabularies."""

import json
import lzma
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import sentencepiece
import tokenizers

from electra_jax.cli import UserError
from electra_jax.data import tokenizers as tokenizer_lib
from electra_jax.data.tokenizers import load, train_sentencepiece, train_wordpiece, wordpiece, wordpiece_training
from electra_jax.data.tokenizers import sentencepiece as sentencepiece_lib

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCE = "[CLS] the [MASK] of the [UNK] , <s> <mask> [PAD] [SEP] end</s>"

# BERT's rules, character by character, slow and plain: nothing here is shared with what is tested.


def is_punctuation(c):
    ascii_symbol = 33 <= ord(c) <= 47 or 58 <= ord(c) <= 64 or 91 <= ord(c) <= 96 or 123 <= ord(c) <= 126
    return ascii_symbol or unicodedata.category(c)[0] == "P"


def is_cjk(c):
    blocks = "4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF F900-FAFF 2F800-2FA1F"
    return any(int(b.split("-")[0], 16) <= ord(c) <= int(b.split("-")[1], 16) for b in blocks.split())


def bert_words(text, lower_case):
    clean = ""
    for c in text:
        if c in " \t\n\r" or unicodedata.category(c) == "Zs":
            clean += " "
        elif c != "\ufffd" and unicodedata.category(c)[0] != "C":
            clean += f" {c} " if is_cjk(c) else c
    for token in clean.split():
        if lower_case:
            token = "".join(c for c in unicodedata.normalize("NFD", token.lower()) if unicodedata.category(c) != "Mn")
        word = ""
        for c in token:
            if is_punctuation(c):
                yield from (word, c) if word else c
                word = ""
            else:
                word += c
        if word:
            yield word


def bert_pieces(text, vocabulary, lower_case=True):
    pieces = []
    for word in bert_words(text, lower_case):
        found, start = [], 0
        while start < len(word) <= 200:
            for end in range(len(word), start, -1):
                if (piece := ("##" if start else "") + word[start:end]) in vocabulary:
                    found.append(piece)
                    start = end
                    break
            else:
                break
        pieces += found if found and start == len(word) else ["[UNK]"]
    return pieces


def bert_spans(text, vocabulary):
    """[(begin, end)] of the pieces of a lowered vocabulary, by following each letter from the text to its piece."""
    tokens = [[]]
    for place, c in enumerate(text):
        if c in " \t\n\r" or unicodedata.category(c)[0] == "Z":
            tokens.append([])
        elif c != "\ufffd" and unicodedata.category(c)[0] != "C":
            tokens += [[(c, place)], []] if is_cjk(c) else []
            tokens[-1] += [] if is_cjk(c) else [(c, place)]
    words = []
    for token in tokens:
        lowered = "".join(c for c, _ in token).lower()
        places = [place for c, place in token for _ in c.lower()]
        words.append([])
        for c, place in zip(lowered, places, strict=True):
            for letter in unicodedata.normalize("NFD", c):
                if is_punctuation(letter):
                    words += [[(letter, place)], []]
                elif unicodedata.category(letter) != "Mn":
                    words[-1].append((letter, place))
    spans = []
    for word in words:
        pieces = bert_pieces("".join(letter for letter, _ in word), vocabulary) if word else []
        for piece in pieces:
            size = len(word) if piece == "[UNK]" else len(piece) - 2 * (piece[:2] == "##" and len(pieces) > 1)
            begin, end, word = word[0][1], word[size - 1][1] + 1, word[size:]
            while end < len(text) and unicodedata.category(text[end]) == "Mn":
                end += 1
            spans.append((begin, end))
    return spans


@pytest.fixture(scope="module")
def bert(shared_data):
    return load(shared_data / "vocab" / "bert_uncased_vocab.txt")


@pytest.fixture(scope="module")
def text():
    """Words by Zipf's law, with many ties: what a trainer that depends on the order of a hash map stumbles over."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwygpbvk", k=rng.randint(1, 9))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, 3001)]
    return [" ".join(rng.choices(words, weights, k=12)).capitalize() + ", café 1984!" for _ in range(1500)]


@pytest.fixture(scope="module", params=["wordpiece", "cased wordpiece", "unigram", "bpe"])
def trained(request, text):
    if "wordpiece" in request.param:
        return train_wordpiece(text, 500, lower_case=request.param == "wordpiece")
    return train_sentencepiece(text, 500, model_type=request.param)


def test_bert_files_ids(bert):
    assert bert.vocab_size == 30522
    assert (bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (0, 100, 101, 102, 103)
    assert bert.options == {"kind": "wordpiece", "lower_case": True, "strip_accents": True, "max_word_chars": 200}
    ids = bert.encode_batch(["The unaffable, naïve Σίσυφος!"])[0]
    assert ids.dtype == np.int32
    assert bert.pieces(ids)[:6] == ["the", "una", "##ffa", "##ble", ",", "naive"]


def test_wordpiece_is_berts_on_real_text(bert, shared_data):
    lines = (shared_data / "corpora" / "wikitext-2.valid.txt").read_text().split("\n")[:700]
    with lzma.open(shared_data / "imdb" / "unsup.jsonl.xz", "rt") as file:
        reviews = [json.loads(next(file))["text"] for _ in range(3000)]
    lines += [review for review in reviews if not review.isascii()][:150]
    assert sum(map(len, lines)) > 300_000 and any("\x85" in line for line in lines)
    vocabulary = set(bert.vocabulary)
    for line, ids in zip(lines, bert.encode_batch(lines), strict=True):
        assert bert.pieces(ids) == bert_pieces(line, vocabulary)


def test_wordpiece_is_berts_on_odd_text(bert):
    texts = [
        "",
        " \t\r\n ",
        "a\x00b\ufffdc",
        "her\x85but\x0bthe\x1cend",
        "x\u200by \u00adz",
        "line\u2028line\u2029line\u3000line",
        "ÀÉÎÕÜ naïve Ångström İstanbul STRASSE ﬁsh",
        "ΟΔΟΣ ΣΟΦΟΣ ΟΔΟΣ.",
        "中文 and日本語テキスト",
        "한국어 टेक्स्ट ไทย",
        "a" * 200 + " " + "a" * 201 + " (" + "a" * 200 + ")",
        "don't--stop!?...`^$",
        "\"('tis) the-end-\", '--' ΟΔΟΣ' $5.00!",
        "🤣🙂 ❤️ №5 ½ ²",
        SENTENCE,
        "[MASK][MASK]",
        "##ing ##s",
    ]
    vocabulary = set(bert.vocabulary)
    for text, ids in zip(texts, bert.encode_batch(texts), strict=True):
        assert bert.pieces(ids) == bert_pieces(text, vocabulary), text


def test_wordpiece_is_berts_on_random_text(bert):
    rng = random.Random(4)
    characters = "aaabZéΣσςs中の .,'\"()-[]#$«。\t\u0301\u200b\x85\u2028İßﬁ1½"
    texts = ["".join(rng.choices(characters, k=rng.randint(1, 30))) for _ in range(4000)]
    vocabulary = set(bert.vocabulary)
    for text, ids in zip(texts, bert.encode_batch(texts), strict=True):
        assert bert.pieces(ids) == bert_pieces(text, vocabulary), repr(text)


def test_wordpiece_is_berts_on_every_character(bert):
    """Whose class has stayed since Unicode 3.2: of the newest ones every library knows those of its own year."""
    old, new = unicodedata.ucd_3_2_0.category, unicodedata.category
    codes = [c for c in range(0x30000) if old(chr(c)) == new(chr(c)) not in ("Cn", "Cs")]
    codes = [c for c in codes if not (0x3400 <= c <= 0xDFFF or c > 0xFFFF) or c % 41 == 0]  # ideographs: some
    texts = [f"a{chr(c)}b {chr(c)} x{chr(c).upper()}" for c in codes]
    assert len(texts) > 10_000
    vocabulary = set(bert.vocabulary)
    for text, ids in zip(texts, bert.encode_batch(texts), strict=True):
        assert bert.pieces(ids) == bert_pieces(text, vocabulary), hex(ord(text[1]))


def check_spans(bert, texts):
    vocabulary = set(bert.vocabulary)
    rows = bert.encode_with_spans(texts)
    for text, ids, (again, spans) in zip(texts, bert.encode_batch(texts), rows, strict=True):
        np.testing.assert_array_equal(ids, again)
        assert spans.dtype == np.int32 and spans.shape == (len(ids), 2)
        assert list(map(tuple, spans.tolist())) == bert_spans(text, vocabulary), repr(text)


def test_spans_are_the_characters_that_a_piece_stands_for(bert):
    text = "The unaffable, naïve  İstanbul\tcafe\u0301! x\u200b"
    _, spans = bert.encode_with_spans([text])[0]
    assert [text[begin:end] for begin, end in spans] == [
        *["The", "una", "ffa", "ble", ",", "naïve", "İstanbul", "cafe\u0301", "!", "x"],
    ]
    assert bert.encode_with_spans([""])[0][1].shape == (0, 2) and bert.encode_with_spans([]) == []


def test_spans_on_real_text(bert, shared_data):
    lines = (shared_data / "corpora" / "wikitext-2.valid.txt").read_text().split("\n")[:150]
    with lzma.open(shared_data / "imdb" / "unsup.jsonl.xz", "rt") as file:
        reviews = [json.loads(next(file))["text"] for _ in range(1000)]
    check_spans(bert, lines + [review for review in reviews if not review.isascii()][:30])


def test_spans_on_random_text(bert):
    rng = random.Random(5)
    characters = "aaabZéΣσςs中한の .,'\"()-[]#$«。\t\u0301\u200b\x85\x0b\x1c\u2028İßﬁ1½"
    check_spans(bert, ["".join(rng.choices(characters, k=rng.randint(1, 30))) for _ in range(3000)])


def test_spans_of_a_word_that_a_deleted_character_divides():
    """The sigma is in the middle of the word once the control character is gone, and is lowered as such."""
    greek = tokenizer_lib.WordPiece([*SPECIALS, "a", "##σa", "##ς", "##a"])
    ids, spans = greek.encode_with_spans(["AΣ\x1cA"])[0]
    assert greek.pieces(ids) == ["a", "##σa"] and spans.tolist() == [[0, 1], [1, 4]]


def test_spans_of_a_cased_vocabulary(text):
    cased = train_wordpiece(text, 500, lower_case=False)
    accents = tokenizer_lib.WordPiece([*SPECIALS, "a", "##\u0301"], lower_case=False)  # not stripped: a piece of its own
    assert accents.encode_with_spans(["a\u0301"])[0][1].tolist() == [[0, 1], [1, 2]]
    for line, (ids, spans) in zip(text[:100], cased.encode_with_spans(text[:100]), strict=True):
        assert [line[begin:end] for begin, end in spans] == [piece.removeprefix("##") for piece in cased.pieces(ids)]


def test_cased_keeps_case_and_accents(text):
    cased = train_wordpiece(text, 500, lower_case=False)
    assert not cased.options["strip_accents"]
    vocabulary = set(cased.vocabulary)
    assert any(piece != piece.lower() for piece in vocabulary - set(SPECIALS)) and any("é" in piece for piece in vocabulary)
    for line, ids in zip(text[:100], cased.encode_batch(text[:100]), strict=True):
        assert cased.pieces(ids) == bert_pieces(line, vocabulary, lower_case=False)
    kept = train_wordpiece(text, 500, strip_accents=False)
    assert any("é" in piece for piece in kept.vocabulary)
    assert "é" not in "".join(train_wordpiece(text, 500).vocabulary)


def test_the_cache_changes_nothing_when_it_overflows(bert, text, monkeypatch):
    small = load_copy(bert)
    monkeypatch.setattr(wordpiece._WordCache, "MAX_BYTES", 2000)
    for ours, theirs in zip(small.encode_batch(text[:200]), bert.encode_batch(text[:200]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(small._ids_of_word) < 20


def load_copy(tokenizer):
    return pickle.loads(pickle.dumps(tokenizer))


def test_text_never_gives_a_special_id(trained):
    special = {trained.pad_id, trained.cls_id, trained.sep_id, trained.mask_id}
    assert [trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id] == [0, 1, 2, 3, 4]
    assert trained.pieces(range(5)) == SPECIALS
    for name in [*SPECIALS, SENTENCE, "".join(SPECIALS), " ".join(trained.pieces(range(trained.vocab_size)))]:
        assert special.isdisjoint(trained.encode_batch([name])[0].tolist()), name


def test_word_starts(trained):
    mark = "##" if trained.kind == "wordpiece" else "▁"
    for number, piece in enumerate(trained.pieces(range(trained.vocab_size))):
        starts = number < 5 or piece.startswith(mark) == (trained.kind == "sentencepiece")
        assert trained.word_starts[number] == starts, piece
    # What begins a word: as many pieces as there are words.
    line = "the end of the end"
    assert trained.word_starts[trained.encode_batch([line])[0]].sum() == 5


def test_encodes_all_and_decodes(trained, text):
    """The training text has no unknown piece (SentencePiece leaves 0.05% of characters out); joined, pieces are the text."""
    ids = trained.encode_batch(text)
    assert all(array.dtype == np.int32 for array in ids)
    unknown = sum(np.count_nonzero(array == trained.unk_id) for array in ids)
    assert unknown <= (0 if trained.kind == "wordpiece" else 0.0005 * sum(map(len, text)))
    line = "eta oin 1984"
    assert trained.decode(trained.encode_batch([line])[0]) == line
    assert trained.decode([trained.cls_id, trained.mask_id]).replace(" ", "") == "[CLS][MASK]"
    assert [len(array) for array in trained.encode_batch(["", " "])] == [0, 0] and trained.encode_batch([]) == []


def test_saved_and_loaded_is_the_same(trained, text, tmp_path):
    trained.save(tmp_path / "new" / "folder")
    again, copy = load(tmp_path / "new" / "folder"), load_copy(trained)
    assert again.sha256 == trained.sha256 == copy.sha256 and again.options == trained.options
    for ours, theirs, third in zip(*(t.encode_batch(text[:50]) for t in (trained, again, copy)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, third)
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    model = {"vocab.txt", "tokenizer.json"} if trained.kind == "wordpiece" else {"spm.model"}
    assert names == {"tokenizer_config.json"} | model
    trained.save(tmp_path / "new" / "folder")  # over itself


def test_a_failed_save_harms_nothing(text, tmp_path, monkeypatch):
    first, second = train_wordpiece(text, 300), train_wordpiece(text, 400)
    first.save(tmp_path)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        second.save(tmp_path)
    assert load(tmp_path).sha256 == first.sha256 and len(list(tmp_path.iterdir())) == 3


def test_saved_json_gives_the_same_ids_in_tokenizers_itself(text, tmp_path):
    ours = train_wordpiece(text, 500)
    ours.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for line, ids in zip(text[:50], ours.encode_batch(text[:50]), strict=True):
        assert theirs.encode(line).ids == [ours.cls_id, *ids.tolist(), ours.sep_id]
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.txt").unlink()
    assert load(tmp_path).sha256 == ours.sha256  # a folder with tokenizer.json alone, as Hugging Face writes it
    assert load(tmp_path / "tokenizer.json").sha256 == ours.sha256


def test_sha256_tells_options_and_vocabulary_apart(text):
    vocabulary = train_wordpiece(text, 300).vocabulary
    swapped = [*vocabulary[:-2], vocabulary[-1], vocabulary[-2]]
    kinds = [(vocabulary, True, None), (vocabulary, False, None), (vocabulary, True, False), (swapped, True, None)]
    assert len({tokenizer_lib.WordPiece(*kind).sha256 for kind in kinds}) == 4


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_training_gives_the_same_bytes_in_every_process(kind, text, tmp_path):
    text = list(text)
    (tmp_path / "text").write_text("\n".join(text))
    program = (
        "import sys; from electra_jax.data import tokenizers as t; text = open(sys.argv[1]).read().split('\\n')\n"
        "kind = sys.argv[2]\n"
        "new = t.train_wordpiece(iter(text), 700) if kind == 'wordpiece' else "
        "t.train_sentencepiece(iter(text), 700, model_type=kind)\n"
        "print(new.sha256, new.vocab_size)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "text"), kind]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {run.communicate()[0] for run in runs}
    random.Random(1).shuffle(text)  # WordPiece: the order of the texts does not matter either
    if kind == "wordpiece":
        outputs.add(f"{train_wordpiece(text, 700).sha256} 700\n")
    assert len(outputs) == 1 and "".join(outputs).split()[1:] == ["700"]


def test_wordpiece_training_merges_the_most_frequent_pair_first():
    """The text has the pairs a-b 30 times, c-d 20, e-f 10: with room for two pieces more than the letters, ef is left out."""
    words = ["ab"] * 30 + ["cd"] * 20 + ["ef"] * 10
    letters = ["a", "b", "c", "d", "e", "f", "##b", "##d", "##f"]
    trained = train_wordpiece([" ".join(words)], 5 + 2 * 9)
    assert list(trained.vocabulary) == [*SPECIALS, *letters, "ab", "cd", "ef"]  # all that the text gives: fewer than asked
    enough_for_two = tokenizer_lib.WordPiece(trained.vocabulary[:-1])
    assert enough_for_two.pieces(enough_for_two.encode_batch(["ab ef"])[0]) == ["ab", "e", "##f"]


def test_alphabet_is_bounded_by_frequency_and_code_point():
    common = "abc " * 400
    text = [common, *(chr(0x4E00 + n) for n in (3, 1, 2))]  # one each: of equally frequent ones the lower code point
    pieces = train_wordpiece(text, 5 + 2 * 7).vocabulary  # room for 7: a, b, ##b, c, ##c, then two of the ideographs
    assert {"一", "丁", "丂", "七", "丄", "丅"} & set(pieces) == {"丁", "丂"}
    text = [common + "".join(map(chr, range(0x4E00, 0x4F00)))]
    with pytest.raises(UserError, match=r"20 pieces is too small for this text's alphabet.*ask for at least \d+$") as error:
        train_wordpiece(text, 20)
    enough = int(str(error.value).split("at least ")[1])
    train_wordpiece(text, enough)
    with pytest.raises(UserError, match=f"ask for at least {enough}$"):
        train_wordpiece(text, enough - 1)


def test_training_memory_is_bounded(text, monkeypatch):
    """Rare words are forgotten when too many are counted; the frequent ones remain, and so does determinism."""
    seen = []
    monkeypatch.setattr(wordpiece_training, "MAX_DISTINCT_WORDS", 500)
    monkeypatch.setattr(wordpiece_training, "_repeated", lambda words, kept: seen.append(words) or iter([" ".join(words)]))
    train_wordpiece(iter(text), 300)
    words = seen[0]
    all_words = Counter(word for line in text for word in bert_words(line, True))
    assert len(words) <= 500 < len(all_words)
    assert {word for word, _ in all_words.most_common(50)} <= set(words)

    lines = sentencepiece_lib._sample_lines(iter(text), 20_000)
    assert 5_000 < sum(map(len, lines)) <= 20_000 and lines == sentencepiece_lib._sample_lines(text, 20_000)
    assert sentencepiece_lib._sample_lines(["x " * 1499 + "x\n" + "y" * 2500], 1 << 20) == [
        *["x " * 499 + "x"] * 3,
        "y" * 1000,
        "y" * 1000,
        "y" * 500,
    ]


def test_sentencepiece_lower_case_is_kept(text, tmp_path):
    lower = train_sentencepiece(text, 300, lower_case=True)
    assert lower.options == {"kind": "sentencepiece", "lower_case": True}
    lower.save(tmp_path)
    again = load(tmp_path / "spm.model")  # the model alone says it
    np.testing.assert_array_equal(again.encode_batch(["THE END"])[0], lower.encode_batch(["the end"])[0])
    assert again.sha256 == lower.sha256


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_spans(kind, text):
    trained = train_sentencepiece(text, 500, model_type=kind)
    for line, ids, (again, spans) in zip(text[:100], trained.encode_batch(text[:100]), trained.encode_with_spans(text[:100]), strict=True):
        np.testing.assert_array_equal(ids, again)
        assert spans.dtype == np.int32
        written = [piece.removeprefix("▁") for piece in trained.pieces(ids)]
        assert all(line[begin:end] == piece for (begin, end), piece in zip(spans, written, strict=True) if piece != "[UNK]")
        assert "".join(line[begin:end] for begin, end in spans) == line.replace(" ", "")
    line = "eta  \tﬁn Ⅷ, oin "  # white space, a ligature that becomes two letters, a numeral that becomes four
    ids, spans = trained.encode_with_spans([line])[0]
    assert (np.diff(spans[:, 0]) >= 0).all() and not any(line[begin:end][:1].isspace() for begin, end in spans)
    assert "".join(line[begin:end] for begin, end in spans).replace("ﬁ", "") == "etanⅧ,oin"
    assert trained.encode_with_spans([""])[0][1].shape == (0, 2)


def test_a_foreign_sentencepiece_model(text, tmp_path):
    """<pad>, <s>, ... under other names and ids; a mask that the model would find in text is made a control symbol."""
    prefix = str(tmp_path / "other")
    arguments = dict(sentence_iterator=iter(text), model_prefix=prefix, vocab_size=300, pad_id=3, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(**arguments, user_defined_symbols=["<mask>"])
    plain = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    assert 4 in plain.encode("a <mask> b")
    foreign = load(prefix + ".model")
    assert (foreign.pad_id, foreign.unk_id, foreign.cls_id, foreign.sep_id, foreign.mask_id) == (3, 0, 1, 2, 4)
    assert 4 not in foreign.encode_batch(["a <mask> b"])[0]
    np.testing.assert_array_equal(foreign.encode_batch(["eta oin"])[0], plain.encode("eta oin"))

    sentencepiece.SentencePieceTrainer.train(**{**arguments, "sentence_iterator": iter(text), "pad_id": -1})
    with pytest.raises(UserError, match=r"other.model: .*no piece \[PAD\] or <pad>, no \[MASK\] or <mask>"):
        load(prefix + ".model")


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("tokenizer_config.json", "[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", '{"do_lower_case": "no"}', "do_lower_case is 'no': it must be true or false"),
        ("tokenizer_config.json", '{"strip_accents": 5}', "strip_accents is 5"),
        ("tokenizer.json", "[" * 100_000, "not a tokenizer.json of BERT's kind"),
    ],
)
def test_files_beside_a_vocabulary_that_nobody_can_read(name, content, words, tmp_path):
    if name != "tokenizer.json":
        (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "word"]))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_tokenizer_json_says_what_a_vocabulary_alone_does_not(text, tmp_path):
    train_wordpiece(text, 300, lower_case=False).save(tmp_path)
    lines = (tmp_path / "vocab.txt").read_text().lower().split()
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(lines)).replace("[pad]", "[PAD]"))  # which tokenizer.json does not follow
    (tmp_path / "tokenizer_config.json").write_text('{"tokenize_chinese_chars": null}')
    assert not load(tmp_path).lower_case


def test_a_vocabulary_shows_whether_it_is_cased(tmp_path):
    for last, lower_case in (("word", True), ("Word", False)):
        (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "[unused0]", last]) + "\n\n")
        tokenizer = load(tmp_path / "vocab.txt")
        assert tokenizer.lower_case == lower_case and tokenizer.vocab_size == 7
    assert load(tmp_path / "vocab.txt", lower_case=True).lower_case


def bad(tmp_path, name, data):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", r"vocab.txt: the vocabulary has no \[MASK\]: .*train one"),
        ("vocab.txt", "the\n", r"has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]:"),
        ("vocab.txt", "\n".join([*SPECIALS, "a", "b", "a"]), r"has 'a' twice, in lines 6 and 8"),
        ("vocab.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("vocab.txt", b"", "has no"),
        ("tokenizer.json", "{", "not a tokenizer.json of BERT's kind"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "not a tokenizer.json of BERT's kind"),
        ("spm.model", b"not a model", "not a SentencePiece model"),
        ("vocab.bin", b"", "not a vocab.txt, a tokenizer.json, a SentencePiece .model or a folder with one of them"),
    ],
)
def test_bad_files_are_named(tmp_path, name, data, says):
    with pytest.raises(UserError, match=says) as error:
        load(bad(tmp_path, name, data))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_bad_folders_are_named(text, tmp_path):
    with pytest.raises(
        UserError, match="No such file or directory: name a folder, vocab.txt, tokenizer.json or SentencePiece .model that exists"
    ):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="no vocab.txt, tokenizer.json or SentencePiece .model in this folder: name one that has one"):
        load(tmp_path)
    train_wordpiece(text, 300).save(tmp_path)
    with pytest.raises(UserError, match="made with lower_case=True, not False"):
        load(tmp_path, lower_case=False)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(vocab.read_text().replace("\ne\n", "\nE\n"))
    with pytest.raises(UserError, match="do not fit the hash"):
        load(tmp_path)
    bad(tmp_path, "tokenizer_config.json", "{")
    with pytest.raises(UserError, match="not JSON"):
        load(tmp_path)


def test_what_never_ends_is_not_read(tmp_path):
    """A pipe that nobody writes to, and a device without an end; also where a folder has them."""
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="vocab.txt: it is no ordinary file: give one"):
        load(tmp_path / "vocab.txt")
    (tmp_path / "spm.model").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="spm.model: it is no ordinary file"):
        load(tmp_path / "spm.model")
    folder = tmp_path / "folder"
    folder.mkdir()
    bad(folder, "vocab.txt", "\n".join(SPECIALS))
    os.mkfifo(folder / "tokenizer_config.json")
    with pytest.raises(UserError, match="tokenizer_config.json: it is no ordinary file"):
        load(folder)


@pytest.mark.parametrize("train", [train_wordpiece, train_sentencepiece])
def test_nothing_to_train_on(train):
    with pytest.raises(UserError, match="no word"):
        train(["", " \n "], 100)


def test_sentencepiece_too_small_says_how_many(text):
    for model_type in ("unigram", "bpe"):
        with pytest.raises(UserError, match="cannot train 10 pieces on this text: .*smaller than") as error:
            train_sentencepiece(text, 10, model_type=model_type)
        assert "\n" not in str(error.value)


def test_sentencepiece_learns_from_lines_with_its_mark_of_the_unknown():
    tokenizer = train_sentencepiece(["some words of text\n" * 50, "zebra \u2585 squid\n" * 50], 60)
    assert {"z", "q"} <= set("".join(tokenizer.vocabulary)) and "\u2585" not in "".join(tokenizer.vocabulary)
