"""Us and the peers, measured side by side in one run: `python launch/bench.py`, the tables of docs/speed.md."""
