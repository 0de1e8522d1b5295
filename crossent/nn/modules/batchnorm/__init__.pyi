# pyright: reportPrivateImportUsage=false
from torch.nn.modules.batchnorm import *
from torch.nn.modules.batchnorm import _BatchNorm as _BatchNorm
from torch.nn.modules.batchnorm import _LazyNormBase as _LazyNormBase
from torch.nn.modules.batchnorm import _NormBase as _NormBase
