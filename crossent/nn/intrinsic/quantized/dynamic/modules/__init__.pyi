# pyright: reportPrivateImportUsage=false
from torch.nn.intrinsic.quantized.dynamic.modules import *
from torch.nn.intrinsic.quantized.dynamic.modules import linear_relu as linear_relu
