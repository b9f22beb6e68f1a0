"""Narrows: a multi-stage recommendation platform. Retrieve, rank, re-rank, policy."""

__version__ = "0.1.0"
