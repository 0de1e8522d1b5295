from torch.nn.intrinsic.quantized.modules.linear_relu import *
