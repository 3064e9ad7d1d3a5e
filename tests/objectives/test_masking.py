"""Masking, sampling and corruption, rule by rule (google-research/electra pretrain/pretrain_helpers.py), over 10,000 rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.objectives import masking
from electra_jax.objectives.config import MaskingConfig
from electra_jax.types import Batch, Vocabulary

V, CLS, SEP, MASK = 1000, 2, 3, 4
VOCABULARY = Vocabulary(CLS, SEP, MASK, np.ones(V, bool))
ROWS = 10_000


def batch_of(tokens) -> Batch:
    tokens = np.asarray(tokens, np.int32)
    B, L = tokens.shape
    positions = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    return Batch(tokens, (tokens > 0).astype(np.int32), positions, np.zeros_like(tokens), np.arange(B, dtype=np.int32))


def full_rows(B=ROWS, L=128, seed=0) -> Batch:
    tokens = np.random.default_rng(seed).integers(5, V, (B, L))
    tokens[:, 0], tokens[:, L // 2], tokens[:, -1] = CLS, SEP, SEP
    return batch_of(tokens)


def choose(batch, step=0, vocabulary=VOCABULARY, slots_multiple=1, **fields) -> masking.Slots:
    config = MaskingConfig(**fields)
    step_rng = rng.StepRng(rng.root_key(0), jnp.int32(step))
    return jax.tree.map(np.asarray, jax.jit(lambda b: masking.choose(b, step_rng, config, vocabulary, slots_multiple))(batch))


def used(slots, b):
    return slots.positions[b][slots.weights[b] > 0]


@pytest.mark.parametrize("length, rate, N", [(128, 0.15, 19), (512, 0.15, 79), (512, 0.25, 130)])
def test_number_of_predictions_a_row(length, rate, N):
    assert MaskingConfig(rate=rate).max_predictions(length) == N
    assert MaskingConfig(rate=rate).num_slots(length, 8) == -(-N // 8) * 8


@pytest.mark.parametrize("length, rate, wanted, distinct", [(128, 0.15, 19, 17.7), (512, 0.15, 77, 71.5), (512, 0.25, 128, 113.3)])
def test_distinct_positions(length, rate, wanted, distinct):
    """Without replacement all slots differ. With it, of N draws from n tokens n (1 - (1 - 1/n) ** N) differ: 17.7 of 19, 71.5 of 77, 113.3
    of 128."""
    batch = full_rows(2_000, length)
    fixed = choose(batch, rate=rate)
    assert all(len(set(used(fixed, b))) == wanted for b in range(2_000))
    faithful = choose(batch, rate=rate, with_replacement=True)
    numbers = [len(set(used(faithful, b))) for b in range(2_000)]
    assert all(len(used(faithful, b)) == wanted for b in range(2_000))
    assert np.mean(numbers) == pytest.approx(distinct, abs=5 * np.std(numbers) / 2_000**0.5 + 0.05)


@pytest.mark.parametrize("with_replacement", [False, True])
def test_positions_are_uniform_over_candidates_and_never_special(with_replacement):
    batch = full_rows()
    batch = batch.replace(tokens=np.where(np.arange(128) == 7, MASK, batch.tokens))  # a [MASK] in the text is no candidate
    slots = choose(batch, with_replacement=with_replacement)
    chosen = np.concatenate([used(slots, b) for b in range(ROWS)])
    assert not set(chosen) & {0, 7, 64, 127}
    counts = np.bincount(chosen, minlength=128)[np.setdiff1d(np.arange(128), [0, 7, 64, 127])]
    assert stats.chisquare(counts).pvalue > 1e-4
    # The draw's order is random too: no position sits in the first slot more often.
    first = np.bincount(slots.positions[:, 0], minlength=128)[np.setdiff1d(np.arange(128), [0, 7, 64, 127])]
    assert stats.chisquare(first).pvalue > 1e-4


def test_85_15_0():
    """85% of the chosen are shown as [MASK], 15% unchanged, none random; independently a slot."""
    batch = full_rows()
    slots = choose(batch)
    shown = np.asarray(masking.mask(batch, slots, VOCABULARY).tokens)
    at = np.take_along_axis(shown, slots.positions, 1)
    original = np.take_along_axis(batch.tokens, slots.positions, 1)
    is_mask = at == MASK
    assert np.all((at == original) | is_mask)
    total = is_mask.size
    assert stats.binomtest(int(is_mask.sum()), total, 0.85).pvalue > 1e-4
    elsewhere = shown != batch.tokens
    assert elsewhere.sum() == is_mask.sum()
    per_row = is_mask.sum(1)  # independent: the variance is a binomial's
    assert per_row.var() == pytest.approx(19 * 0.85 * 0.15, rel=0.1)


def test_short_and_empty_rows():
    rows = np.zeros((4, 128), np.int32)
    rows[0, :3] = CLS, 9, SEP  # rounds to 0 and is clipped to 1
    rows[1, :2] = CLS, SEP  # nothing to predict
    rows[2, :43] = [CLS, *range(10, 51), SEP]  # round(43 x .15) = 6
    for with_replacement in (False, True):
        slots = choose(batch_of(rows), with_replacement=with_replacement, slots_multiple=8)
        assert slots.weights.sum(1).tolist() == [1, 0, 6, 0] and slots.weights.shape == (4, 24)
        assert used(slots, 0).tolist() == [1]
        assert np.all(slots.positions[slots.weights == 0] == 0) and not slots.masked[slots.weights == 0].any()


def test_masks_depend_on_the_row_and_the_step_alone():
    batch = full_rows(64)
    whole = choose(batch)
    half = choose(jax.tree.map(lambda x: x[32:], batch))
    np.testing.assert_array_equal(whole.positions[32:], half.positions)
    assert not np.array_equal(choose(batch, step=1).positions, whole.positions)
    assert len({tuple(row) for row in whole.positions}) == 64
    big = choose(batch.replace(row=batch.row + 2047), step=2_097_153)  # step x 2048 + row wraps in int32
    assert not np.array_equal(big.positions, whole.positions)


def test_sampling_follows_the_softmax():
    """Against exact probabilities over three blocks, with a certain, an impossible and a far tail token."""
    r = np.random.default_rng(0)
    logits = r.normal(0, 2, 300).astype(np.float32)
    logits[17], logits[140] = -1e9, 4.0
    mass = np.exp(logits - logits.max())
    n = 200_000
    uniform = rng.StepRng(rng.root_key(1), jnp.int32(0)).uniform("u", jnp.arange(n // 50), (50, 2))
    samples = jax.jit(lambda u: jax.lax.map(lambda x: masking.sample(jnp.tile(mass[None, None], (1, 50, 1)), x[None]), u))(uniform)
    counts = np.bincount(np.ravel(samples), minlength=300)
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    assert counts[17] == 0 and counts.sum() == n
    common = p * n > 5
    assert stats.chisquare(counts[common], p[common] / p[common].sum() * counts[common].sum()).pvalue > 1e-4


def test_sampling_is_float32_whatever_the_probabilities():
    """Trap 7: noise in half precision cannot reach the tail. bfloat16 probabilities sample as their float32 values do."""
    mass = jnp.exp(jnp.asarray(np.random.default_rng(2).normal(0, 3, (4, 500, 400)), jnp.bfloat16))
    uniform = jax.random.uniform(rng.root_key(5), (4, 500, 2))
    np.testing.assert_array_equal(masking.sample(mass, uniform), masking.sample(mass.astype(jnp.float32), uniform))
    # A token of probability 2e-4: uniform numbers of 8 bits (bfloat16) would give it 0 or 4e-3.
    flat = jnp.full((1, 4000, 5000), 1.0, jnp.bfloat16)
    u = jax.random.uniform(rng.root_key(6), (1, 4000, 2))
    assert len(np.unique(masking.sample(flat, u))) > 2500  # 5000 (1 - e^-.8) = 2753 distinct of 5000


def test_sampling_stops_the_gradient():
    with pytest.raises(TypeError, match="float0|integer|real"):
        jax.grad(lambda x: masking.sample(x, jnp.zeros((1, 1, 2))).sum())(jnp.ones((1, 1, 5)))


@pytest.mark.parametrize("size", [5, 128, 129, 300, 384])
def test_every_token_can_be_sampled_and_none_without_mass(size):
    """The last block overlaps the one before: each token is found by the blocks' sums and its place, and by no other way."""
    mass = np.eye(size, dtype=np.float32)[None]  # slot i: token i alone has mass
    for number in (0.0, 0.5, 0.999999):
        uniform = jnp.full((1, size, 2), number)
        np.testing.assert_array_equal(masking.sample(jnp.asarray(mass), uniform)[0], np.arange(size))


def test_corruption_and_labels():
    """All chosen get the sample, also the unmasked; a sample equal to the original counts as original; [MASK] is never seen."""
    batch = full_rows(200)
    slots = choose(batch)
    original = np.take_along_axis(batch.tokens, slots.positions, 1)
    sampled = np.where(np.arange(19) % 2, original, (original - 5 + 1) % (V - 5) + 5)
    corrupted, replaced = masking.corrupt(batch, slots, jnp.asarray(sampled))
    at = np.take_along_axis(np.asarray(corrupted.tokens), slots.positions, 1)
    np.testing.assert_array_equal(at, sampled)
    assert not (np.asarray(corrupted.tokens) == MASK).any()
    np.testing.assert_array_equal(np.asarray(replaced).sum(1), 10)
    np.testing.assert_array_equal(np.asarray(replaced), np.asarray(corrupted.tokens) != batch.tokens)


def test_faithful_averages_two_samples_at_one_position():
    """Trap 14, the published bug: two different samples at one place are written as the floor of their mean."""
    batch = batch_of([[CLS, 10, 11, 12, SEP]])
    slots = masking.Slots(np.array([[2, 2, 3, 0]]), np.array([[1.0, 1.0, 1.0, 0.0]]), np.array([[True, False, False, False]]))
    corrupted, replaced = masking.corrupt(batch, slots, jnp.array([[100, 205, 12, 77]]))
    assert corrupted.tokens.tolist() == [[CLS, 10, 152, 12, SEP]]
    assert replaced.tolist() == [[False, False, True, False, False]]
    assert masking.mask(batch, slots, VOCABULARY).tokens.tolist() == [[CLS, 10, MASK, 12, SEP]]


def test_whole_words_are_chosen_whole():
    starts = np.arange(V) % 3 == 0  # of a word's pieces, the ids divisible by 3 begin it
    vocabulary = VOCABULARY._replace(word_starts=starts)
    r = np.random.default_rng(0)
    tokens = r.integers(5, V, (500, 128))
    tokens[:, 0], tokens[:, 60], tokens[:, 127] = CLS, SEP, SEP
    slots = choose(batch_of(tokens), vocabulary=vocabulary, whole_word=True)
    totals = slots.weights.sum(1)
    words_of = np.zeros((500, 128), int)
    for b in range(500):
        word, pieces = 0, 0
        for i in range(128):
            pieces += 1
            if starts[tokens[b, i]] or i in (0, 1, 60, 61, 127) or pieces > masking.WORD_PIECES:
                word, pieces = word + 1, 1
            words_of[b, i] = word
        chosen = set(used(slots, b))
        for w in {words_of[b, i] for i in chosen}:
            assert set(np.flatnonzero(words_of[b] == w)) <= chosen | {0, 60, 127}
    assert totals.max() <= 19 and totals.mean() > 18


def greedy_words(tokens, starts, noise, wanted):
    """BERT's loop (google-research/bert create_pretraining_data.py, whole word masking): words in random order; one that does not fit is
    skipped. A word here has at most 8 pieces; where none fits, the first is cut."""
    words, real = [], [i for i, token in enumerate(tokens) if token > 0 and token not in (CLS, SEP, MASK)]
    for i in real:
        begins = starts[tokens[i]] or i - 1 not in real or len(words[-1]) == masking.WORD_PIECES
        words.append([i]) if begins else words[-1].append(i)
    words.sort(key=lambda word: noise[word[0]])
    chosen = []
    for word in words:
        if len(chosen) + len(word) <= wanted:
            chosen += word
    return set(chosen or words[0][:wanted])


@pytest.mark.parametrize("share, rate", [(0.5, 0.15), (0.2, 0.15), (0.05, 0.15), (0.0, 0.15), (0.3, 0.02)])
def test_whole_words_are_those_of_berts_loop(share, rate):
    """`share` of the pieces begin a word; 0: text without spaces."""
    r = np.random.default_rng(1)
    starts = r.random(V) < share
    tokens = r.integers(5, V, (300, 128))
    tokens[:, 0], tokens[:, 60], tokens[:, 120] = CLS, SEP, SEP
    tokens[:, 121:] = 0
    slots = choose(batch_of(tokens), vocabulary=VOCABULARY._replace(word_starts=starts), whole_word=True, rate=rate)
    noise = np.asarray(rng.StepRng(rng.root_key(0), jnp.int32(0)).uniform("positions", jnp.arange(300), (128,)))
    wanted = max(1, round(121 * rate))
    for b in range(300):
        assert set(used(slots, b)) == greedy_words(tokens[b], starts, noise[b], wanted), b
    if not share:  # all of a document is reached
        assert len({i // 12 for b in range(300) for i in used(slots, b)}) == 10


@pytest.mark.parametrize("length, rate", [(512, 0.999), (16, 0.999), (8, 0.97)])
def test_nearly_every_token_may_be_asked_for(length, rate):
    assert MaskingConfig(rate=rate).max_predictions(length) <= length
    slots = choose(full_rows(4, length), rate=rate)
    assert all(len(used(slots, b)) == length - 3 for b in range(4))


@pytest.mark.parametrize("fields", [dict(rate=0.0), dict(rate=1.0), dict(mask_fraction=1.5), dict(whole_word=True, with_replacement=True)])
def test_bad_fields_are_refused(fields):
    with pytest.raises(UserError, match="masking"):
        MaskingConfig(**fields)


@pytest.mark.parametrize("vocab_size", [1000, 384, 50])
def test_blocks_by_products_are_the_blocks(vocab_size):
    """What a TPU computes, on any platform."""
    r = np.random.default_rng(0)
    mass = jnp.asarray(np.exp(r.normal(size=(200, vocab_size)) * 3), jnp.float32)
    which = jnp.asarray(r.integers(0, -(-vocab_size // masking.BLOCK), 200))
    sums = masking._block_sums(mass)
    np.testing.assert_allclose(sums, np.add.reduceat(np.asarray(mass, np.float64), range(0, vocab_size, masking.BLOCK), axis=1), rtol=1e-5)
    np.testing.assert_allclose(masking._block_sums_by_product(mass), sums, rtol=1e-5)
    np.testing.assert_array_equal(masking._block_by_product(mass, which), masking._block(mass, which))


def test_random_tokens_as_bert():
    """google-research/bert create_pretraining_data.py: of the chosen tokens 80% are [MASK], 10% random, 10% stay."""
    batch = full_rows(4_000)
    slots = choose(batch, mask_fraction=0.8, random_fraction=0.1)
    shown = np.asarray(jax.jit(lambda b, s: masking.mask(b, s, VOCABULARY).tokens)(batch, slots))
    rows, used = np.arange(4_000)[:, None], slots.weights > 0
    at_slots, before = shown[rows, slots.positions][used], batch.tokens[rows, slots.positions][used]
    random = at_slots[(at_slots != before) & (at_slots != MASK)]
    n = used.sum()
    assert abs((at_slots == MASK).mean() - 0.8) < 5 * (0.16 / n) ** 0.5
    assert abs((at_slots == before).mean() - 0.1) < 5 * (0.09 / n) ** 0.5 + 2 / V
    assert stats.chisquare(np.bincount(random // 100, minlength=10)).pvalue > 1e-4  # over the whole vocabulary
    unchosen = np.ones(shown.shape, bool)
    unchosen[np.broadcast_to(rows, used.shape)[used], slots.positions[used]] = False
    np.testing.assert_array_equal(shown[unchosen], batch.tokens[unchosen])


def test_shares_of_what_is_shown_are_refused_above_one():
    with pytest.raises(UserError, match="together they must be 1 at most"):
        MaskingConfig(mask_fraction=0.9, random_fraction=0.2)
