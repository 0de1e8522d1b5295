# pyright: reportPrivateImportUsage=false
from torch.nn.utils.prune import *
from torch.nn.utils.prune import _compute_norm as _compute_norm
from torch.nn.utils.prune import _compute_nparams_toprune as _compute_nparams_toprune
from torch.nn.utils.prune import _validate_pruning_amount as _validate_pruning_amount
from torch.nn.utils.prune import _validate_pruning_amount_init as _validate_pruning_amount_init
from torch.nn.utils.prune import _validate_pruning_dim as _validate_pruning_dim
from torch.nn.utils.prune import _validate_structured_pruning as _validate_structured_pruning
