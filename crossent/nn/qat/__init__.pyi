# pyright: reportPrivateImportUsage=false
from torch.nn.qat import *
from torch.nn.qat import dynamic as dynamic
from torch.nn.qat import modules as modules
