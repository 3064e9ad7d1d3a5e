"""How likely a text is: one number each, the larger the likelier, from whatever heads a model has.

pll        The sum, over the tokens, of log p of the token with it alone masked (arXiv 1910.14659, section 2): n passes for n tokens.
rtd        The sum, over the tokens, of log(1 - sigmoid(logit)): what the discriminator gives for no token having been replaced. One pass.
electric   Minus the sum of the energies of an `electric` model's tokens (Clark et al. 2020, section 2). One pass.

[CLS] and [SEP] do not count, and nothing is divided by the length. A score follows from its text and the model, not from the other texts:
the lengths that rows are padded to follow from the model alone.

    for scored in electra_jax.load_scorer("runs/demo/run", "rtd").score(["The cat sat.", "Cat the sat."]):
        print(scored.total, scored.tokens)
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import objectives, options
from electra_jax.cli import UserError
from electra_jax.data.tokenizers import Tokenizer
from electra_jax.finetune import batches
from electra_jax.interop import formats, text
from electra_jax.interop.model import Model
from electra_jax.models import electra
from electra_jax.models.attention import choice
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives.config import ObjectiveConfig
from electra_jax.options import one_of
from electra_jax.parallel import mesh as meshes
from electra_jax.types import Array, Batch, Params

KINDS = ("pll", "rtd", "electric")
PORTION_TEXTS = 4096
# Of a batch, on each device.
BATCH_TOKENS = {"cpu": 1024}
ELSEWHERE_TOKENS = 65536
# For pll, where each token costs a row, rows of up to so many tokens are padded to an even length on a CPU: less is computed in vain, and
# the few more programs to compile are soon paid for.
FINE_STEP, FINE_TO = 2, 32
TOP_K = 5


class Scored(NamedTuple):
    total: float
    tokens: list[tuple[str, float]]  # each piece and its part of the total


class Filled(NamedTuple):
    piece: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A model, ready to score; made by `load_scorer`."""

    path: str
    kind: str
    tokenizer: Tokenizer
    lengths: tuple[int, ...]  # that rows are padded to, ascending; each is compiled when it is first met
    batch_rows: tuple[int, ...]  # for each length
    run: Callable[..., Array]  # (tokens [R, L], how many are real [R], slots [R], targets [R]) -> [R] for pll, else [R, L]

    def score(self, texts: Iterable[str]) -> Iterator[Scored]:
        """Yields one score per text, in order; of `texts`, a portion is in memory at a time. At the end, warns if texts were cut.

        Raises UserError for a single text, an empty one, and where the model's outputs are no finite numbers.
        """
        if isinstance(texts, str):
            raise UserError("score takes several texts: score([text])")
        num_texts = num_cut = 0
        for portion in portions(texts, PORTION_TEXTS):
            for place, each in enumerate(portion):
                if not isinstance(each, str) or not each.strip():
                    raise UserError(f"text {num_texts + place + 1} is {each!r}: give a text that is not empty")
            ids = [np.asarray(x, np.int32) for x in self.tokenizer.encode_batch(portion)]
            longest = self.lengths[-1] - 2
            num_texts, num_cut = num_texts + len(ids), num_cut + sum(len(x) > longest for x in ids)
            yield from self._of([x[:longest] for x in ids])
        if num_cut:
            warnings.warn(f"{num_cut:,} of {num_texts:,} texts were cut at their end to {self.lengths[-1]} tokens", stacklevel=2)

    def _of(self, ids: Sequence[np.ndarray]) -> Iterator[Scored]:
        one_by_one = self.kind == "pll"
        counts = np.array([len(x) for x in ids])
        # A row is (text, place): for pll one for each token; otherwise one for each text, and the place means nothing.
        owners = np.repeat(np.arange(len(ids)), counts) if one_by_one else np.arange(len(ids))
        starts = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(len(owners)) - starts[owners] if one_by_one else np.zeros(len(owners), int)
        parts = np.zeros(starts[-1])
        for rows, found in self._run(ids, owners, places):
            if one_by_one:
                parts[starts[owners[rows]] + places[rows]] = found
            else:
                for row, of_row in zip(rows, found, strict=True):
                    owner = owners[row]
                    parts[starts[owner] : starts[owner + 1]] = of_row[1 : counts[owner] + 1]
        if not np.isfinite(parts).all():
            raise UserError(f"{self.path}: the model's outputs are not finite numbers: its training diverged, or its files are damaged")
        for of_text, start in zip(ids, starts, strict=False):
            its = parts[start : start + len(of_text)]
            yield Scored(float(its.sum()), list(zip(self.tokenizer.pieces(of_text.tolist()), its.tolist(), strict=True)))

    def _run(self, ids, owners: np.ndarray, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(numbers of rows, what the model gives for them) of one batch after the other."""
        real = np.array([len(ids[owner]) + 2 for owner in owners])
        waiting = None  # the device computes a batch while the next is made
        for group, length, batch_rows in zip(batches.groups(real, self.lengths), self.lengths, self.batch_rows, strict=True):
            for start in range(0, len(group), batch_rows):
                rows = group[start : start + batch_rows]
                found = self.run(*self._rows(ids, owners[rows], places[rows], length, batch_rows))
                if waiting is not None:
                    yield _brought(*waiting)
                waiting = rows, found
        if waiting is not None:
            yield _brought(*waiting)

    def _rows(self, ids, owners: np.ndarray, places: np.ndarray, length: int, batch_rows: int):
        tokenizer = self.tokenizer
        tokens_RxL = np.full((batch_rows, length), tokenizer.pad_id, np.int32)
        real_R, targets_R = np.zeros(batch_rows, np.int32), np.zeros(batch_rows, np.int32)
        slots_R = np.ones(batch_rows, np.int32)
        for row, (owner, place) in enumerate(zip(owners, places, strict=True)):
            its = ids[owner]
            tokens_RxL[row, : len(its) + 2] = [tokenizer.cls_id, *its, tokenizer.sep_id]
            real_R[row] = len(its) + 2
            if self.kind == "pll":
                slots_R[row], targets_R[row] = place + 1, its[place]
                tokens_RxL[row, place + 1] = tokenizer.mask_id
        return tokens_RxL, real_R, slots_R, targets_R


def _brought(rows: np.ndarray, found: Array) -> tuple[np.ndarray, np.ndarray]:
    return rows, np.asarray(found, np.float64)[: len(rows)]


def portions(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    portion: list[str] = []
    for each in texts:
        portion.append(each)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


# --- Opening


def score(texts: Iterable[str], model: str | os.PathLike, kind: str = "", per_token: bool = False) -> list:
    """The score of each text, a float, or per_token [(piece, part of the score)]. To score more than once, `load_scorer` once."""
    found = load_scorer(model, kind).score(texts)
    return [scored.tokens if per_token else scored.total for scored in found]


def load_scorer(path: str | os.PathLike, kind: str = "", batch_tokens: int = 0) -> Scorer:
    """The model at `path`, for one of KINDS; "": the first of them that the model has a head for.

    batch_tokens: rows times length of a batch, on all devices together; 0: by the platform. UserError where there is no model, no
    tokenizer or no such head.
    """
    name, model, tokenizer = _opened(path)
    heads = heads_for(model)
    if kind:
        one_of("kind", kind, KINDS)
    if kind not in heads and (kind or not heads):
        has = f"it has what {' and '.join(heads)} needs" if heads else "it has no head that was trained on text alone"
        raise UserError(f"{name}: the model has no head for the score {kind or KINDS[0]}: {has}")
    kind = kind or next(iter(heads))
    head = heads[kind]
    mesh = meshes.make_mesh(devices=jax.local_devices())
    config, lengths, batch_rows = _shape(model.config, head.network, mesh, batch_tokens, finely=kind == "pll")
    params = jax.device_put(model.params, meshes.replicated(mesh))
    of_tokens = {"pll": _pll, "rtd": _unreplaced, "electric": _negative}[kind]
    run = jax.jit(lambda params, *rows: of_tokens(params, config, head, *rows), out_shardings=meshes.replicated(mesh))
    on_mesh = meshes.on_mesh(run, mesh)
    return Scorer(name, kind, tokenizer, lengths, batch_rows, lambda *rows: on_mesh(params, *meshes.to_devices(rows, mesh)))


def kinds_of(path: str | os.PathLike) -> dict[str, objectives.Head]:
    """Those of KINDS that the model at `path` has a head for, each with its head."""
    return heads_for(formats.read(os.fspath(path), with_slots=False))


def heads_for(model: Model) -> dict[str, objectives.Head]:
    """{kind of score: the head that gives it} of a model: as its objective says where it is known, else by the heads that it has."""
    has = electra.heads_of(model.params)
    stored = (model.about.get("config") or {}).get("objective")
    if stored and stored.get("name") in objectives.OBJECTIVES:
        config = options.parse(ObjectiveConfig, stored, "objective")
        module = options.load(objectives.OBJECTIVES, config.name)
        found = module.scores(config) if hasattr(module, "scores") else {}
    else:
        found = {"pll": objectives.Head("generator", "head"), "rtd": objectives.Head("discriminator", "head")}
        if has.get("discriminator", {}).get("lm_head") == "mlm" and "generator" not in has:
            found["pll"] = objectives.Head("discriminator", "lm_head")
    return {kind: found[kind] for kind in KINDS if kind in found and found[kind].name in has.get(found[kind].network, {})}


def _opened(path: str | os.PathLike) -> tuple[str, Model, Tokenizer]:
    name = os.fspath(path)
    model = formats.read(name, with_slots=False)
    if model.tokenizer is None:
        raise UserError(f"{name}: there is no tokenizer in it: put its vocab.txt there, or the tokenizer that it was prepared with")
    return name, model, model.tokenizer


def _shape(
    config: ElectraConfig, network: str, mesh, batch_tokens: int, finely: bool
) -> tuple[ElectraConfig, tuple[int, ...], tuple[int, ...]]:
    """(the config for this machine, the lengths of rows, the rows of a batch for each). finely: short rows have more lengths."""
    platform = meshes.Platform.of(mesh)
    where = platform.name, config.max_length, [config.encoder(network)]
    attention = choice.choose("auto", *where)
    lengths = batches.ladder(config.max_length, choice.row_multiple(attention, *where))
    if finely and platform.name == "cpu":
        lengths = tuple(sorted({*lengths, *range(FINE_STEP, min(FINE_TO, config.max_length) + 1, FINE_STEP)}))
    tokens = batch_tokens or BATCH_TOKENS.get(platform.name, ELSEWHERE_TOKENS) * mesh.size
    batch_rows = tuple(max(tokens // length // mesh.size, 1) * mesh.size for length in lengths)
    return dataclasses.replace(config, dtype=platform.dtype, attention=attention, scan_layers=True), lengths, batch_rows


def _batch(tokens_RxL: Array, real_R: Array) -> Batch:
    place_1xL = jnp.arange(tokens_RxL.shape[1])[None]
    segments_RxL = (place_1xL < real_R[:, None]).astype(jnp.int32)
    return Batch(tokens_RxL, segments_RxL, place_1xL * segments_RxL, jnp.zeros_like(tokens_RxL), jnp.arange(tokens_RxL.shape[0]))


def _pll(params: Params, config: ElectraConfig, head: objectives.Head, tokens_RxL, real_R, slots_R, targets_R) -> Array:
    x_RxLxH = electra.hidden_states(params, config, _batch(tokens_RxL, real_R), network=head.network)
    at_Rx1 = jnp.maximum(slots_R + head.shift, 0)[:, None]
    return -electra.mlm_nll(params, config, x_RxLxH, at_Rx1, targets_R[:, None], head.network, head.name)[0][:, 0]


def _unreplaced(params: Params, config: ElectraConfig, head: objectives.Head, tokens_RxL, real_R, slots_R, targets_R) -> Array:
    return jax.nn.log_sigmoid(_negative(params, config, head, tokens_RxL, real_R, slots_R, targets_R))


def _negative(params: Params, config: ElectraConfig, head: objectives.Head, tokens_RxL, real_R, slots_R, targets_R) -> Array:
    x_RxLxH = electra.hidden_states(params, config, _batch(tokens_RxL, real_R), network=head.network)
    return -electra.rtd_logits(params, config, x_RxLxH, head.network, head.name)


# --- Filling masks


def fill_mask(texts: Sequence[str], model: str | os.PathLike, top_k: int = TOP_K) -> list[list[list[Filled]]]:
    """For each text, for each [MASK] in it, the `top_k` likeliest pieces.

    electra_jax.fill_mask(["The [MASK] sat on the mat."], "runs/demo/run")[0][0][0].piece

    UserError for a text without [MASK], and where the model has no head over the vocabulary.
    """
    name, whole, tokenizer = _opened(model)
    if isinstance(texts, str):
        raise UserError("fill_mask takes several texts: fill_mask([text], ...)")
    if "pll" not in (heads := heads_for(whole)):
        raise UserError(f"{name}: the model has no head over the vocabulary that fills masks")
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise UserError(f"top_k is {top_k}: it must be from 1 to {tokenizer.vocab_size}, the pieces of the vocabulary")
    head, config = heads["pll"], dataclasses.replace(whole.config, attention="auto")
    batch = text.encode(texts, tokenizer, config.max_length)
    masked = [np.flatnonzero(row == tokenizer.mask_id) for row in batch.tokens]
    for number, places in enumerate(masked):
        if not len(places):
            raise UserError(f"text {number + 1} has no [MASK] within its first {config.max_length} tokens: {texts[number]!r}")
    slots_BxK = np.zeros((len(texts), max(map(len, masked), default=1)), np.int32)
    for row, places in zip(slots_BxK, masked, strict=True):
        row[: len(places)] = places

    @jax.jit
    def best(params, batch, slots_BxK):
        x_BxLxH = electra.hidden_states(params, config, batch, network=head.network)
        at_BxK = jnp.maximum(slots_BxK + head.shift, 0)
        logits_BxKxV = electra.mlm_logits(params, config, x_BxLxH, at_BxK, head.network, head.name)
        return jax.lax.top_k(jax.nn.softmax(logits_BxKxV), top_k)

    shares_BxKxN, ids_BxKxN = map(np.asarray, best(whole.params, batch, slots_BxK))
    return [
        [list(map(Filled, tokenizer.pieces(ids_BxKxN[b, k].tolist()), shares_BxKxN[b, k].tolist())) for k in range(len(places))]
        for b, places in enumerate(masked)
    ]
