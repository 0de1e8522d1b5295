from torch.nn.quantized.dynamic import *
