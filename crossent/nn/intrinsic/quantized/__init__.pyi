# pyright: reportPrivateImportUsage=false
from torch.nn.intrinsic.quantized import *
from torch.nn.intrinsic.quantized import dynamic as dynamic
from torch.nn.intrinsic.quantized import modules as modules
