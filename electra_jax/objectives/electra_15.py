"""ELECTRA 15%: as electra.py, but the discriminator's loss counts the masked tokens alone (arXiv 2003.10555, 3.4: 82.4 on GLUE, where
ELECTRA has 85.0): what it loses is the share of the gain that comes from learning at every token."""

from functools import partial

from electra_jax.objectives import electra

reads, networks, directed, scores = electra.reads, electra.networks, electra.directed, electra.scores
make = partial(electra.make, masked_only=True)
