# pyright: reportPrivateImportUsage=false
from torch.nn.modules.adaptive import *
from torch.nn.modules.adaptive import _ASMoutput as _ASMoutput
