"""What calls with NumPy's arrays are going to do."""

from crossent.frontends import _plans
from crossent.frontends._problem import compute_storage
from crossent.frontends.numpy.head import head_of
from crossent.frontends.numpy.losses import NUMPY, readable


def plan(name, arguments, options, how):
    a = arguments
    input = readable("input", a["input"])
    if name in ("softmax", "log_softmax"):
        x = input if a["dtype"] is None else input.astype(a["dtype"])
        return _plans.of_softmax(NUMPY, name, x, _plans.KERNELS, ())
    if how is not None:
        return _of_head(name, a, options, how)
    if name == "prediction_stats":
        return _plans.of_prediction(NUMPY, name, input, readable("target", a["target"]), a["dim"], ())
    return _plans.of_loss(NUMPY, name, input, readable("target", a["target"]), a["dim"], options, ())


def _of_head(name, a, options, how):
    weights = a.get("weight"), a.get("sample_weight")
    head, _ = head_of(a["input"], a["linear_weight"], a["target"], a["linear_bias"], *weights, options, how)
    accumulators = 4 * head.weight.size if head.x.itemsize == 2 else 0
    wanted = (True, True, head.bias is not None, False)
    return _plans.of_head(name, head, wanted, compute_storage(NUMPY.storage(head.x)), (), accumulators)
