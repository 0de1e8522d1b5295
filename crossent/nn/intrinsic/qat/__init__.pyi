from torch.nn.intrinsic.qat import *
