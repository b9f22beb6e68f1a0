"""Trains the two towers."""
