"""The function that extends the item snapshot by what changed."""
