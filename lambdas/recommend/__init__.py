"""The function that answers requests for recommendations."""
