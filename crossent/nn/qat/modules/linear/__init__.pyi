from torch.nn.qat.modules.linear import *
