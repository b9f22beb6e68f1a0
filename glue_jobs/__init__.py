"""Spark jobs, one file each: read, transform, write. The same files run in Glue."""
