# pyright: reportPrivateImportUsage=false
from torch.nn.modules.transformer import *
from torch.nn.modules.transformer import _detect_is_causal_mask as _detect_is_causal_mask
from torch.nn.modules.transformer import _generate_square_subsequent_mask as _generate_square_subsequent_mask
from torch.nn.modules.transformer import _get_activation_fn as _get_activation_fn
from torch.nn.modules.transformer import _get_clones as _get_clones
from torch.nn.modules.transformer import _get_seq_len as _get_seq_len
