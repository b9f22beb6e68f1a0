"""Trains the session transformer."""
