# pyright: reportPrivateImportUsage=false
from torch.nn.intrinsic.qat.modules import *
from torch.nn.intrinsic.qat.modules import conv_fused as conv_fused
from torch.nn.intrinsic.qat.modules import linear_fused as linear_fused
from torch.nn.intrinsic.qat.modules import linear_relu as linear_relu
