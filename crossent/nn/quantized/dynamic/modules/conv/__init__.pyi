from torch.nn.quantized.dynamic.modules.conv import *
