from torch.nn.modules.flatten import *
