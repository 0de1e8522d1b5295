"""crossent.nn and crossent.nn.functional in the place of torch.nn and torch.nn.functional."""

import copy
import functools
import importlib
import inspect
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional
from torch.testing._internal.common_modules import module_db

import crossent.nn
import crossent.nn.functional

OURS = ("Softmax", "LogSoftmax", "NLLLoss", "CrossEntropyLoss")
HEAD = "LinearCrossEntropyLoss"
INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in OURS}
DTYPES = (torch.float32, torch.float64)


@functools.cache
def samples(name, function, dtype):
    torch.manual_seed(0)
    info = INFOS[name]
    make = getattr(info, function)
    return make(info, device="cpu", dtype=dtype, requires_grad=True, training=True) if make else []


def module_cases(function):
    return [
        pytest.param(name, dtype, index, id=f"{name}-{str(dtype)[6:]}-{index}")
        for name in OURS
        for dtype in DTYPES
        for index in range(len(samples(name, function, dtype)))
    ]


def step(kind, sample, dtype):
    """The output, and the gradients of all arguments that require one."""

    def cast(value):
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    construct, call = sample.constructor_input, sample.forward_input
    module = kind(*map(cast, construct.args), **{name: cast(value) for name, value in construct.kwargs.items()})
    args = [cast(arg.detach()).requires_grad_(arg.requires_grad) for arg in call.args]
    output = module(*args, **call.kwargs)
    output.backward(torch.linspace(0.5, 1.5, output.numel(), dtype=dtype).reshape(output.shape))
    return [output.detach(), *(arg.grad for arg in args if arg.requires_grad)]


@pytest.mark.parametrize(("name", "dtype", "index"), module_cases("module_inputs_func"))
def test_module_info_samples(name, dtype, index):
    sample = samples(name, "module_inputs_func", dtype)[index]
    ours = step(getattr(crossent.nn, name), sample, dtype)
    exact = step(getattr(torch.nn, name), sample, torch.float64)
    for result, expected in zip(ours, exact, strict=True):
        assert result.dtype == dtype
        # Sums of terms of either sign, rounded in proportion to the terms. All rows ignored is 0 / 0.
        largest = expected.nan_to_num().abs().max().clamp(min=1).item()
        torch.testing.assert_close(
            result.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps * largest, equal_nan=True
        )


@pytest.mark.parametrize(("name", "dtype", "index"), module_cases("module_error_inputs_func"))
def test_module_info_error_inputs(name, dtype, index):
    sample = samples(name, "module_error_inputs_func", dtype)[index]
    construct, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
    if name == "NLLLoss":
        # Class weights of another float type than the logits are an error there and a guarantee here.
        assert crossent.nn.NLLLoss(**construct.kwargs)(*call.args).isnan()
        return
    with pytest.raises((ValueError, TypeError, sample.error_type)):
        getattr(crossent.nn, name)(*construct.args, **construct.kwargs)(*call.args)


@pytest.mark.parametrize("path", ["nn", "nn.functional", "nn.modules", "nn.modules.loss", "nn.modules.activation"])
def test_every_name_of_torch_is_there(path):
    ours, theirs = importlib.import_module(f"crossent.{path}"), importlib.import_module(f"torch.{path}")
    different = {
        name
        for name in dir(theirs)
        if not (name.startswith("__") and name.endswith("__")) and getattr(ours, name) is not getattr(theirs, name)
    }
    expected = {
        "nn": {*OURS, HEAD, "functional", "modules"},
        "nn.functional": {"softmax", "log_softmax", "nll_loss", "cross_entropy", "linear_cross_entropy"},
        "nn.modules": {*OURS, HEAD, "loss", "activation"},
        "nn.modules.loss": {"NLLLoss", "CrossEntropyLoss", HEAD},
        "nn.modules.activation": {"Softmax", "LogSoftmax"},
    }[path]
    heads = {HEAD, "linear_cross_entropy"} & expected
    assert all(hasattr(ours, head) for head in heads)
    assert different == expected - {head for head in heads if not hasattr(theirs, head)}
    assert all(getattr(ours, name).__module__.startswith("crossent.") for name in different & {*OURS})
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ours.no_such_name


def test_every_way_to_import():
    import crossent.nn.functional as F
    import crossent.nn.utils.rnn
    from crossent import nn
    from crossent.nn import CrossEntropyLoss, Linear, functional
    from crossent.nn.modules.batchnorm import _BatchNorm
    from crossent.nn.parameter import Parameter
    from crossent.nn.utils import clip_grad_norm_

    assert nn is crossent.nn and functional is F is nn.functional
    assert Linear is torch.nn.Linear and CrossEntropyLoss is nn.CrossEntropyLoss
    assert issubclass(torch.nn.BatchNorm1d, _BatchNorm) and Parameter is torch.nn.Parameter
    assert clip_grad_norm_ is torch.nn.utils.clip_grad_norm_
    assert crossent.nn.utils.rnn is torch.nn.utils.rnn


def test_modules_below_torch_nn_are_torchs_own():
    """A fresh process, where torch has not yet loaded this one itself."""
    source = """
import sys
import crossent.nn.attention.flex_attention as ours
spec = ours.__spec__
import torch.nn.attention.flex_attention as theirs
assert ours is theirs and ours.__name__ == spec.name == "torch.nn.attention.flex_attention"
try:
    import crossent.nn.no_such_module
except ModuleNotFoundError:
    pass
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=300)


def test_torch_itself_is_left_alone():
    for name in OURS:
        assert getattr(torch.nn, name).__module__.startswith("torch.")
        assert getattr(torch.nn.modules, name) is getattr(torch.nn, name)
    assert torch.nn.functional.cross_entropy.__module__ == "torch.nn.functional"
    assert torch.nn.functional.__spec__.name == "torch.nn.functional"


def built():
    weight = torch.tensor([0.5, 2.0, 1.0])
    return [
        (name, kwargs)
        for name, choices in {
            "Softmax": [{}, {"dim": 1}],
            "LogSoftmax": [{}, {"dim": -1}],
            "NLLLoss": [{}, {"weight": weight, "ignore_index": 1, "reduction": "sum"}],
            "CrossEntropyLoss": [{}, {"weight": weight, "ignore_index": 1, "label_smoothing": 0.1}],
        }.items()
        for kwargs in choices
    ]


@pytest.mark.parametrize(("name", "kwargs"), built())
def test_modules_are_torchs_to_the_eye(name, kwargs):
    ours, theirs = getattr(crossent.nn, name)(**kwargs), getattr(torch.nn, name)(**kwargs)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert {key: value for key, value in vars(theirs).items() if not key.startswith("_")}.items() <= vars(ours).items()
    assert ours.to(torch.float64).state_dict().keys() == theirs.state_dict().keys()
    assert repr(torch.nn.Sequential(ours)) == repr(torch.nn.Sequential(theirs))


def positional(signature):
    return [
        (p.name, p.default) for p in signature.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]


@pytest.mark.parametrize("name", OURS)
def test_signatures_begin_as_torchs(name):
    for function in ("__init__", "forward"):
        ours = inspect.signature(getattr(getattr(crossent.nn, name), function))
        theirs = inspect.signature(getattr(getattr(torch.nn, name), function))
        assert positional(ours) == positional(theirs)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "nll_loss", "cross_entropy"])
def test_function_signatures_begin_as_torchs(name):
    ours, theirs = getattr(crossent.nn.functional, name), getattr(torch.nn.functional, name)
    assert positional(inspect.signature(ours)) == positional(inspect.signature(theirs))


EXTRAS = {"dim": -1, "softcap": 5.0, "z_loss": 0.25, "label_smoothing": 0.1, "weight": torch.tensor([0.5, 2.0, 1.0])}


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_compute_the_same(duplicate):
    module = crossent.nn.CrossEntropyLoss(**EXTRAS)
    other = duplicate(module)
    assert type(other) is crossent.nn.CrossEntropyLoss and repr(other) == repr(module)
    assert other.weight is not module.weight
    logits, labels = torch.randn(4, 2, 3), torch.randint(3, (4, 2))
    assert torch.equal(other(logits, labels), module(logits, labels))


def test_repr_shows_changed_extras_alone():
    assert repr(crossent.nn.CrossEntropyLoss(reduction="sum")) == "CrossEntropyLoss()"
    assert repr(crossent.nn.CrossEntropyLoss(dim=-1, softcap=30.0)) == "CrossEntropyLoss(dim=-1, softcap=30.0)"
    changed = crossent.nn.CrossEntropyLoss(z_loss=1e-4, inplace_backward=True)
    assert repr(changed) == "CrossEntropyLoss(z_loss=0.0001, inplace_backward=True)"
    assert repr(crossent.nn.NLLLoss(dim=2)) == "NLLLoss(dim=2)"


def test_extras_reach_the_functions():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 2, 3), torch.randint(3, (4, 2))
    call = {"sample_weight": torch.rand(4, 2), "denominator": 3.0}
    ours = crossent.nn.CrossEntropyLoss(**EXTRAS)(logits, labels, **call)
    assert torch.equal(ours, crossent.cross_entropy(logits, labels, **EXTRAS, **call))
    assert not torch.equal(ours, crossent.nn.CrossEntropyLoss(dim=-1)(logits, labels))
    ours = crossent.nn.NLLLoss(dim=-1)(logits, labels, **call)
    assert torch.equal(ours, crossent.nll_loss(logits, labels, dim=-1, **call))

    leaf = torch.randn(4, 3, requires_grad=True)
    scaled = leaf * 2
    loss = crossent.nn.CrossEntropyLoss(inplace_backward=True)(scaled, torch.tensor([0, 1, 2, 0]))
    before = scaled.detach().clone()
    loss.backward()
    assert not torch.equal(scaled.detach(), before)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"reduction": "median"}, ValueError),
        ({"label_smoothing": -0.1}, ValueError),
        ({"label_smoothing": float("nan")}, ValueError),
        ({"softcap": 0.0}, ValueError),
        ({"z_loss": -1.0}, ValueError),
        ({"ignore_index": 1.5}, TypeError),
        ({"no_such_option": 1}, TypeError),
    ],
)
def test_options_are_checked_at_construction(kwargs, error):
    with pytest.raises(error):
        crossent.nn.CrossEntropyLoss(**kwargs)
    if kwargs.keys() & {"reduction", "ignore_index", "no_such_option"}:
        with pytest.raises(error):
            crossent.nn.NLLLoss(**kwargs)


@pytest.mark.parametrize("name", ["NLLLoss", "CrossEntropyLoss"])
@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_deprecated_options(name, size_average, reduce):
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        module = getattr(crossent.nn, name)(size_average=size_average, reduce=reduce)
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        expected = getattr(torch.nn, name)(size_average=size_average, reduce=reduce)
    assert module.reduction == expected.reduction
    assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]


def test_options_can_be_changed_after_construction():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    module = crossent.nn.CrossEntropyLoss()
    module.reduction = "none"
    assert module(logits, labels).shape == (4,)
    module.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    torch.testing.assert_close(module(logits, labels), crossent.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_default_dim_warns_where_the_module_is_called(name):
    logits = torch.randn(2, 3)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
        output = getattr(crossent.nn, name)()(logits)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as expected:
        theirs = getattr(torch.nn, name)()(logits)
    torch.testing.assert_close(output, theirs)
    assert [(w.filename, str(w.message)) for w in caught] == [(w.filename, str(w.message)) for w in expected]


PROGRAM = """
import torch
{imports}

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(5, 8, batch_first=True)
        self.body = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 4, bias=False)
        nn.init.xavier_uniform_(self.head.weight)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        states, _ = self.rnn(x)
        return self.scale * self.head(self.body(F.relu(states)))


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0]), label_smoothing=0.1)
nll = nn.NLLLoss(ignore_index=3)
x, y = torch.randn(6, 7, 5), torch.randint(4, (6, 7))
results = []
for _ in range(5):
    logits = net(x).transpose(1, 2)
    loss = criterion(logits, y) + nll(nn.LogSoftmax(1)(logits), y)
    loss = loss + F.cross_entropy(logits, F.softmax(x[..., :4], dim=-1).transpose(1, 2), reduction="sum") / 42
    loss = loss + F.nll_loss(F.log_softmax(logits, dim=1), y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    results.append(loss.detach())
results += [p.detach() for p in net.parameters()]
results.append(nn.Softmax(dim=1)(logits).detach())
"""


def test_a_program_runs_with_two_lines_changed():
    results = {}
    for library in ("torch", "crossent"):
        lines = f"import {library}.nn as nn\nimport {library}.nn.functional as F"
        scope = {"__name__": "program"}
        exec(PROGRAM.format(imports=lines), scope)
        results[library] = scope["results"]
    for ours, theirs in zip(results["crossent"], results["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
