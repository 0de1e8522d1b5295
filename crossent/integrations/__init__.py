"""crossent inside the libraries that train models."""
