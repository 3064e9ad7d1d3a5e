"""The demo's labelled task: verses of held-out chapters are never trained on, and what is exchanged is two neighbouring words."""

import csv

from electra_jax import demo
from electra_jax.data.prepare.split import document_hash, is_heldout

COMMON = "and the lord spake unto moses saying"


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_task_of_the_demo(tmp_path, monkeypatch):
    verses_of = [[f"word{chapter} of the verse {verse} is here" for verse in range(40)] + [COMMON, "too short"] for chapter in range(100)]
    chapters = [("\n".join(verses), verses) for verses in verses_of]
    monkeypatch.setattr(demo, "chapters", lambda: iter(chapters))
    demo.write_task(tmp_path)
    split_of = {verse: "dev" if is_heldout(document_hash(text), 0.1) else "train" for text, verses in chapters for verse in verses[:40]}
    words_of = {tuple(sorted(verse.split())): verse for verse in split_of}  # two words that change places are the same words
    for split, at_most in demo.TASK.items():
        found = read(tmp_path / f"{split}.csv")
        assert 200 < len(found) <= at_most
        for number, row in enumerate(found):
            if sorted(row["text"].split()) == sorted(COMMON.split()):
                assert split == "train"
                continue
            verse = words_of[tuple(sorted(row["text"].split()))]
            assert split_of[verse] == split and row["label"] == ("exchanged" if number % 2 else "as written")
            moved = [i for i, pair in enumerate(zip(row["text"].split(), verse.split(), strict=True)) if pair[0] != pair[1]]
            assert (len(moved) == 2 and moved[1] == moved[0] + 1) if number % 2 else not moved
    before = (tmp_path / "train.csv").read_bytes()
    demo.write_task(tmp_path)
    assert (tmp_path / "train.csv").read_bytes() == before
