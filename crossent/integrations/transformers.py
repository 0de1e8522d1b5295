"""Causal language models of the transformers library that never make their training logits.

`patch` gives a model and its output embedding subclasses of their own classes. While the model trains with labels, a
call of the embedding gives `Logits`, which note what the model does to logits, before any hook runs. Where the model
takes their cross entropy, the embedding is called as a module, and answers with `crossent.linear_cross_entropy` of the
hidden states: hooks that bring its weights for as long as it runs bring them for the loss. The model's own loss
function is what takes the cross entropy, so what labels, shifts and divisors mean stays where it was.
"""

import dataclasses
import functools
import inspect
import threading
import warnings

import torch

from crossent.integrations import _parallel
from crossent.integrations._logits import Logits, Step


class _Current(threading.local):
    """The step that this thread is in. Not a ContextVar, which torch.compile does not follow."""

    def __init__(self):
        self.step: Step | None = None


_current = _Current()


def _head_members(base, loss_of):
    """`loss_of` makes the loss of rows and targets, given the head and what `Logits.cross_entropy` asked for."""

    def __call__(self, input, *args, **kwargs):
        step, is_asked = _current.step, isinstance(input, dict) or "loss" in kwargs
        if is_asked or step is None or not any(module is self for module in step.answering):
            return base.__call__(self, input, *args, **kwargs)
        for hook in filter(_parallel.is_hook, self._forward_pre_hooks.values()):
            input = hook(self, (input,))
        logits = Logits(step, input, _classes_of(self))
        for hook in filter(_parallel.is_hook, self._forward_hooks.values()):
            logits = hook(self, (input,), logits)
        return logits

    def forward(self, input, *args, **kwargs):
        if isinstance(input, dict):
            return {"loss": loss_of(self, **input)}
        if "loss" in kwargs:
            return _parallel.Loss(loss=loss_of(self, input, **kwargs))
        return base.forward(self, input, *args, **kwargs)

    return {"__call__": __call__, "forward": forward}


def _classes_of(head):
    linear = head.get_base_layer() if _is_adapted(type(head)) else head
    return len(linear.weight) if linear.weight.ndim == 2 else linear.out_features  # not while others have the weight


def _linear_members(base):
    return _head_members(base, lambda self, input, target, loss: loss.of_linear(self, input, target))


def _adapted_members(base):
    def loss_of(self, input, target, loss):
        return loss.by_chunks(self, functools.partial(base.forward, self), input, target)

    return _head_members(base, loss_of)


def _is_adapted(kind):
    """Whether it is a class of PEFT's, whose layers add something to those that they have as `base_layer`."""
    return hasattr(kind, "adapter_layer_names") and hasattr(kind, "get_base_layer")


def _model_members(base):
    position = list(inspect.signature(base.forward).parameters).index("labels") - 1  # without self

    def forward(self, *args, **kwargs):
        labels = args[position] if len(args) > position else kwargs.get("labels")
        if not self.training or labels is None or _base(self) is None:
            if labels is None and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                warnings.warn(
                    "a patched model was called in training without labels, so it makes its logits: for label "
                    "smoothing or a loss of your own set the model's loss_function instead of a Trainer's options",
                    stacklevel=4,
                )
            return base.forward(self, *args, **kwargs)
        head = self.get_output_embeddings()
        answering = tuple(_answering(head))
        if not answering:
            raise ValueError(f"{base.__name__} has another output embedding than when it was patched: patch it again")
        outside, step = _current.step, Step(head, answering)
        _current.step = step
        try:
            output = base.forward(self, *args, **kwargs)
        finally:
            _current.step = outside
        if not step.has_loss:
            raise TypeError(f"{base.__name__} took no cross entropy of its output embedding's logits: unpatch it")
        return _without_logits(output)

    return {"forward": forward}


def _answering(head):
    """The patched modules of an output embedding, which others may wrap, but none inside another."""
    if _base(head) is not None:
        return [head]
    # An adapter adds to what the Linear inside answers.
    return [] if _is_adapted(type(head)) else [module for child in head.children() for module in _answering(child)]


def _without_logits(output):
    """Its items do not have them; its attribute says what to do."""
    if isinstance(output, tuple):
        return tuple(value for value in output if not isinstance(value, Logits))
    unmade = {name: value for name, value in output.items() if isinstance(value, Logits)}
    output = dataclasses.replace(output, **dict.fromkeys(unmade))
    if not torch.compiler.is_compiling():
        vars(output).update(unmade)
    return output


def _is_trl(forward):
    """Whether TRL's trainers put it on a model, for a fused head of their own that does not call the model's."""
    return "fused_lm_head" in getattr(getattr(forward, "__code__", None), "co_varnames", ())


@functools.cache
def _patched(base):
    """A subclass by the same name, since transformers looks up by class names."""
    kinds = {
        _linear_members: issubclass(base, torch.nn.Linear),
        _adapted_members: _is_adapted(base),
        _model_members: True,
    }
    members = next(make for make, fits in kinds.items() if fits)(base)
    # What the Trainer reads. Not __wrapped__, through which accelerate's unwrapping would lose this forward.
    members["forward"].__signature__ = inspect.signature(base.forward)  # pyright: ignore[reportFunctionMemberAccess]

    def __reduce_ex__(self, protocol):
        return _blank, (base,), *base.__reduce_ex__(self, protocol)[2:]

    def __setattr__(self, name, value):
        if name == "forward" and _is_trl(value):
            warnings.warn(
                "TRL's trainer makes the loss with a fused head of its own, for which patch does nothing", stacklevel=3
            )
        if name == "forward" and _parallel.is_plans(value):
            value = _parallel.Forward(self, value)
        base.__setattr__(self, name, value)

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {"__reduce_ex__": __reduce_ex__, "__setattr__": __setattr__, "_crossent_base": base}
    return type(base.__name__, (base,), names | members)


def _blank(base):
    return _patched(base).__new__(_patched(base))


def _base(module):
    """The class that a patched module had, None for others."""
    return getattr(type(module), "_crossent_base", None)


def _head_of(model):
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embedding: get_output_embeddings() must return one")
    return head


def patch(model):
    """Make a causal language model of transformers train with the fused head, so that its logits are never made.

        loss = crossent.linear_cross_entropy(hidden_states, output_embedding.weight, labels, ...)

    Equals the unpatched model in loss and gradients, up to rounding. While `model.training` holds and `labels` are
    given, the output is without `logits` (its attribute of this name says what to do instead); in evaluation, without
    labels and in generate everything is as before. The loss function stays the model's own, with what it makes of label
    shift, ignored labels, `shift_labels` and `num_items_in_batch`; of what happens to the logits, scaling by numbers, a
    bias for each class, a softcap, float(), and the choice of positions or of the first classes are understood, and all
    else raises TypeError or AttributeError when the model is called.

    Args:
        model: any model, with a decoder or with both, whose `get_output_embeddings()` is a torch.nn.Linear (tied or
            not, with or without bias) and whose forward takes `labels`; PEFT may have adapted that Linear, or keep a
            copy of it, and torch.compile may have wrapped the model. Patch it before accelerate or a Trainer prepares
            it, and after PEFT.

    The products are in the dtype of the hidden states, or autocast's; losses are made in float32 (float64 for float64).
    A scale is applied to the hidden states, in their dtype, and a softcap in float32.

    The loss is made in a call of the output embedding as a module, the only one for which its hooks run: offloading,
    gathering and sharding by hooks work as before. Where tensor parallel plans have spread its classes over processes,
    sums of rows are sent in place of logits. An adapted one makes its logits for some rows at a time, and their
    gradients while they are there.

    Returns the model, whose class and whose output embedding's class are now subclasses of the same names. Parameters,
    their names, state_dict, deepcopy and pickle work as before. Patching again is harmless, and needed once the output
    embedding is replaced or adapted.

    Raises TypeError, and changes nothing, for a model without output embedding, with one that is not a plain
    torch.nn.Linear or PEFT's of one (quantised ones, say), whose forward takes no labels, or whose forward or output
    embedding's forward was replaced on the instance, as TRL's trainers do. Warns when it is called in training without
    labels, as for label smoothing of a Trainer, which makes the logits.

    Example::

        model = crossent.integrations.transformers.patch(AutoModelForCausalLM.from_pretrained(name))
        Trainer(model, arguments, train_dataset=dataset).train()
    """
    inner = _inner(model)
    modules = [inner, *_patchable(_head_of(inner))]
    if "labels" not in inspect.signature(type(inner).forward).parameters:
        raise TypeError(f"{type(inner).__name__}.forward must take labels, from which it makes its loss")
    for module in modules:
        if _base(module) is None and "forward" in vars(module) and not _parallel.is_plans(module.forward):
            if _is_trl(module.forward):
                raise TypeError(f"{type(module).__name__} has TRL's fused head already, which makes its loss by itself")
            raise TypeError(f"{type(module).__name__}.forward was replaced on the instance: patch before that")
    for module in modules:
        if _base(module) is None:
            module.__class__ = _patched(type(module))
            if "forward" in vars(module):
                module.forward = vars(module)["forward"]
    return model


def _inner(model):
    """What torch.compile and PEFT wrapped."""
    if hasattr(model, "_orig_mod"):
        return _inner(model._orig_mod)
    return _inner(model.get_base_model()) if hasattr(model, "get_base_model") else model


def _patchable(head):
    """The modules of an output embedding that make its logits now, or after its adapters are gone."""
    linear = head.get_base_layer() if _is_adapted(type(head)) else head
    if isinstance(linear, torch.nn.Linear) and (_base(linear) or type(linear)).forward is torch.nn.Linear.forward:
        return [head] if linear is head else [head, linear]
    if not hasattr(head, "modules_to_save"):
        raise TypeError(
            f"the output embedding must be a torch.nn.Linear with its own forward, or PEFT's of one, got {type(linear)}"
        )
    found = (_patchable(module) for module in (head.original_module, *head.modules_to_save.values()))
    return [module for modules in found for module in modules]


def unpatch(model):
    """Undo `patch`: the model and its output embedding get their own classes back.

    Returns the model, which makes its logits again. One that was not patched stays as it is.

    Raises TypeError for a model without output embedding, and where another library has put a class of its own on top
    since, as FSDP does.

    Example::

        model = crossent.integrations.transformers.unpatch(model)
    """
    patched = [module for module in (_inner(model), *_head_of(model).modules()) if _base(module) is not None]
    for module in patched:
        if type(module) is not _patched(_base(module)):
            raise TypeError(
                f"{type(module).__name__} was wrapped in another class after it was patched: undo that first"
            )
    for module in patched:
        module.__class__ = _base(module)
        if isinstance(module.forward, _parallel.Forward):
            module.forward = module.forward.plans
    return model
