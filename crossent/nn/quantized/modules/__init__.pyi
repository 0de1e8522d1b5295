# pyright: reportPrivateImportUsage=false
from torch.nn.quantized.modules import *
from torch.nn.quantized.modules import activation as activation
from torch.nn.quantized.modules import batchnorm as batchnorm
from torch.nn.quantized.modules import conv as conv
from torch.nn.quantized.modules import dropout as dropout
from torch.nn.quantized.modules import embedding_ops as embedding_ops
from torch.nn.quantized.modules import functional_modules as functional_modules
from torch.nn.quantized.modules import linear as linear
from torch.nn.quantized.modules import normalization as normalization
from torch.nn.quantized.modules import rnn as rnn
from torch.nn.quantized.modules import utils as utils
