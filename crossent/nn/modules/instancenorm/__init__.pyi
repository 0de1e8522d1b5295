# pyright: reportPrivateImportUsage=false
from torch.nn.modules.instancenorm import *
from torch.nn.modules.instancenorm import _InstanceNorm as _InstanceNorm
