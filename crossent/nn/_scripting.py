"""What `torch.jit.script` compiles in place of a module: torch's own, since TorchScript knows no kernels of ours."""


def scripted_as(module, ours, torchs, *own):
    """Torch's module with the same state; `own` are the options that it does not have.

    A subclass with a `forward` of its own stays, for TorchScript to compile what is written there.
    """
    if type(module).forward is not ours.forward:
        return module
    for name in own:
        value = getattr(module, name)
        if value != getattr(ours, name):
            raise ValueError(
                f"{ours.__name__} with {name}={value!r} cannot be scripted: TorchScript compiles torch's own module, "
                "which has no such option. Use torch.jit.trace or torch.export"
            )
    made = torchs.__new__(torchs)
    made.__dict__.update({name: value for name, value in module.__dict__.items() if name not in own})
    return made
