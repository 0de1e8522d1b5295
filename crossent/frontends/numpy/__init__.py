"""The frontend for NumPy."""
