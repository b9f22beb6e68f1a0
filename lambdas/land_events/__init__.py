"""The function that writes stream batches to the lake's landing zone."""
