"""The function that takes items as they change: over HTTP and from a stream."""
