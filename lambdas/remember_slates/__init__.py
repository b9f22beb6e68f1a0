"""The function that keeps each visitor's last slates."""
