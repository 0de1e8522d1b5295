# pyright: reportPrivateImportUsage=false
from torch.nn.modules.linear import *
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as NonDynamicallyQuantizableLinear
