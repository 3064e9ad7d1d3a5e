"""Training objectives, a file each, every one an `electra_jax.types.Objective`; `config.objective.name` chooses.

To add one: the file, and its line below. A file has

  reads(config) -> the fields of ObjectiveConfig, beside the name, that it reads.
  networks(config) -> {name of a network: {name of a head in its params: which of models.heads.PRETRAINING it is}}.
  directed(config) -> whether attention must be able to hide from a token what comes after it, or before (types.DirectedBatch).
  make(model, masking, config, vocabulary, slots_multiple) -> Objective. UserError where these contradict one another.
  scores(config) -> {kind of score: the Head that gives it}, where texts can be scored with what it trains (infer/scores.py).

The network that is kept, whatever its heads are, is "discriminator" in all of them: fine-tuning, export and vectors find it by this name.
"""

from typing import NamedTuple

OBJECTIVES = {
    "electra": "electra_jax.objectives.electra",
    "electra_15": "electra_jax.objectives.electra_15",
    "replace_mlm": "electra_jax.objectives.replace_mlm",
    "all_tokens_mlm": "electra_jax.objectives.all_tokens_mlm",
    "mlm": "electra_jax.objectives.mlm",
    "electric": "electra_jax.objectives.electric",
    "coco_clm": "electra_jax.objectives.coco_clm",
    "mntp_clm": "electra_jax.objectives.mntp_clm",
    "mixture": "electra_jax.objectives.mixture",
}


class Head(NamedTuple):
    """Of a network, by its name in the network's params."""

    network: str
    name: str
    shift: int = 0  # where the logits of a token stand, seen from the token
