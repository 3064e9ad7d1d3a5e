"""The torch code of heads that transformers has no class for. It is copied beside an exported encoder, and never imported here."""
