# pyright: reportPrivateImportUsage=false
from torch.nn.qat.dynamic.modules import *
from torch.nn.qat.dynamic.modules import linear as linear
