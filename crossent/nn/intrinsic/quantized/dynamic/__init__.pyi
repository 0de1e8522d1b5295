from torch.nn.intrinsic.quantized.dynamic import *
