"""Stacks of layers, one file each."""
