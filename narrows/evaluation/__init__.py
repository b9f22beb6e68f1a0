"""Metrics, splits and the promotion gate."""
