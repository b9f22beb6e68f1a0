"""Feature kinds, declarations, visitor state and the vectors that models read."""
