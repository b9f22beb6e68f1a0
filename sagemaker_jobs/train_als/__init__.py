"""Trains the matrix factorisation."""
