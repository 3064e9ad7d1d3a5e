"""Checkpoints as Google's code leaves them: its variables' names, written by TensorFlow's own Saver.

`python -m tests.interop.google` writes tests/interop/tf1/ anew, and needs TensorFlow: pip install 'electra_jax[tf1]'.
"""

import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "tf1"
SMALL = dict(vocab=40, embedding=8, hidden=16, layers=2, generator_hidden=4, generator_layers=2, positions=12)


def variables(
    vocab, embedding, hidden, layers, generator_hidden, generator_layers, positions, ffn=None, generator_ffn=None
) -> dict[str, tuple[int, ...]]:
    """{name: shape} of run_pretraining.py's graph, written out from its scopes (google-research/electra model/modeling.py)."""
    out = {
        "electra/embeddings/word_embeddings": (vocab, embedding),
        "electra/embeddings/token_type_embeddings": (2, embedding),
        "electra/embeddings/position_embeddings": (positions, embedding),
        "electra/embeddings/LayerNorm/beta": (embedding,),
        "electra/embeddings/LayerNorm/gamma": (embedding,),
    }
    for scope, width, depth, inner in (
        ("electra", hidden, layers, ffn or 4 * hidden),
        ("generator", generator_hidden, generator_layers, generator_ffn or 4 * generator_hidden),
    ):
        if width != embedding:
            out |= dense(f"{scope}/embeddings_project", embedding, width)
        for i in range(depth):
            layer = f"{scope}/encoder/layer_{i}"
            for name in ("query", "key", "value"):
                out |= dense(f"{layer}/attention/self/{name}", width, width)
            out |= dense(f"{layer}/attention/output/dense", width, width) | norm(f"{layer}/attention/output/LayerNorm", width)
            out |= dense(f"{layer}/intermediate/dense", width, inner) | dense(f"{layer}/output/dense", inner, width)
            out |= norm(f"{layer}/output/LayerNorm", width)
    out |= dense("discriminator_predictions/dense", hidden, hidden) | dense("discriminator_predictions/dense_1", hidden, 1)
    out |= dense("generator_predictions/dense", generator_hidden, embedding) | norm("generator_predictions/LayerNorm", embedding)
    return out | {"generator_predictions/output_bias": (vocab,)}


def dense(name, width, features):
    return {f"{name}/kernel": (width, features), f"{name}/bias": (features,)}


def norm(name, width):
    return {f"{name}/beta": (width,), f"{name}/gamma": (width,)}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def write(prefix: pathlib.Path, sizes=SMALL, *, slots: bool, sharded: bool, step: int = 1234) -> None:
    """By tf.compat.v1.train.Saver. sharded: the variables on two devices, each of which writes a file."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        slot_names = ("", "/adam_m", "/adam_v") if slots else ("",)
        values = {name + slot: value(name + slot, shape) for name, shape in variables(**sizes).items() for slot in slot_names}
        for number, (name, x) in enumerate({**values, "global_step": np.int64(step)}.items()):
            with tf.device(f"/cpu:{number % 2 if sharded else 0}"):
                tf1.get_variable(name, initializer=x)
        with tf1.Session(config=tf1.ConfigProto(device_count={"CPU": 2})) as session:
            session.run(tf1.global_variables_initializer())
            tf1.train.Saver(sharded=sharded, save_relative_paths=True).save(session, str(prefix), write_meta_graph=False)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write(FOLDER / "model.ckpt-1234", slots=False, sharded=False)
    (FOLDER / "with_slots").mkdir(exist_ok=True)
    write(FOLDER / "with_slots" / "model.ckpt-1234", slots=True, sharded=True)
