"""Compiles for chips that are not there."""
