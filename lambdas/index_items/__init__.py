"""The function that keeps the vector index up to date with the items."""
