from torch.nn.quantized.dynamic.modules import *
