# pyright: reportPrivateImportUsage=false
from torch.nn.modules.rnn import *
from torch.nn.modules.rnn import _apply_permutation as _apply_permutation
from torch.nn.modules.rnn import apply_permutation as apply_permutation
