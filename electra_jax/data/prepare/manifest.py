"""The end of a preparation: the token counts, the manifest, and what a person is told."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from electra_jax.data.prepare import advice, stages
from electra_jax.data.prepare.job import SPLITS, Job
from electra_jax.data.prepare.options import PrepareOptions
from electra_jax.data.prepare.split import RULE
from electra_jax.data.readers.corpus import Corpus
from electra_jax.data.rows import layouts, records
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.files import whole_file


def finish(job: Job, options: PrepareOptions, corpus: Corpus, tokenizer: Tokenizer, documents: dict, packed: list[dict]) -> dict:
    """Stage 4: writes the token counts and, last, the manifest; returns the manifest."""
    output = Path(options.output)
    counts_V = sum(stages.part_counts(job, 0, part) for part in range(job.parts[0]))
    with whole_file(output / records.TOKEN_COUNTS) as temporary, open(temporary, "wb") as file:
        np.save(file, counts_V)
    splits = {}
    for split, name in enumerate(SPLITS):
        shards = [stages.meta(job.shard_info_path(split, part)) for part in range(job.parts[split])]
        splits[name] = {
            "rows": packed[split]["rows"],
            "tokens": sum(shard.pop("tokens") for shard in shards),
            "dropped_tokens": packed[split]["dropped_tokens"],
            "documents": documents["documents"][split],
            "shards": shards,
        }
    report = documents["report"]
    decides = dataclasses.asdict(options)
    for name in ("inputs", "output", "tokenizer", "vocab_size", "lower_case", "strip_accents", "length", "packing"):
        decides.pop(name)
    decides["split_rule"] = RULE
    decides |= {"buckets": list(job.buckets), "parts": list(job.parts)}
    ids = ("kind", "sha256", "vocab_size", "pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
    manifest = {
        "format": records.FORMAT,
        "layout": layouts.CLS_SEP,
        "length": job.length,
        "packing": job.packing,
        "dtype": job.dtype.name,
        "tokenizer": {name: getattr(tokenizer, name) for name in ids} | {"options": tokenizer.options},
        "splits": splits,
        "token_counts_crc32": zlib.crc32((output / records.TOKEN_COUNTS).read_bytes()),
        "options": decides,
        "corpus": {
            "sources": len(corpus.sources),
            "documents": report["documents"],
            "bytes": report["text_bytes"],
            **{name: report[name] for name in ("invalid_utf8_bytes", "invalid_utf8_files", "empty_documents", "empty_files")},
        },
    }
    remove_torn_files(output)
    records.save_manifest(output, manifest)
    return records.load_manifest(output)


def finished(output: Path) -> dict:
    """The manifest of finished rows. UserError if one of its files is missing or damaged, as far as is told without reading all rows."""
    for split in SPLITS:
        records.Split(output, split)
    records.load_token_counts(output)
    return records.load_manifest(output)


def remove_torn_files(output: Path) -> None:
    """Removes what a process that was killed while it wrote has left. (Such files in .work are removed with it.)"""
    for path in [*output.glob(".*.tmp"), *(output / "tokenizer").glob(".*.tmp")]:
        path.unlink(missing_ok=True)


MANY_DOCUMENTS, SHORT_TOKENS, MANY_FILES = 1_000, 150, 100  # of so many files some are held out whole


def summary(manifest: dict, output: str) -> list[str]:
    """What was made and what to run next, in lines for a person."""
    corpus, parts = manifest["corpus"], manifest["splits"]
    lines = [f"{corpus['documents']:,} documents, {corpus['bytes'] / 1e6:,.1f} MB of text in {output}"]
    for split, title in (("train", "training"), ("heldout", "held out")):
        s = parts[split]
        filled = s["tokens"] / max(1, s["rows"] * manifest["length"])
        dropped = f", {s['dropped_tokens']:,} tokens did not fit" if s["dropped_tokens"] else ""
        lines.append(
            f"  {title}: {s['documents']:,} documents, {s['rows']:,} rows of {manifest['length']}, {s['tokens']:,} tokens, "
            f"{filled:.1%} full{dropped}, {len(s['shards'])} shards"
        )
    tokenizer = manifest["tokenizer"]
    dropped, kept = parts["train"]["dropped_tokens"], parts["train"]["tokens"]
    if dropped > 0.2 * (dropped + kept):
        lines.append(f"  note: {dropped / (dropped + kept):.0%} of the training tokens were dropped; --packing=dense keeps them all")
    lines.append(f"  tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']:,} pieces")
    if manifest["packing"] == "dense":
        lines.append("  packing: dense; for sentence pairs, as of the paper's two segments, --packing=pairs")
    options, documents, sources = manifest["options"], parts["train"]["documents"], manifest["corpus"]["sources"]
    if options["documents"] == "auto" and documents >= MANY_DOCUMENTS and kept < SHORT_TOKENS * documents:
        cure = "--documents=file keeps each .txt whole" if sources >= MANY_FILES else "put them between chapters only"
        lines.append(
            f"  note: a document has {kept / documents:.0f} tokens on average; where blank lines part the paragraphs of one text, {cure}"
        )
    train = parts["train"]
    return [*lines, *advice.command(train["rows"], train["tokens"], manifest["length"], output)]
