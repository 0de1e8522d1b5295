from torch.nn.quantized.modules.conv import *
