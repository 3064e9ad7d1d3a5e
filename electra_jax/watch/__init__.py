"""What a person sees of a run, and what ends one that should not go on. Knows no objective."""
