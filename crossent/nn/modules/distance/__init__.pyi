from torch.nn.modules.distance import *
