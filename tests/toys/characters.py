"""A toy kind of tokenizer: each character of a word is a piece, `c` where it begins the word and `##c` where it goes on with it."""

from collections import Counter

import numpy as np

from electra_jax.data.tokenizers.base import SPECIALS, digest, save_files

FILES = ("alphabet.chars",)
ENDINGS = {".chars": "alphabet.chars"}


class Characters:
    kind = "characters"

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.vocabulary = (*SPECIALS, *alphabet, *(f"##{c}" for c in alphabet))
        self.vocab_size = len(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = range(5)
        self.word_starts = np.array([not piece.startswith("##") for piece in self.vocabulary])
        self.options = {"kind": self.kind}
        self.sha256 = digest(self.options, alphabet.encode())
        self._ids = {piece: number for number, piece in enumerate(self.vocabulary) if number >= 5}

    def encode_batch(self, texts):
        return [np.array([self._id(n, c) for word in text.split() for n, c in enumerate(word)], np.int32) for text in texts]

    def encode_with_spans(self, texts):
        places = [[n for n, c in enumerate(text) if not c.isspace()] for text in texts]
        spans = [np.array([(n, n + 1) for n in each], np.int32).reshape(-1, 2) for each in places]
        return list(zip(self.encode_batch(texts), spans, strict=True))

    def _id(self, place, character):
        return self._ids.get(f"##{character}" if place else character, self.unk_id)

    def pieces(self, ids):
        return [self.vocabulary[number] for number in ids]

    def decode(self, ids):
        return " ".join(self.pieces(ids)).replace(" ##", "")

    def save(self, directory):
        save_files(directory, {FILES[0]: self.alphabet.encode()}, self)


def _train(texts, vocab_size, *, lower_case, strip_accents):
    counts = Counter(character for text in texts for character in text if not character.isspace())
    return Characters("".join(sorted(sorted(counts, key=lambda c: (-counts[c], c))[: (vocab_size - 5) // 2])))


TRAINED = {"characters": _train}


def find(folder, config):
    return folder / FILES[0] if (folder / FILES[0]).exists() else None


def read(path, data, config, lower_case, strip_accents):
    return Characters(data.decode())
