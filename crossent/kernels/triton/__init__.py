"""Kernels for GPUs, in Triton: one source for NVIDIA's and AMD's.

They fulfil the contract in `crossent.kernels`. `launches` is what the rest of the library calls; PyTorch brings Triton
along wherever it can use a GPU. Nothing here waits for the device or reads from it, and no result depends on the order
in which programs run: the same bits come out in every run.

A tile is an array (T, W, R) of the logits of R rows: T * W classes beside each other, of which a thread has the W of
one line. Rows whose classes lie side by side in memory have tiles of one row; where the rows lie side by side a tile
has many, and so it has of rows with few classes. All reading is by strides.
"""
