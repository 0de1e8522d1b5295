# pyright: reportPrivateImportUsage=false
from torch.nn.parallel.distributed import *
from torch.nn.parallel.distributed import _BucketCapacityConfig as _BucketCapacityConfig
from torch.nn.parallel.distributed import _BufferCommHook as _BufferCommHook
from torch.nn.parallel.distributed import _BufferCommHookLocation as _BufferCommHookLocation
from torch.nn.parallel.distributed import _DDPJoinHook as _DDPJoinHook
from torch.nn.parallel.distributed import _DDPSink as _DDPSink
from torch.nn.parallel.distributed import _MixedPrecision as _MixedPrecision
from torch.nn.parallel.distributed import _cast_buffers as _cast_buffers
from torch.nn.parallel.distributed import _dump_DDP_relevant_env_vars as _dump_DDP_relevant_env_vars
from torch.nn.parallel.distributed import _find_tensors as _find_tensors
from torch.nn.parallel.distributed import _setup_mixed_precision_params as _setup_mixed_precision_params
from torch.nn.parallel.distributed import _tree_flatten_with_rref as _tree_flatten_with_rref
from torch.nn.parallel.distributed import _tree_unflatten_with_rref as _tree_unflatten_with_rref
