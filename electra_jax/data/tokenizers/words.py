"""BERT's rules for words: how WordPiece cuts text before it looks for pieces (google-research/electra, model/tokenization.py)."""

import functools
import re
import unicodedata
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

MAX_WORD_CHARS = 200  # a longer word is [UNK]

# Control characters that BERT deletes, which joins what stands on both sides of them; str.split would cut there.
_DELETED = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


# Most of what BERT takes for ideographs, each a word of its own (the rest is cut by its own rules, more slowly).
_IDEOGRAPH = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002f800-\U0002fa1f]"
_IDEOGRAPHS = re.compile(_IDEOGRAPH)
_PORTION = re.compile(rf".{{0,65535}}(?:\s|{_IDEOGRAPH}|\Z)|.{{1,65536}}", re.DOTALL)


def portions(text: str) -> Iterator[list[str]]:
    """The text's words, ideographs by themselves, some at a time: text without spaces would else be one word, and Python's strings take
    many times the bytes of short words. A word of more than 65,536 characters is cut."""
    for match in _PORTION.finditer(text):
        portion = match[0]
        yield split_words(portion if portion.isascii() else _IDEOGRAPHS.sub(r" \g<0> ", portion))


def split_words(text: str) -> list[str]:
    """The text's words between white space: BERT's tokens of a text are those of its words, one after the other."""
    return _DELETED.sub("", text).split()


# A word of split_words as it stands in the text, with the characters that are deleted from it.
WORD = re.compile("[\\S\x0b\x0c\x1c-\x1f\x85]+")


def piece_spans(rust: tokenizers.Tokenizer, word: str, lower_case: bool, strip_accents: bool) -> list[tuple[int, int]]:
    """The characters of the word, [begin, end), that each of its pieces stands for.

    A character of which several pieces were made (a syllable of Hangul is taken apart) is in the span of each. An accent that was
    stripped belongs to the piece before it. Control characters at a piece's borders belong to none.
    """
    if word.isascii():
        return rust.encode(word.lower() if lower_case else word, add_special_tokens=False).offsets
    kept = [place for place, character in enumerate(word) if not _DELETED.match(character)]
    text = "".join(word[place] for place in kept)
    if lower_case:  # some capitals become two characters, such as the Turkish dotted one
        kept = [place for place in kept for _ in word[place].lower()]
        text = text.lower()
    spans = []
    for begin, end in rust.encode(text, add_special_tokens=False).offsets:
        begin, end = kept[begin], kept[end - 1] + 1
        while strip_accents and end < len(word) and unicodedata.category(word[end]) == "Mn":
            end += 1
        spans.append((begin, end))
    return spans


@functools.cache
def _normalizer(lower_case: bool) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=lower_case, lowercase=lower_case)


def basic_words(text: str, lower_case: bool) -> list[str]:
    """BERT's words before they are cut into pieces: each mark of punctuation and each ideograph by itself, lowered and without accents
    if `lower_case` (google-research/electra, model/tokenization.py, BasicTokenizer)."""
    text = _DELETED.sub("", text)
    normal = _normalizer(lower_case).normalize_str(text.lower() if lower_case else text)
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)]


def bert_rules(ids: dict[str, int], lower_case: bool, strip_accents: bool, chinese_chars: bool = True) -> tokenizers.Tokenizer:
    """BERT's tokenizer with these pieces. The special ones are not declared to it, so that no text gives their ids."""
    rust = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS))
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_chars, strip_accents=strip_accents, lowercase=lower_case
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust
