from torch.nn.modules.channelshuffle import *
