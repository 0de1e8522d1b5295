# pyright: reportPrivateImportUsage=false
from torch.nn.utils.rnn import *
from torch.nn.utils.rnn import PackedSequence_ as PackedSequence_
from torch.nn.utils.rnn import _packed_sequence_init as _packed_sequence_init
from torch.nn.utils.rnn import _packed_sequence_init_args as _packed_sequence_init_args
from torch.nn.utils.rnn import bind as bind
