"""Patched models under torch.compile."""

import pytest
import torch
from language_models import assert_same, batch, build, step

from crossent.integrations.transformers import patch, unpatch

pytestmark = pytest.mark.skipif(torch.__version__ < "2.10", reason="models of transformers 5 are no one graph there")


@pytest.fixture(autouse=True)
def new_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "backend"), [("Gemma2", "aot_eager"), ("Llama", "eager")])
def test_one_graph(family, backend):
    """As without the patch."""
    model = build(family, attn_implementation="eager")  # the one that Gemma asks for, by a message where it is not
    theirs = step(model)
    compiled = torch.compile(patch(model), backend=backend, fullgraph=True)
    for _ in range(2):  # the second runs what the first made
        ours = step(model, call=compiled)
        assert_same(ours, theirs)
    assert "logits" not in ours[0] and ours[0].logits is None
    assert torch.isfinite(model(**batch()).loss)  # and without the compiler


def test_models_whose_forward_makes_a_loss_module():
    """torch.compile puts torch.nn.CrossEntropyLoss() into its graph without asking what it is called with."""
    model = build("Bart")
    theirs = step(model)
    compiled = torch.compile(patch(model), backend="eager")
    assert_same(step(model, call=compiled), theirs)
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) <= 3


def test_patch_of_a_compiled_model():
    model = build()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    theirs = step(model, call=compiled)
    assert patch(compiled) is compiled
    ours = step(model, call=compiled)
    assert "logits" not in ours[0]
    assert_same(ours, theirs)
    assert unpatch(compiled) is compiled and "logits" in compiled(**batch())
    model.compile(backend="eager", fullgraph=True)  # in place
    ours = step(patch(model))
    assert "logits" not in ours[0]
    assert_same(ours, theirs)
