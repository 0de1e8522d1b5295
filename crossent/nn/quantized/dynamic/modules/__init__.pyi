# pyright: reportPrivateImportUsage=false
from torch.nn.quantized.dynamic.modules import *
from torch.nn.quantized.dynamic.modules import conv as conv
from torch.nn.quantized.dynamic.modules import linear as linear
from torch.nn.quantized.dynamic.modules import rnn as rnn
