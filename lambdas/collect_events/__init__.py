"""The function that takes event batches over HTTP."""
