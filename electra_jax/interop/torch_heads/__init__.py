"""PyTorch code for heads that transformers has no class for. It is copied into the folder of an exported encoder, and not imported here."""
