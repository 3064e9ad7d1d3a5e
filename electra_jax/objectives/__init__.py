"""Training objectives, a file each, every one an `electra_jax.types.Objective`; `config.objective.name` chooses.

A file has `NETWORKS`, the names of its networks, and `make(model, masking, config, vocabulary, slots_multiple) -> Objective`. To add one:
the file, and its line below.
"""

OBJECTIVES = {
    "electra": "electra_jax.objectives.electra",
}
