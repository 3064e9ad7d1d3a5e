"""ELECTRA pretraining in JAX. Names load when they are first used: preparing data must not import jax."""

import importlib

__version__ = "0.1.0"

_HOME = {
    "ElectraConfig": "electra_jax.models.config",
    "PRESETS": "electra_jax.models.config",
    "init_params": "electra_jax.models.electra",
    "generator_apply": "electra_jax.models.electra",
    "discriminator_apply": "electra_jax.models.electra",
    "task_apply": "electra_jax.models.electra",
    "hidden_states": "electra_jax.models.electra",
    "prepare": "electra_jax.data.prepare",
    "PrepareOptions": "electra_jax.data.prepare",
    "pretrain": "electra_jax.pretrain",
    "load": "electra_jax.interop.formats",
    "save": "electra_jax.interop.formats",
    "encode": "electra_jax.interop.text",
    "load_task": "electra_jax.infer.predict",
    "predict": "electra_jax.infer.predict",
    "score": "electra_jax.infer.scores",
    "load_scorer": "electra_jax.infer.scores",
    "fill_mask": "electra_jax.infer.scores",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'electra_jax' has no attribute {name!r}")
    # Kept, because the import of a submodule puts it here under its own name: "pretrain" would be the module from the second use on.
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
