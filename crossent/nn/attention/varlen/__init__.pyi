# pyright: reportPrivateImportUsage=false
from torch.nn.attention.varlen import *
from torch.nn.attention.varlen import _backward as _backward
from torch.nn.attention.varlen import _normalize_window_size as _normalize_window_size
from torch.nn.attention.varlen import _setup_context as _setup_context
from torch.nn.attention.varlen import _varlen_attn_backward_fake as _varlen_attn_backward_fake
from torch.nn.attention.varlen import _varlen_attn_fake as _varlen_attn_fake
from torch.nn.attention.varlen import _varlen_attn_out_fake as _varlen_attn_out_fake
