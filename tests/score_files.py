"""Small files of logits and labels in every format that `crossent score` reads."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.numpy
import torch

FORMATS = ["csv", "npy", "npz", "npz, packed", "parquet", "parquet, lists", "pt", "safetensors"]


def suffix(kind):
    return "." + kind.partition(",")[0]


def example(rows=200, classes=7, seed=0):
    """Logits of a model that is right more often than not, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=rows)
    logits = generator.standard_normal((rows, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


def write(path, kind, array):
    if kind == "csv":
        names = ",".join(f"c{i}" for i in range(array.shape[1] if array.ndim == 2 else 1))
        np.savetxt(path, array, "%.17g" if array.dtype.kind == "f" else "%d", ",", header=names, comments="")
    elif kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, entry=array)
    elif kind == "npz, packed":
        np.savez_compressed(path, entry=array)
    elif kind == "pt":
        torch.save(torch.from_numpy(array), path)
    elif kind == "safetensors":
        safetensors.numpy.save_file({"entry": array}, path)
    elif array.ndim == 1:
        pyarrow.parquet.write_table(pa.table({"label": array}), path)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.table({f"c{i}": column for i, column in enumerate(array.T)}), path)
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        pyarrow.parquet.write_table(pa.table({"logits": lists}), path)
    return str(path)
