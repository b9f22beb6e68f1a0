"""Compares two stacks of candidate sources."""
