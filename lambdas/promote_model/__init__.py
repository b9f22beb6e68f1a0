"""The function that moves the pointer to a better model."""
