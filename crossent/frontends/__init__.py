"""One file for each array library: what its arrays and its autograd need, and no meaning."""
