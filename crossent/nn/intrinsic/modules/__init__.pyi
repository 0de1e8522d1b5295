# pyright: reportPrivateImportUsage=false
from torch.nn.intrinsic.modules import *
from torch.nn.intrinsic.modules import fused as fused
