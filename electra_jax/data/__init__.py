"""Text to rows of tokens, and rows to batches. No jax here but in rows/loader.py, and in rows/opening.py through it."""
