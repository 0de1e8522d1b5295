# pyright: reportPrivateImportUsage=false
from torch.nn.modules.container import *
from torch.nn.modules.container import _addindent as _addindent
