"""Pretraining objectives: one file each, every one an `electra_jax.types.Objective`."""
