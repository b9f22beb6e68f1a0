"""Trains what needs counting only: co-visitation, popularity, segment slates, item statistics."""
