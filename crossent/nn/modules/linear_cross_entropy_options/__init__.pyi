# pyright: reportPrivateImportUsage=false
from torch.nn.modules.linear_cross_entropy_options import *
from torch.nn.modules.linear_cross_entropy_options import _AutoDefault as _AutoDefault
