from torch.nn.attention.bias import *
