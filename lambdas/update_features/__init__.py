"""The function that folds events into visitors' states."""
