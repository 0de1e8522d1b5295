"""NumPy: kernels for everything."""

from crossent.frontends.numpy.losses import cross_entropy, nll_loss, prediction_stats, softmax, value_and_grad

__all__ = [
    "cross_entropy", "linear_cross_entropy", "linear_token_stats", "nll_loss", "prediction_stats", "softmax",
    "value_and_grad",
]  # fmt: skip


def linear_cross_entropy(*arguments):
    """See `head`, which is imported at its first use."""
    from crossent.frontends.numpy import head

    return head.linear_cross_entropy(*arguments)


def linear_token_stats(*arguments):
    from crossent.frontends.numpy import head

    return head.linear_token_stats(*arguments)
