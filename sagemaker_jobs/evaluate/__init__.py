"""Evaluates a bundle, and the current one beside it, on held-out events."""
