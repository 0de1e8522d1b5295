"""What calls with NumPy's arrays are going to do."""

from crossent.frontends import _plans
from crossent.frontends._heads import head_of
from crossent.frontends.numpy.head import checked, products_for
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
    given = a["input"], a["linear_weight"], a["linear_bias"], a["target"], a.get("weight"), a.get("sample_weight")
    arrays, call = checked(given, options, how)
    head, *_ = head_of(arrays, call, products_for)
    accumulators = 4 * head.weight.size if head.x.itemsize == 2 else 0
    wanted = (True, True, head.bias is not None, False)
    return _plans.of_head(name, call, head, wanted, head.products.storage, (), accumulators)
