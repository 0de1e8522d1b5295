from torch.nn.qat.dynamic.modules.linear import *
