# pyright: reportPrivateImportUsage=false
from torch.nn.modules.module import *
from torch.nn.modules.module import _IncompatibleKeys as _IncompatibleKeys
from torch.nn.modules.module import _WrappedHook as _WrappedHook
from torch.nn.modules.module import _addindent as _addindent
from torch.nn.modules.module import _forward_unimplemented as _forward_unimplemented
from torch.nn.modules.module import _has_any_global_hook as _has_any_global_hook
