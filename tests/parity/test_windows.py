"""Windows over SQuAD's contexts and the characters of their pieces against transformers' fast tokenizer, as its run_qa.py uses it."""

import json
import unicodedata

import pytest

from electra_jax.data.tokenizers import load
from electra_jax.finetune.answers import make_windows
from electra_jax.finetune.examples import Example

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("length", "stride"), [(384, 128), (128, 32)])
def test_windows_and_spans(length, stride, shared_data, tmp_path):
    ours = load(shared_data / "vocab" / "bert_uncased_vocab.txt")
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    data = json.loads((shared_data / "squad" / "dev-v1.1.json").read_text())["data"]
    asked = [(q["question"], paragraph["context"]) for article in data for paragraph in article["paragraphs"] for q in paragraph["qas"]]
    examples = [Example(str(n), texts, None, "") for n, texts in enumerate(asked[::4])]
    rows = iter(make_windows(examples, ours, length=length, stride=stride, training=False).rows)
    count = 0
    for number, example in enumerate(examples):
        room = length - 3 - len(ours.encode_batch([example.texts[0]])[0])
        found = theirs(
            *example.texts,
            truncation="only_second",
            max_length=length,
            stride=room - min(stride, room),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        for tokens, types, spans in zip(found["input_ids"], found["token_type_ids"], found["offset_mapping"], strict=True):
            row = next(rows)
            assert (row.question, row.tokens.tolist(), row.types.tolist()) == (number, tokens, types)
            pieces = len(row.max_context)
            for (begin, end), (their_begin, their_end) in zip(
                row.context.spans[row.begin : row.begin + pieces], spans[row.first : row.first + pieces], strict=True
            ):
                # Ours hold the accents, too, that were stripped behind a piece.
                assert begin == their_begin and all(unicodedata.category(c) == "Mn" for c in row.context.text[their_end:end])
                assert end >= their_end
            count += 1
    assert next(rows, None) is None and count > len(examples) > 300
