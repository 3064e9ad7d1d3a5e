"""How likely a text is, against loops that score one token at a time."""

import io
import json
import tarfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import electra_jax
from electra_jax import options
from electra_jax.cli import UserError
from electra_jax.data.tokenizers import SPECIALS, WordPiece
from electra_jax.infer import pairs, score_files, scores
from electra_jax.interop import formats
from electra_jax.interop.model import Model
from electra_jax.models import electra
from electra_jax.objectives import OBJECTIVES
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.types import Batch
from tests import tiny

TOKENIZER = WordPiece([*SPECIALS, *tiny.WORDS])
CONFIG = tiny.model(vocab_size=TOKENIZER.vocab_size, max_length=24)
R = np.random.default_rng(0)
TEXTS = [" ".join(f"w{number}" for number in R.integers(0, 40, size)) for size in (3, 1, 17, 9)]


def save(path, name: str, **fields):
    """A model of this objective, with large weights, as a run leaves it."""
    config = ObjectiveConfig(name=name, **fields)
    masking = MaskingConfig(mask_fraction=1.0)
    goal = options.load(OBJECTIVES, name).make(CONFIG, masking, config, tiny.vocabulary(TOKENIZER.vocab_size))
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)), jax.jit(goal.init)(tiny.ROOT))
    about = {"config": {"objective": options.values(config)}}
    formats.write(path, Model(CONFIG, params, TOKENIZER, about=about), "electra_jax")
    return params


def rows(ids, mask: int | None = None) -> Batch:
    """One row of its own length."""
    tokens = np.array([[tiny.CLS, *ids, tiny.SEP]], np.int32)
    if mask is not None:
        tokens[0, mask] = tiny.MASK
    ones = np.ones_like(tokens)
    return Batch(tokens, ones, np.arange(tokens.shape[1], dtype=np.int32)[None], 0 * ones, np.zeros(1, np.int32))


def one_by_one(params, text: str, network: str, head: str, shift: int = 0) -> list[float]:
    ids = TOKENIZER.encode_batch([text])[0]

    @jax.jit
    def log_p(params, batch, place):
        x = electra.hidden_states(params, CONFIG, batch, network=network)
        logits = electra.mlm_logits(params, CONFIG, x, jnp.full((1, 1), place + shift), network, head)
        return jax.nn.log_softmax(logits)[0, 0]

    return [float(log_p(params, rows(ids, place), place)[token]) for place, token in enumerate(ids, 1)]


@pytest.mark.parametrize(
    "name, network, head, shift",
    [
        ("electra", "generator", "head", 0),
        pytest.param("mlm", "discriminator", "lm_head", 0, marks=pytest.mark.slow),
        ("mntp_clm", "discriminator", "lm_head", -1),
    ],
)
def test_pll_masks_one_token_at_a_time(name, network, head, shift, tmp_path):
    params = save(tmp_path / "run", name)
    found = electra_jax.score(TEXTS, tmp_path / "run", "pll", per_token=True)
    totals = electra_jax.score(TEXTS, tmp_path / "run", "pll")
    for text, tokens, total in zip(TEXTS, found, totals, strict=True):
        assert [piece for piece, _ in tokens] == text.split()
        np.testing.assert_allclose([part for _, part in tokens], one_by_one(params, text, network, head, shift), atol=2e-5)
        assert total == pytest.approx(sum(part for _, part in tokens))


@pytest.mark.parametrize("name, kind", [("electra", "rtd"), ("all_tokens_mlm", "rtd"), ("electric", "electric")])
def test_scores_of_one_pass(name, kind, tmp_path):
    params = save(tmp_path / "run", name)
    for text, total in zip(TEXTS, electra_jax.score(TEXTS, tmp_path / "run", kind), strict=True):
        logits = np.asarray(electra.discriminator_apply(params, CONFIG, rows(TOKENIZER.encode_batch([text])[0])), np.float64)[0, 1:-1]
        wanted = -logits.sum() if kind == "electric" else np.log(1 / (1 + np.exp(logits))).sum()
        assert total == pytest.approx(wanted, abs=1e-4)


def test_each_objective_has_the_scores_that_it_trained(tmp_path):
    wanted = {"electra": ["pll", "rtd"], "replace_mlm": ["pll"], "mlm": ["pll"], "electric": ["electric"], "mntp_clm": ["pll"]}
    for name, kinds in wanted.items():
        save(tmp_path / name, name)
        model = formats.read(tmp_path / name)
        assert list(scores.heads_for(model)) == kinds
        assert scores.load_scorer(tmp_path / name).kind == kinds[0]
    save(tmp_path / "one", "electric", towers=False)
    assert list(scores.heads_for(formats.read(tmp_path / "one"))) == ["pll", "electric"]
    save(tmp_path / "both", "mixture", mixture="electric=1,mlm=1")
    assert scores.heads_for(formats.read(tmp_path / "both"))["pll"].name == "lm_head"
    formats.convert(str(tmp_path / "electra"), str(tmp_path / "out"))  # where no objective is known, the heads tell
    assert list(scores.heads_for(formats.read(tmp_path / "out"))) == ["pll", "rtd"]
    with pytest.raises(UserError, match="has no head for the score rtd: it has what pll needs"):
        scores.load_scorer(tmp_path / "mlm", "rtd")
    with pytest.raises(UserError, match="kind is 'plll'.*did you mean 'pll'"):
        scores.load_scorer(tmp_path / "mlm", "plll")


def test_a_text_is_scored_alike_in_any_company(tmp_path):
    save(tmp_path / "run", "electra")
    for kind in ("pll", "rtd"):
        scorer = scores.load_scorer(tmp_path / "run", kind, batch_tokens=64)
        whole = [each.total for each in scorer.score(TEXTS * 3)]
        alone = [next(scorer.score([text])).total for text in TEXTS]
        np.testing.assert_allclose(whole, alone * 3, rtol=1e-6)


def test_texts_that_cannot_be_scored(tmp_path):
    params = save(tmp_path / "run", "electra")
    scorer = scores.load_scorer(tmp_path / "run", "rtd")
    for texts, words in ((["w1", " "], "text 2 is ' '"), ("w1 w2", r"score\(\[text\]\)"), (["w1", None], "text 2 is None")):
        with pytest.raises(UserError, match=words):
            list(scorer.score(texts))
    with pytest.warns(UserWarning, match="1 of 2 texts were cut at their end to 24 tokens"):
        assert len(list(scorer.score(["w1", "w2 " * 30]))[1].tokens) == 22
    params["discriminator"]["head"]["out"]["bias"] = np.full(1, np.nan, np.float32)
    formats.write(tmp_path / "bad", Model(CONFIG, params, TOKENIZER), "electra_jax")
    with pytest.raises(UserError, match="not finite numbers"):
        electra_jax.score(["w1"], tmp_path / "bad", "rtd")
    formats.write(tmp_path / "bare", Model(CONFIG, params, None), "electra_jax")
    with pytest.raises(UserError, match="there is no tokenizer in it"):
        electra_jax.score(["w1"], tmp_path / "bare", "rtd")


def test_fill_mask(tmp_path):
    params = save(tmp_path / "run", "mntp_clm")
    found = electra_jax.fill_mask(["w1 [MASK] w3", "[MASK] [MASK]"], tmp_path / "run", 3)
    assert [len(each) for each in found] == [1, 2] and all(len(options) == 3 for each in found for options in each)
    x = electra.hidden_states(params, CONFIG, rows([6, tiny.MASK, 8]))
    share = np.asarray(jax.nn.softmax(electra.mlm_logits(params, CONFIG, x, jnp.array([[1]]), "discriminator", "lm_head")))[0, 0]
    order = np.argsort(-share)[:3]
    assert [each.piece for each in found[0][0]] == TOKENIZER.pieces(order.tolist())
    np.testing.assert_allclose([each.probability for each in found[0][0]], share[order], atol=1e-5)
    for texts, k, words in ((["w1"], 3, r"text 1 has no \[MASK\]"), (["[MASK]"], 0, "top_k is 0"), ("[MASK]", 1, r"fill_mask\(\[text\]")):
        with pytest.raises(UserError, match=words):
            electra_jax.fill_mask(texts, tmp_path / "run", k)
    save(tmp_path / "electric", "electric")
    with pytest.raises(UserError, match="no head over the vocabulary"):
        electra_jax.fill_mask(["[MASK]"], tmp_path / "electric")


# --- Minimal pairs


def line(uid: str, good: str, bad: str, **more) -> str:
    return json.dumps({"sentence_good": good, "sentence_bad": bad, "UID": uid, "field": "syntax/semantics", **more}) + "\n"


FILES = {"data/a.jsonl": line("a", "w1 w2", "w2 w1") + "\n" + line("a", "w3", "w3"), "data/b.jsonl": line("b", "w5", "w6", field="syntax")}


def test_pairs_are_read_from_a_folder_a_zip_a_tar_and_a_file(tmp_path):
    (tmp_path / "folder" / "data").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, tarfile.open(tmp_path / "x.tar.xz", "w:xz") as tar:
        for name, content in {**FILES, "data/._a.jsonl": "\x00\x05", "README.md": "x"}.items():
            archive.writestr(name, content)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
        for name, content in FILES.items():
            (tmp_path / "folder" / name).write_text(content)
    wanted = [("a", "syntax_semantics", "w1 w2", "w2 w1"), ("a", "syntax_semantics", "w3", "w3"), ("b", "syntax", "w5", "w6")]
    for name in ("folder", "x.zip", "x.tar.xz"):
        assert [tuple(pair) for pair in pairs.read(str(tmp_path / name))] == wanted
    assert len(pairs.read(str(tmp_path / "folder/data/b.jsonl"))) == 1


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "pairs.jsonl:1: not an object with sentence_good"),
        ("[1]", "pairs.jsonl:1: not an object"),
        (line("a", "x", "y") + '{"sentence_good": "x"}', "pairs.jsonl:2: not an object"),
        (line("a", "", "y"), "pairs.jsonl:1: .*must be texts that are not empty"),
        ("\n", "no .jsonl file with pairs"),
    ],
)
def test_pairs_that_are_none(content, words, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        pairs.read(str(tmp_path / "pairs.jsonl"))
    (tmp_path / "x.txt").write_text("x")
    for name, said in (("gone", "no such file"), ("x.txt", "neither a folder nor")):
        with pytest.raises(UserError, match=said):
            pairs.read(str(tmp_path / name))


def test_a_tie_counts_one_half_and_nan_is_an_error():
    given = [pairs.Pair("a", "f", "g", "b")] * 4 + [pairs.Pair("b", "", "g", "b")]
    found = pairs.accuracies(given, [1.0, 2.0, 3.0, -np.inf, 0.0], [1.0, 1.0, 4.0, -np.inf, -1.0])
    assert [(each.name, each.accuracy, each.num_pairs) for each in found] == [("a", 0.5, 4), ("b", 1.0, 1)]
    assert pairs.summary(found) == {"f": 0.5, "all": 0.75}
    with pytest.raises(UserError, match="has no score"):
        pairs.accuracies(given[:1], [np.nan], [0.0])


def test_a_model_that_knows_nothing_is_right_half_of_the_time(tmp_path, capsys):
    """A constant model scores every pair of equally long sentences alike."""
    params = save(tmp_path / "run", "electra")
    formats.write(tmp_path / "constant", Model(CONFIG, jax.tree.map(np.zeros_like, params), TOKENIZER), "electra_jax")
    (tmp_path / "pairs.jsonl").write_text("".join(line("a", f"w{i} w2", f"w2 w{i}") for i in range(20)))
    for kind in ("pll", "rtd"):
        scorer = scores.load_scorer(tmp_path / "constant", kind)
        said = score_files.judge(scorer, str(tmp_path / "pairs.jsonl"), str(tmp_path / f"{kind}.jsonl"))
        assert "done: 20 pairs" in said and "50.0%" in capsys.readouterr().out
        assert json.loads((tmp_path / f"{kind}.jsonl").read_text())["accuracy"] == 0.5


def test_lines_of_a_file(tmp_path):
    save(tmp_path / "run", "electra")
    scorer = scores.load_scorer(tmp_path / "run", "rtd")
    (tmp_path / "in.txt").write_text("w1 w2\nw3\n")
    score_files.score(scorer, str(tmp_path / "in.txt"), str(tmp_path / "out.jsonl"), per_token=True)
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["text"] == "w1 w2" and first["score"] == pytest.approx(sum(part for _, part in first["tokens"]), abs=1e-5)
    for content, words in ((b"w1\n\nw2", "in.txt:2 is an empty line"), (b"\xff", "in.txt:1 is no UTF-8"), (b"", "there is no text in it")):
        (tmp_path / "in.txt").write_bytes(content)
        with pytest.raises(UserError, match=words):
            score_files.score(scorer, str(tmp_path / "in.txt"), str(tmp_path / "new.jsonl"))
    assert not (tmp_path / "new.jsonl").exists()
