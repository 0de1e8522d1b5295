from torch.nn.intrinsic.modules.fused import *
