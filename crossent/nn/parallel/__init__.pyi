# pyright: reportPrivateImportUsage=false
from torch.nn.parallel import *
from torch.nn.parallel import DistributedDataParallelCPU as DistributedDataParallelCPU
from torch.nn.parallel import comm as comm
from torch.nn.parallel import distributed as distributed
from torch.nn.parallel import scatter_gather as scatter_gather
