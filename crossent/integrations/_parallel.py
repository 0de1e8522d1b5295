"""Output embeddings whose classes tensor parallel training has spread over processes: their weights are DTensors.

parallelize_module puts hooks on a module, which make a DTensor of its input and place its output as the next module
wants it; a plan of transformers puts a forward on the module that does the same. Of logits that are not made there is
nothing to place.
"""

from torch.utils import _pytree as pytree


def is_dtensor(tensor):
    return hasattr(tensor, "device_mesh")


def as_dtensor(tensor, mesh):
    """Of a plain tensor that is the same in all processes."""
    from torch.distributed.tensor import DTensor, Replicate

    if is_dtensor(tensor):
        return tensor
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def is_hook(hook):
    """Whether parallelize_module put it on a module."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.tensor")


class Loss(dict):
    """What a head answers with for its loss: hooks that place its output leave this as it is."""

    placements = ()

    def redistribute(self, *args, **kwargs):
        return self

    to_local = redistribute


# Hooks of fully_shard look for tensors in dictionaries; older ones of it, in those that are known here.
pytree.register_pytree_node(Loss, lambda made: (list(made.values()), list(made)), lambda v, k: Loss(zip(k, v)))


def is_plans(forward):
    """Whether a plan of transformers put it on a module."""
    module = getattr(forward, "__module__", None) or ""
    return module.startswith("transformers.") and forward.__name__ == "tp_forward"


class Forward:
    """One that a plan put on a head, for all that the head is called for but its loss."""

    def __init__(self, module, plans):
        self.module, self.plans = module, plans

    def __call__(self, input, *args, **kwargs):
        if isinstance(input, dict):
            return type(self.module).forward(self.module, input)
        return self.plans(input, *args, **kwargs)
