"""The function that appends to the policy log."""
