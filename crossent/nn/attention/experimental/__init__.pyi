from torch.nn.attention.experimental import *
