"""What survives a death: checkpoints, the workdir and who holds it. The only importer of Orbax is checkpoints.py."""
