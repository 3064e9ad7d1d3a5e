"""Predicting with a fine-tuned model."""
