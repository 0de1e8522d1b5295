from torch.nn.qat.modules.embedding_ops import *
