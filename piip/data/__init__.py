"""Data for piip: reading, checking and preparing images with boxes and masks."""
