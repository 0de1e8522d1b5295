"""Makes the modules below torch.nn importable below `crossent.nn`: `from crossent.nn.utils.rnn import pad_sequence`.

Such an import gives torch's own module, not a second copy, and puts nothing of ours into torch.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

OWN = {"_scripting", "_submodules", "functional", "modules", "modules.activation", "modules.loss"}


class _TorchModules(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".nn.")
        return ModuleSpec(fullname, self) if package == "crossent" and name not in OWN else None

    def exec_module(self, module):
        # What stands in sys.modules afterwards is what the import gives.
        sys.modules[module.__name__] = import_module(module.__name__.replace("crossent", "torch", 1))


# First of all finders: torch.nn.utils says where its files are, and the ordinary finder would load them a second time.
sys.meta_path.insert(0, _TorchModules())
