# pyright: reportPrivateImportUsage=false
from torch.nn.modules.padding import *
from torch.nn.modules.padding import _CircularPadNd as _CircularPadNd
from torch.nn.modules.padding import _ConstantPadNd as _ConstantPadNd
from torch.nn.modules.padding import _ReflectionPadNd as _ReflectionPadNd
from torch.nn.modules.padding import _ReplicationPadNd as _ReplicationPadNd
