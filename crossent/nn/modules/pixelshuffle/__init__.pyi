from torch.nn.modules.pixelshuffle import *
