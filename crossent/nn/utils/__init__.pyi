# pyright: reportPrivateImportUsage=false
from torch.nn.utils import *
from torch.nn.utils import clip_grad as clip_grad
from torch.nn.utils import convert_parameters as convert_parameters
from torch.nn.utils import fusion as fusion
from torch.nn.utils import init as init
from torch.nn.utils import memory_format as memory_format
from torch.nn.utils import prune as prune
