from torch.nn.qat.modules.conv import *
