"""Our tokenizers as files that AutoTokenizer opens. WordPiece writes them itself; SentencePiece's model is told to the Rust library."""

import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from electra_jax.cli import UserError
from electra_jax.data import tokenizers as ours


def save(folder: pathlib.Path, tokenizer: ours.Tokenizer, max_length: int) -> None:
    """Files that transformers' AutoTokenizer opens, and ours too. It gives the ids that ours gives, with [CLS] and [SEP] around.

    max_length: where `truncation=True` cuts there, the positions that the model has.
    """
    tokenizer.save(folder)
    config = json.loads((folder / ours.CONFIG).read_text()) | {"model_max_length": max_length}
    if tokenizer.kind == "sentencepiece":
        config |= _save_sentencepiece(folder, tokenizer)
    (folder / ours.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _save_sentencepiece(folder: pathlib.Path, tokenizer: ours.Tokenizer) -> dict[str, str]:
    """Its tokenizer.json beside spm.model; returns the fields of the config that go with it."""
    special = {name: tokenizer.pieces([getattr(tokenizer, f"{name}_id")])[0] for name in ("pad", "unk", "cls", "sep", "mask")}
    rust = _from_sentencepiece((folder / "spm.model").read_bytes())
    rust.add_special_tokens(list(special.values()))
    rust.post_processor = processors.BertProcessing((special["sep"], tokenizer.sep_id), (special["cls"], tokenizer.cls_id))
    (folder / "tokenizer.json").write_text(rust.to_str(pretty=True))
    return {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{name}_token": piece for name, piece in special.items()}}


def _from_sentencepiece(data: bytes) -> Tokenizer:
    """The same pieces, scores and normalisation: sentencepiece's src/sentencepiece_model.proto says what the fields mean."""
    from sentencepiece import sentencepiece_model_pb2 as protos

    proto = protos.ModelProto.FromString(data)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    for what, there in (
        ("writes unknown characters as bytes (byte_fallback)", trainer.byte_fallback),
        ("marks spaces behind words (treat_whitespace_as_suffix)", trainer.treat_whitespace_as_suffix),
        ("has pieces across words (split_by_whitespace=false)", not trainer.split_by_whitespace),
        ("keeps spaces as they are (remove_extra_whitespaces=false)", not normalizer.remove_extra_whitespaces),
        ("has pieces that a user defined", any(piece.type == piece.USER_DEFINED for piece in proto.pieces)),
        ("is neither unigram nor BPE", trainer.model_type not in (trainer.UNIGRAM, trainer.BPE)),
    ):
        if there:
            raise UserError(f"the tokenizer cannot go out: its SentencePiece model {what}, and no tokenizer.json would give its ids")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unknown = next(number for number, piece in enumerate(proto.pieces) if piece.type == piece.UNKNOWN)
    if trainer.model_type == trainer.UNIGRAM:
        rust = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    else:
        ids = {piece: number for number, (piece, _) in enumerate(pieces)}
        rust = Tokenizer(models.BPE(ids, _merges(proto, ids), unk_token=pieces[unknown][0], fuse_unk=True))
    rules = [normalizers.Precompiled(normalizer.precompiled_charsmap)] if normalizer.precompiled_charsmap else []
    rules += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    rust.normalizer = normalizers.Sequence(rules)
    rust.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always" if normalizer.add_dummy_prefix else "never")
    rust.decoder = decoders.Metaspace("▁")
    return rust


def _merges(proto, ids: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece's BPE joins the pair whose piece has the best score; merges say the same as a list of pairs, the best first."""
    found = []
    for piece in proto.pieces:
        if piece.type != piece.NORMAL:
            continue
        text = piece.piece
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-piece.score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
