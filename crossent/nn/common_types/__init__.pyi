from torch.nn.common_types import *
