"""Token rows on disk, and which row stands at an index."""
