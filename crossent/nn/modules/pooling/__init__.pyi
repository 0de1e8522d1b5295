# pyright: reportPrivateImportUsage=false
from torch.nn.modules.pooling import *
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd as _AdaptiveAvgPoolNd
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd as _AdaptiveMaxPoolNd
from torch.nn.modules.pooling import _AvgPoolNd as _AvgPoolNd
from torch.nn.modules.pooling import _LPPoolNd as _LPPoolNd
from torch.nn.modules.pooling import _MaxPoolNd as _MaxPoolNd
from torch.nn.modules.pooling import _MaxUnpoolNd as _MaxUnpoolNd
