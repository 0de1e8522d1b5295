from torch.nn.intrinsic.quantized.modules.conv_relu import *
