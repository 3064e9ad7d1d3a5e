"""Dropout against PyTorch transformers: `make parity`.

The two draw different random numbers, so what is compared is how their outputs are distributed over many draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the extra [parity]: make parity")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra [parity]: make parity")

from electra_jax import rng  # noqa: E402
from electra_jax.data.tokenizers import SPECIALS, WordPiece  # noqa: E402
from electra_jax.interop import formats  # noqa: E402
from electra_jax.interop.model import Model  # noqa: E402
from electra_jax.models import electra  # noqa: E402
from tests import tiny  # noqa: E402

pytestmark = pytest.mark.parity
HEAD, DRAWS, ROWS = "sequence_classification", 4000, 8
TOKENIZER = WordPiece([*SPECIALS, *(f"w{number}" for number in range(tiny.VOCAB_SIZE - len(SPECIALS)))])


def of_ours(config, params, batch) -> tuple[np.ndarray, np.ndarray]:
    def one(number):
        seeds_Bx2 = rng.StepRng(tiny.ROOT, number).seeds("task", batch.row)
        states = electra.hidden_states(params, config, batch, seeds_Bx2)
        return states, electra.task_apply(params, config, batch, HEAD, seeds_Bx2)

    return jax.device_get(jax.jit(lambda numbers: jax.lax.map(one, numbers))(jnp.arange(DRAWS)))


def of_theirs(folder, batch) -> tuple[np.ndarray, np.ndarray]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).train()
    inputs = {
        "input_ids": torch.tensor(batch.tokens).long(),
        "attention_mask": torch.tensor(batch.segments).long(),
        "token_type_ids": torch.tensor(batch.types).long(),
    }
    torch.manual_seed(0)
    with torch.no_grad():
        found = [model(**inputs, output_hidden_states=True) for _ in range(DRAWS)]
    return np.stack([each.hidden_states[-1].numpy() for each in found]), np.stack([each.logits.numpy() for each in found])


def check(what: str, ours_DxN: np.ndarray, theirs_DxN: np.ndarray, *, most_errors: float, most_share: float) -> None:
    """Compares the means of N values over D draws, in standard errors, and their deviations, as a share. The bars lie above what chance
    gives, and below what each place of dropout makes if it is left out."""
    spread = np.sqrt((ours_DxN.var(axis=0) + theirs_DxN.var(axis=0)) / DRAWS)
    means = np.sqrt(np.mean(((ours_DxN.mean(axis=0) - theirs_DxN.mean(axis=0)) / spread) ** 2))  # near 1
    deviations = np.mean(np.log(ours_DxN.std(axis=0) / theirs_DxN.std(axis=0)))  # near 0
    print(f"{what}: means differ by {means:.2f} standard errors, deviations by {100 * deviations:+.2f}%")
    assert means < most_errors
    assert abs(deviations) < most_share


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("rates", [(0.2, 0.0), (0.0, 0.3), (0.1, 0.1)])
def test_outputs_have_the_same_distribution(positions, rates, tmp_path):
    """ELECTRA and RoFormer; dropout of layers alone, of attention alone, and both."""
    config = tiny.model(positions=positions, num_layers=2, dropout=rates[0], attention_dropout=rates[1])
    of_encoder, of_head = jax.random.split(jax.random.key(0))
    params = electra.init_params(of_encoder, config, {"discriminator": {}})
    params = {**params, HEAD: electra.init_task(of_head, config, HEAD, 3)}
    # Larger than they are drawn, so that attention is far from uniform and GELU far from linear.
    params = jax.tree_util.tree_map_with_path(lambda path, x: np.asarray(x) * (10 if "kernel" in str(path) else 1), params)
    formats.write(tmp_path, Model(config, params, TOKENIZER, about={"labels": ["a", "b", "c"]}), "huggingface")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    batch = tiny.batch(ROWS)
    real = batch.segments > 0
    ours, theirs = of_ours(config, params, batch), of_theirs(folder, batch)
    check("hidden states", ours[0][:, real].reshape(DRAWS, -1), theirs[0][:, real].reshape(DRAWS, -1), most_errors=1.2, most_share=0.005)
    check("logits", ours[1].reshape(DRAWS, -1), theirs[1].reshape(DRAWS, -1), most_errors=1.6, most_share=0.02)
