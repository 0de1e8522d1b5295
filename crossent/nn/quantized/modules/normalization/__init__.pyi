from torch.nn.quantized.modules.normalization import *
