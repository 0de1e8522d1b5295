# pyright: reportPrivateImportUsage=false
from torch.nn.qat.modules import *
from torch.nn.qat.modules import conv as conv
from torch.nn.qat.modules import embedding_ops as embedding_ops
from torch.nn.qat.modules import linear as linear
