from torch.nn.quantized.modules.activation import *
