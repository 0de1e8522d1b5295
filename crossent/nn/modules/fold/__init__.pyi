from torch.nn.modules.fold import *
