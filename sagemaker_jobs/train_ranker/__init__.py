"""Trains the ranker and puts the whole bundle together."""
