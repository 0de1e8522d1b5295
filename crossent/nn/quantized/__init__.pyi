# pyright: reportPrivateImportUsage=false
from torch.nn.quantized import *
from torch.nn.quantized import dynamic as dynamic
from torch.nn.quantized import functional as functional
from torch.nn.quantized import modules as modules
