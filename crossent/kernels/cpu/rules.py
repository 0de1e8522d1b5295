"""The rules of `crossent._rules`, compiled into every kernel that uses them."""

from crossent import _rules
from crossent.kernels.cpu.compile import inline

brier = inline(_rules.brier)
class_grad = inline(_rules.class_grad)
entropy_of = inline(_rules.entropy_of)
label_grad = inline(_rules.label_grad)
label_weight = inline(_rules.label_weight)
lse_slope = inline(_rules.lse_slope)
row_loss = inline(_rules.row_loss)
softcap_slope = inline(_rules.softcap_slope)
target_grad = inline(_rules.target_grad)
target_weight = inline(_rules.target_weight)
token_grad = inline(_rules.token_grad)
