# pyright: reportPrivateImportUsage=false
from torch.nn.intrinsic.quantized.modules import *
from torch.nn.intrinsic.quantized.modules import bn_relu as bn_relu
from torch.nn.intrinsic.quantized.modules import conv_relu as conv_relu
from torch.nn.intrinsic.quantized.modules import linear_relu as linear_relu
