from torch.nn.qat.dynamic import *
