"""Served values against recomputed ones: how many agree, and why the others do not."""
