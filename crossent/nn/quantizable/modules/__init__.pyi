# pyright: reportPrivateImportUsage=false
from torch.nn.quantizable.modules import *
from torch.nn.quantizable.modules import activation as activation
from torch.nn.quantizable.modules import rnn as rnn
