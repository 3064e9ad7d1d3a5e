"""Devices, meshes and executors. Knows no model."""
