"""A package for each array library: what its arrays and its autograd need, but not what a loss means."""
