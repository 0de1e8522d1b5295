from torch.nn.quantized.modules.batchnorm import *
