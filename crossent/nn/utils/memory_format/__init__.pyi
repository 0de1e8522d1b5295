from torch.nn.utils.memory_format import *
