# pyright: reportPrivateImportUsage=false
from torch.nn.intrinsic import *
from torch.nn.intrinsic import modules as modules
from torch.nn.intrinsic import qat as qat
from torch.nn.intrinsic import quantized as quantized
