from torch.nn.attention import *
from torch.nn.attention import _backend_from_string as _backend_from_string
from torch.nn.attention import _cur_sdpa_kernel_backends as _cur_sdpa_kernel_backends
from torch.nn.attention import _fa3 as _fa3
from torch.nn.attention import _fa4 as _fa4
from torch.nn.attention import _get_flash_version as _get_flash_version
from torch.nn.attention import _raise_kernel_warnings as _raise_kernel_warnings
from torch.nn.attention import _registry as _registry
from torch.nn.attention import _sdpa_kernel as _sdpa_kernel
from torch.nn.attention import _sdpa_kernel_variadic as _sdpa_kernel_variadic
