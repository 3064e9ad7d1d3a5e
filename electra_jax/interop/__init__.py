"""Checkpoints of other programs, in and out: transformers' folders and Google's TF1 checkpoints."""
