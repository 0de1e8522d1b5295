from torch.nn.utils.weight_norm import *
