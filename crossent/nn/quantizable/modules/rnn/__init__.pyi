from torch.nn.quantizable.modules.rnn import *
