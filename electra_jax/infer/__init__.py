"""Using a model that is trained."""
