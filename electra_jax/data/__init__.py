"""Text to rows of tokens, and rows to batches. No jax here but in loader.py."""
