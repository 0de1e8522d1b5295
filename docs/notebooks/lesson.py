# The source of lesson.ipynb and lesson.zh.ipynb: the code once, the text in both languages. `make notebooks` runs it
# and writes them. A cell tagged "varies" prints what differs from run to run or with the version of PyTorch; one tagged
# "alt" says what the picture above it shows, to those who cannot see it.

# %% [markdown] lang="en"
# # From softmax to cross entropy
#
# What happens between the last layer of a classifier and the one number that training makes small? This notebook goes
# through it step by step, on three rows of four numbers, and ends where language models are today: with a last layer
# so wide that its output does not fit into memory.
#
# Everything here runs as it stands. `pip install crossent[torch] matplotlib` is all it needs.

# %% [markdown] lang="zh"
# # 从 softmax 到交叉熵
#
# 分类器的最后一层输出一串数字，训练却只盯着一个数：损失。这中间发生了什么？本文用一个三行四列的小例子，一步一步把
# 它算清楚；最后来到今天的语言模型面前：最后一层太宽，它的输出连内存都放不下，又该怎么算损失。
#
# 文中代码都可以直接运行，只需要 `pip install crossent[torch] matplotlib`。

# %%
import subprocess
import sys

import matplotlib.pyplot as plt
import torch

import crossent
import crossent.nn as nn
import crossent.nn.functional as F

torch.set_printoptions(precision=4, sci_mode=False)

# %% [markdown] lang="en"
# `crossent.nn` is `torch.nn` with its own losses in it, and `crossent.nn.functional` likewise. Replace the two lines by
# `import torch.nn as nn` and `import torch.nn.functional as F`, and the numbers of chapters 1 to 7 stay the same.
#
# ## 1. Two styles: modules and functions
#
# PyTorch has nearly every operation twice: as a class in `torch.nn` (`nn.Linear`, `nn.CrossEntropyLoss`) and as a
# function in `torch.nn.functional` (`F.linear`, `F.cross_entropy`).
#
# | | module, `nn.X` | function, `F.x` |
# | --- | --- | --- |
# | is | an object: make it once, call it often | a function: call it with everything it needs |
# | keeps | its parameters, buffers and options | nothing |
# | takes part in | `parameters()`, `state_dict()`, `to(device)`, `train()` and `eval()` | nothing |
#
# A layer with weights belongs in a module: somebody has to keep the weights, save them and move them.

# %% [markdown] lang="zh"
# `crossent.nn` 就是换上了自家损失函数的 `torch.nn`，`crossent.nn.functional` 同理。把这两行换成
# `import torch.nn as nn` 和 `import torch.nn.functional as F`，第 1 到第 7 节的结果一个数字都不会变。
#
# ## 1. 两种写法：模块与函数
#
# PyTorch 里几乎每个运算都有两份：一份是 `torch.nn` 里的类（`nn.Linear`、`nn.CrossEntropyLoss`），
# 一份是 `torch.nn.functional` 里的函数（`F.linear`、`F.cross_entropy`）。
#
# | | 模块 `nn.X` | 函数 `F.x` |
# | --- | --- | --- |
# | 是什么 | 一个对象：创建一次，反复调用 | 一个函数：每次调用都把需要的东西传进去 |
# | 保存什么 | 参数、缓冲区和选项 | 什么都不保存 |
# | 参与什么 | `parameters()`、`state_dict()`、`to(device)`、`train()` 和 `eval()` | 都不参与 |
#
# 带权重的层应该写成模块：总得有人负责保管这些权重、把它们存盘、把它们搬到别的设备上。

# %%
torch.manual_seed(0)
x = torch.randn(2, 3)
layer = nn.Linear(3, 4)
print([name for name, _ in layer.named_parameters()])
print(torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)))

# %% [markdown] lang="en"
# The second line says: the module does nothing but hand its own weights to the function.
#
# Dropout has no weights, but it has a *state*: training or not. `eval()` reaches the module. It cannot reach the
# function, which still drops half of its input unless it is told.

# %% [markdown] lang="zh"
# 第二行输出说明：模块所做的，不过是把自己保存的权重交给函数。
#
# Dropout 没有权重，却有*状态*：是不是在训练。`eval()` 管得到模块，管不到函数；不告诉函数，它照样丢掉一半的输入。

# %% tags=["varies"]
dropout = nn.Dropout(0.5).eval()
ones = torch.ones(6)
print(dropout(ones))
print(F.dropout(ones, 0.5))
print(F.dropout(ones, 0.5, training=dropout.training))

# %% [markdown] lang="en"
# Softmax and the losses have neither weights nor a state, only options. There it is a matter of taste: a module
# (`criterion = nn.CrossEntropyLoss(label_smoothing=0.1)`) keeps options that are chosen once, by a configuration say;
# a function shows them where the loss is computed. The number is the same.
#
# | choose a module for | choose a function for |
# | --- | --- |
# | what has parameters: linear, convolution, embedding, norms | what has none: activations, softmax, losses |
# | what behaves differently in training: dropout, batch norm | weights that come from elsewhere, or are shared |
# | options that are set once and passed around | options that change from call to call |

# %% [markdown] lang="zh"
# softmax 和各种损失既没有权重，也没有状态，只有选项，用哪种全看习惯：模块
# （`criterion = nn.CrossEntropyLoss(label_smoothing=0.1)`）把选项记住，适合一次定好、比如从配置文件读来的选项；
# 函数则把选项写在计算损失的地方，一眼可见。算出来的数完全一样。
#
# | 用模块 | 用函数 |
# | --- | --- |
# | 有参数的：线性层、卷积、嵌入、归一化 | 没有参数的：激活函数、softmax、损失 |
# | 训练和推理时行为不同的：dropout、批归一化 | 权重来自别处，或者要共享 |
# | 选项定好一次、到处传递 | 选项每次调用都可能不同 |

# %% [markdown] lang="en"
# ## 2. Logits and softmax
#
# A classifier gives every class a number, its *logit*, of any size and sign. Here are three rows (examples) of four
# classes, and the right class of each row.

# %% [markdown] lang="zh"
# ## 2. logits 与 softmax
#
# 分类器给每个类别打一个分，叫 *logit*，可正可负，大小不限。下面是三行（三个样本）、四个类别，以及每一行的正确类别。

# %%
torch.manual_seed(42)
logits = torch.randn(3, 4)
labels = torch.tensor([1, 0, 2])
print(logits)

# %% [markdown] lang="en"
# Softmax makes probabilities of a row: positive, with a sum of 1, and in the order of the logits.
#
# $$
# p_{i,c} = \frac{\exp x_{i,c}}{\sum_k \exp x_{i,k}}
# $$
#
# `dim=1` says along which axis the sum is 1: the one with the classes. Leaving it out is a classic mistake.

# %% [markdown] lang="zh"
# softmax 把一行 logits 变成概率：每个都是正数，加起来等于 1，大小顺序和 logits 相同。
#
# $$
# p_{i,c} = \frac{\exp x_{i,c}}{\sum_k \exp x_{i,k}}
# $$
#
# `dim=1` 指定沿哪个轴求和为 1，也就是类别所在的轴。漏写它是一个经典的错误。

# %%
p = F.softmax(logits, dim=1)
print(p)
print(torch.equal(p, nn.Softmax(dim=1)(logits)), p.sum(dim=1))

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for ax, values, title, colours in zip(axes, (logits, p), ("x", "p = softmax(x)"), ("RdBu", "Blues")):
    limit = values.abs().max()
    ax.imshow(values, cmap=colours, vmin=-limit if values.min() < 0 else 0, vmax=limit, alpha=0.5)
    for row in range(3):
        for column in range(4):
            ax.text(column, row, f"{values[row, column]:.3f}", ha="center", va="center")
        ax.add_patch(plt.Rectangle((labels[row] - 0.48, row - 0.48), 0.96, 0.96, fill=False, lw=2.5))
    ax.set(title=title, xlabel="c", ylabel="i", xticks=range(4), yticks=range(3))

# %% [markdown] lang="en" tags=["alt"]
# Two grids of three rows i and four classes c with a number in each cell, coloured by its size: the logits x on the
# left, their softmax p on the right. A frame marks the label of each row: class 1, class 0 and class 2.

# %% [markdown] lang="zh" tags=["alt"]
# 两张三行（i）四列（c）的网格图，每格写着一个数，颜色表示大小：左边是 logits x，右边是它的 softmax p。黑框标出每一行的
# 标签：类别 1、类别 0、类别 2。

# %% [markdown] lang="en"
# The frames mark the right classes. In none of the three rows is the right class the likeliest: these are random
# numbers, and the loss will say so.
#
# Only differences between logits count. A number added to a whole row changes nothing:

# %% [markdown] lang="zh"
# 黑框标出的是正确类别。三行里没有一行把最高的概率给了正确类别：毕竟是随机数，待会儿损失会如实反映这一点。
#
# 起作用的只有 logits 之间的差。给整行加上同一个数，结果不变：

# %%
print((F.softmax(logits + 5, dim=1) - p).abs().max() < 1e-6)

# %% [markdown] lang="en"
# ## 3. Log-softmax
#
# Losses are made of logarithms of probabilities. The logarithm of softmax has a simple form:
#
# $$
# \log p_{i,c} = x_{i,c} - \text{lse}_i \qquad \text{lse}_i = \log \sum_k \exp x_{i,k}
# $$
#
# `lse` is the log-sum-exp, a smooth version of the maximum.

# %% [markdown] lang="zh"
# ## 3. log-softmax
#
# 损失是由概率的对数组成的，而 softmax 的对数形式很简单：
#
# $$
# \log p_{i,c} = x_{i,c} - \text{lse}_i \qquad \text{lse}_i = \log \sum_k \exp x_{i,k}
# $$
#
# `lse` 叫 log-sum-exp，可以看作最大值的一个光滑版本。

# %%
log_p = F.log_softmax(logits, dim=1)
lse = logits.logsumexp(dim=1, keepdim=True)
print(log_p)
print(torch.allclose(log_p, logits - lse), torch.allclose(log_p, torch.log(p)))

# %% [markdown] lang="en"
# Here `torch.log(p)` gives the same. Chapter 8 shows where it does not.
#
# ## 4. Negative log likelihood
#
# For each row, take the log-probability of its right class and turn the sign: a large number where the model thought
# the truth unlikely. "Loss" in the following is the mean of these.

# %% [markdown] lang="zh"
# 在这里 `torch.log(p)` 给出同样的结果。第 8 节会看到它什么时候不行。
#
# ## 4. 负对数似然
#
# 每一行取出正确类别的对数概率，再变号：模型越觉得真相不可能，这个数就越大。下文所说的“损失”就是它们的平均值。

# %%
picked = log_p[[0, 1, 2], labels]
print(picked)
print(f"{-picked.mean():.4f}", f"{F.nll_loss(log_p, labels):.4f}")

# %% [markdown] lang="en"
# In plain words: row 1 gave its right class a probability of exp(-3.5008), about 0.03. For a model that knows nothing,
# all four classes at 1/4, the loss would be log 4 = 1.3863. Ours is worse than knowing nothing.
#
# ## 5. Cross entropy: five ways to one number
#
# `cross_entropy` is `log_softmax` and `nll_loss` in one step. So there are five ways to the same number:

# %% [markdown] lang="zh"
# 说白了：第 1 行只给了正确类别 exp(-3.5008) 的概率，大约 0.03。一个一无所知的模型，四个类别各给 1/4，损失是
# log 4 = 1.3863；我们的这个还不如一无所知。
#
# ## 5. 交叉熵：五条路，一个数
#
# `cross_entropy` 就是 `log_softmax` 和 `nll_loss` 合成一步。于是同一个数有五种算法：

# %%
five = {
    "-picked.mean()": -picked.mean(),
    "nll_loss, sum / 3": F.nll_loss(log_p, labels, reduction="sum") / 3,
    "nll_loss, mean": nn.NLLLoss()(log_p, labels),
    "cross_entropy, sum / 3": F.cross_entropy(logits, labels, reduction="sum") / 3,
    "cross_entropy, mean": nn.CrossEntropyLoss()(logits, labels),
}
for way, value in five.items():
    print(f"{way:24}{value:.4f}")

# %% [markdown] lang="en"
# Two mistakes that raise no error and give a number all the same:

# %% [markdown] lang="zh"
# 有两种错误不会报错，照样给你一个数：

# %%
print(f"{F.cross_entropy(p, labels):.4f}")
print(f"{F.nll_loss(p, labels):.4f}")

# %% [markdown] lang="en"
# The first applies softmax twice: `cross_entropy` wants logits. It still trains, slowly and to the wrong
# probabilities. The second has no logarithm in it, and is negative, which a negative log likelihood of probabilities
# can never be.
#
# `crossent.explain` takes what the losses take and goes through all of the steps above with the numbers of the call. It
# also says what looks like a mistake, such as these two:

# %% [markdown] lang="zh"
# 第一种做了两遍 softmax：`cross_entropy` 要的是 logits。这样也能训练，只是很慢，学到的概率也不对。
# 第二种根本没取对数，结果还是负的；而概率的负对数似然绝不可能为负。
#
# `crossent.explain` 的参数和损失函数一样，它用这次调用的真实数字把上面每一步都走一遍，还会指出看起来像错误的地方，
# 比如这两种：

# %%
for function in (F.cross_entropy, F.nll_loss):
    for finding in crossent.explain(p, labels, function=function).findings:
        print(f"{function.__name__}, {finding.severity}:", finding.sentence.replace(". ", ".\n    "))

# %% [markdown] lang="en"
# ## 6. H(p, q): targets that are distributions
#
# Where the name comes from: the cross entropy of two distributions. Textbooks write H(p, q) with p for the truth and q
# for the model,
#
# $$
# H(p, q) = -\sum_c p_c \log q_c
# $$
#
# but code has always called the model's probabilities p, so here the targets are q and the cross entropy is H(q, p):
#
# $$
# H(q, p) = -\sum_c q_c \log p_c = H(q) + \text{KL}(q \parallel p)
# $$
#
# A label is the distribution that is 1 at one class. Then only one term is left, and H is the negative log likelihood.

# %% [markdown] lang="zh"
# ## 6. H(p, q)：目标也可以是一个分布
#
# “交叉熵”这个名字说的是两个分布之间的量。教科书用 p 表示真实分布、q 表示模型，写作
#
# $$
# H(p, q) = -\sum_c p_c \log q_c
# $$
#
# 而代码里历来把模型的概率叫 p，所以本文把目标记作 q，交叉熵就是 H(q, p)：
#
# $$
# H(q, p) = -\sum_c q_c \log p_c = H(q) + \text{KL}(q \parallel p)
# $$
#
# 标签也是一个分布，只在一个类别上取 1。这时求和只剩一项，H 就是负对数似然。

# %%
one_hot = F.one_hot(labels, 4).float()
print(f"{-(one_hot * log_p).sum(1).mean():.4f}", f"{F.cross_entropy(logits, one_hot):.4f}")

q = torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.4, 0.2, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]])
H_qp = F.cross_entropy(logits, q)
H_q = -(q * q.log()).sum(1).mean()
KL = F.kl_div(log_p, q, reduction="batchmean")
print(f"H(q, p) = {H_qp:.4f} = {H_q:.4f} + {KL:.4f}")

# %% [markdown] lang="en"
# The entropy H(q) does not depend on the model. What training can bring to zero is the Kullback-Leibler divergence, and
# it is zero where p = q. For two classes, with the target's first entry q:

# %% [markdown] lang="zh"
# 熵 H(q) 与模型无关。训练能降到零的是 KL 散度，它在 p = q 时为零。以两个类别为例，目标的第一个分量记作 q：

# %%
grid = torch.linspace(0.002, 0.998, 400)
two = torch.stack((grid.log(), (1 - grid).log()), dim=1)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for first in (1.0, 0.8, 0.5):
    target = torch.tensor([first, 1 - first]).expand(400, 2)
    losses = F.cross_entropy(two, target, reduction="none")
    (line,) = ax.plot(grid, losses, label=f"q = {first}")
    best = losses.argmin()
    ax.plot(grid[best], losses[best], "o", color=line.get_color())
ax.set(xlabel="p", ylabel="H(q, p)", ylim=(0, 3))
ax.legend(frameon=False)
plt.show()

# %% [markdown] lang="en" tags=["alt"]
# H(q, p) against p for q = 1, 0.8 and 0.5: three curves, each with a dot at its lowest point, which lies at p = q. The
# lowest value is the entropy H(q): 0 for q = 1, and larger the closer q is to 0.5.

# %% [markdown] lang="zh" tags=["alt"]
# 横轴为 p、纵轴为 H(q, p) 的三条曲线，q 分别为 1、0.8 和 0.5。每条曲线的最低点用圆点标出，都落在 p = q 处。最低点的高度
# 就是熵 H(q)：q = 1 时为 0，q 越接近 0.5 越大。

# %% [markdown] lang="en"
# ## 7. Label smoothing, and the gradient p - q
#
# A hard label is reached only at infinity: the loss falls for ever as the logit grows. Label smoothing takes the share
# ε of the target and spreads it over all C classes,
#
# $$
# q_c = (1 - \varepsilon) \, [c = y] + \frac{\varepsilon}{C}
# $$
#
# and this has its minimum at finite logits. It is nothing but a soft target:

# %% [markdown] lang="zh"
# ## 7. 标签平滑，以及梯度 p - q
#
# 硬标签只有在无穷远处才能达到：logit 越大，损失越小，没有尽头。标签平滑从目标里拿出 ε 的份额，平均分给全部 C 个
# 类别：
#
# $$
# q_c = (1 - \varepsilon) \, [c = y] + \frac{\varepsilon}{C}
# $$
#
# 这样一来，最小值就落在有限的 logits 上。它其实就是一个软目标：

# %%
smoothed = 0.9 * one_hot + 0.1 / 4
print(f"{F.cross_entropy(logits, labels, label_smoothing=0.1):.4f}", f"{F.cross_entropy(logits, smoothed):.4f}")

margin = torch.linspace(-2, 12, 200)
rows = torch.stack((margin, *[torch.zeros(200)] * 3), dim=1)
zeros = torch.zeros(200, dtype=torch.int64)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for smoothing in (0.0, 0.1, 0.3):
    ax.plot(margin, F.cross_entropy(rows, zeros, reduction="none", label_smoothing=smoothing), label=f"ε = {smoothing}")
ax.set(xlabel="x_y - x_c", ylabel="loss")
ax.legend(frameon=False)
plt.show()

# %% [markdown] lang="en" tags=["alt"]
# The loss against the margin x_y - x_c for ε = 0, 0.1 and 0.3: without smoothing it falls for ever, with smoothing it
# reaches a lowest point and rises again in a straight line, the sooner and the steeper the larger ε is.

# %% [markdown] lang="zh" tags=["alt"]
# 横轴为差值 x_y - x_c、纵轴为损失的三条曲线，ε 分别为 0、0.1 和 0.3。不平滑时损失一直下降；平滑后损失先降到最低点，再沿
# 直线上升，ε 越大，转折来得越早，升得也越陡。

# %% [markdown] lang="en"
# Why do all of these train so well? Because of their gradient. With targets that sum to 1,
#
# $$
# \frac{\partial \, \text{loss}}{\partial x_c} = p_c - q_c
# $$
#
# what the model says minus what it should say. It can be read off: the derivative of lse is softmax, and that of
# -sum_c q_c x_c is -q. For the mean over N rows it is divided by N. Autograd agrees:

# %% [markdown] lang="zh"
# 这些损失为什么都这么好训练？答案在梯度里。只要目标之和为 1，就有
#
# $$
# \frac{\partial \, \text{loss}}{\partial x_c} = p_c - q_c
# $$
#
# 即“模型说的”减去“应该说的”。推导一眼可得：lse 的导数是 softmax，-sum_c q_c x_c 的导数是 -q。
# 对 N 行求平均，再除以 N。和自动求导对一对：

# %%
for target in (one_hot, smoothed, q):
    x = logits.clone().requires_grad_()
    F.cross_entropy(x, target).backward()
    print(torch.allclose(x.grad, (p - target) / 3, atol=1e-7))
print((p - one_hot) / 3)

# %% [markdown] lang="en"
# One negative entry in each row, at the label: this logit is pushed up, all others down, each by its own probability.
# The rows sum to 0, and no entry is larger than 1/3: a cross entropy never sends back more than its share.
#
# The same without PyTorch: `crossent.value_and_grad` gives loss and gradient of NumPy arrays.

# %% [markdown] lang="zh"
# 每行只有标签处是负的：这个 logit 被往上推，其余的各按自己的概率往下压。每行之和为 0，没有一个元素的绝对值超过 1/3：
# 交叉熵传回的梯度永远不会超出自己的份额。
#
# 不用 PyTorch 也一样：`crossent.value_and_grad` 直接给出 NumPy 数组的损失和梯度。

# %%
loss, dlogits = crossent.value_and_grad(crossent.cross_entropy)(logits.numpy(), labels.numpy())
print(f"{loss:.4f}", torch.allclose(torch.from_numpy(dlogits), (p - one_hot) / 3, atol=1e-7))

# %% [markdown] lang="en"
# ## 8. Why log-softmax, and not the logarithm of softmax
#
# On paper they are one and the same. In 32 bits they are not. First, exp overflows above 88, and underflows below -104:

# %% [markdown] lang="zh"
# ## 8. 为什么用 log-softmax，而不是对 softmax 取对数
#
# 纸面上两者是一回事，在 32 位浮点数里却不是。首先，exp 的自变量超过 88 就上溢，低于 -104 就下溢：

# %%
large = torch.tensor([0.0, 100.0, 200.0])
print(large.exp() / large.exp().sum())
print(F.softmax(large, dim=0).log())
print(F.log_softmax(large, dim=0))

# %% [markdown] lang="en"
# By the formula as it stands: nan. A good softmax subtracts the maximum first, and its probabilities are right; but
# exp(-200) is still 0 in 32 bits, and its logarithm -inf. One wrong label, and the loss is infinite and its gradient
# nan. Log-softmax never makes the small probability at all.
#
# Second, digits. A probability near 1 has none left to say how near: between 1 and the next smaller number there is
# 6e-8. A confident row's loss should be exp(-margin), here with one other class:

# %% [markdown] lang="zh"
# 照公式硬算：nan。靠谱的 softmax 会先减去最大值，概率就对了；可是 exp(-200) 在 32 位里仍然是 0，取对数得到 -inf。
# 只要有一个标签标错，损失就成了无穷大，梯度成了 nan。log-softmax 则根本不去算那个很小的概率。
#
# 其次是有效数字。接近 1 的概率已经没有多余的位数来说明“有多接近”：1 和比它小的下一个数之间差 6e-8。
# 一个很有把握的样本，损失应当约等于 exp(-差值)；这里只有另外一个类别：

# %%
margin = torch.arange(0.0, 41.0)
pairs = torch.stack((margin, torch.zeros(41)), dim=1)
firsts = torch.zeros(41, dtype=torch.int64)
exact = torch.log1p(torch.exp(-margin.double()))
naive = -F.softmax(pairs, dim=1)[:, 0].log()
torchs = -torch.log_softmax(pairs, dim=1)[:, 0]
picked = -F.log_softmax(pairs, dim=1)[:, 0]
fused = F.cross_entropy(pairs, firsts, reduction="none")
for at in (5, 15, 30):
    print(at, *(f"{losses[at].abs():.6e}" for losses in (exact, naive, torchs, picked, fused)))

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.semilogy(margin, exact, lw=6, alpha=0.3, color="grey", label="exact")
ax.semilogy(margin, naive.clamp(min=1e-20), "o-", ms=3, label="-log(softmax)")
ax.semilogy(margin, fused, "o-", ms=3, label="cross_entropy")
ax.set(xlabel="x_y - x_c", ylabel="loss", ylim=(1e-19, 3))
ax.legend(frameon=False)
plt.show()

# %% [markdown] lang="en" tags=["alt"]
# The loss against the margin x_y - x_c from 0 to 40, on a logarithmic axis: cross_entropy stays on the exact line down
# to 1e-17, while -log(softmax) comes down in steps from a margin of 12 and falls to 0 at 17.

# %% [markdown] lang="zh" tags=["alt"]
# 横轴为差值 x_y - x_c（0 到 40）、纵轴为对数刻度的损失：cross_entropy 始终落在精确值的直线上，直到 1e-17；-log(softmax)
# 从差值 12 起呈阶梯状，到 17 就掉到了 0。

# %% [markdown] lang="en"
# The columns are: exact, the logarithm of softmax, PyTorch's log-softmax, crossent's log-softmax, and `cross_entropy`.
# The logarithm of softmax drops to 0 at a margin of 17, and so does PyTorch's log-softmax here: whatever subtracts one
# number from another of nearly its size has lost the digits between them. PyTorch's `cross_entropy` does just that.
# crossent's functions keep the digits, since for a class that outweighs the rest they compute
# log1p(sum of exp(x_c - x_y)).
#
# ## 9. Reductions, done wrong and right
#
# `reduction="none"` gives a loss for each row, "sum" their sum and "mean" their mean. What the mean divides by is not
# always the number of rows: ignored rows (label -100) do not count, and with class weights it is the sum of the weights
# of the labels. That matters as soon as a batch is cut into micro-batches:

# %% [markdown] lang="zh"
# 各列依次是：精确值、对 softmax 取对数、PyTorch 的 log-softmax、crossent 的 log-softmax、`cross_entropy`。对 softmax
# 取对数，差值到 17 就直接变成 0；PyTorch 的 log-softmax 在这里也一样：两个几乎相等的数相减，中间的有效数字就没了。
# PyTorch 的 `cross_entropy` 正是这么算的。crossent 的函数保住了有效数字：当一个类别压过其余类别时，它们计算的是
# log1p(sum of exp(x_c - x_y))。
#
# ## 9. 归约（reduction）：错误的做法与正确的做法
#
# `reduction="none"` 给出每一行的损失，"sum" 是它们的和，"mean" 是平均。但平均时除以的并不总是行数：
# 被忽略的行（标签为 -100）不算数；有类别权重时，除以的是各标签的权重之和。一旦把一个批次切成几个微批次，这就很要
# 紧了：

# %%
torch.manual_seed(1)
batch = torch.randn(8, 5)
tokens = torch.tensor([3, 1, 4, 0, 2, -100, -100, -100])
micro = [(batch[:4], tokens[:4]), (batch[4:], tokens[4:])]

whole = F.cross_entropy(batch, tokens)
mean_of_means = sum(F.cross_entropy(x, y) for x, y in micro) / 2
by_rows = sum(F.cross_entropy(x, y, reduction="sum") for x, y in micro) / 8
by_tokens = sum(F.cross_entropy(x, y, denominator=5) for x, y in micro)
print(f"{whole:.4f} {mean_of_means:.4f} {by_rows:.4f} {by_tokens:.4f}")

# %% [markdown] lang="en"
# Four of the five tokens that count are in the first half, one is in the second.
#
# 1. the whole batch at once: what we want;
# 2. the mean of the two means: **wrong**, the lonely token of the second half counts as much as the four of the first;
# 3. the sum divided by the number of rows: **wrong**, the ignored ones are counted;
# 4. the sum divided by the number of tokens that count, in the *whole* batch: right.
#
# The fourth is what `denominator` is for. Count once before the loop, over all micro-batches and all machines, and hand
# the number to every call. The gradients then add up as well:

# %% [markdown] lang="zh"
# 算数的词元一共五个，四个在前一半，一个在后一半。四个结果依次是：
#
# 1. 整个批次一次算完：这是我们想要的；
# 2. 两个平均值再平均：**错**，后一半那个孤零零的词元和前一半的四个占了同样的分量；
# 3. 总和除以行数：**错**，把被忽略的行也数进去了；
# 4. 总和除以*整个*批次里算数的词元数：对。
#
# 第四种就是 `denominator` 的用处。进入循环之前先数一次，把所有微批次、所有机器上的都算上，再把这个数传给每次调用。
# 这样梯度加起来也是对的：


# %%
def gradient(losses):
    x = batch.clone().requires_grad_()
    losses(x).backward()
    return x.grad


right = gradient(lambda x: F.cross_entropy(x, tokens))
halves = gradient(lambda x: sum(F.cross_entropy(x[h], tokens[h], denominator=5) for h in (slice(4), slice(4, 8))))
wrong = gradient(lambda x: sum(F.cross_entropy(x[h], tokens[h]) for h in (slice(4), slice(4, 8))) / 2)
print(torch.allclose(right, halves), (wrong[4] / right[4]).mean())

# %% [markdown] lang="en"
# Done wrong, the token of the second half gets 2.5 times the gradient that is its due.
#
# The same with class weights, where the mean divides by the sum of the labels' weights, and not by 5:

# %% [markdown] lang="zh"
# 做错的话，后一半那个词元得到的梯度是应得的 2.5 倍。
#
# 有类别权重时同理，平均除以的是各标签的权重之和，而不是 5：

# %%
class_weights = torch.tensor([1.0, 2.0, 1.0, 1.0, 4.0])
total = class_weights[tokens[tokens >= 0]].sum()
parts = sum(F.cross_entropy(x, y, class_weights, denominator=total) for x, y in micro)
print(f"{total:.0f} {F.cross_entropy(batch, tokens, class_weights):.4f} {parts:.4f}")

# %% [markdown] lang="en"
# ## 10. The fused head
#
# A language model's last layer maps D features to a vocabulary of V tokens. With N tokens in the batch the logits are
# N x V numbers: for 2048 tokens and a vocabulary of 32,000 that is 262 MB in 32 bits, and their gradient is as much
# again. The hidden states they are made of take 2 MB.
#
# But the loss of a row needs only that row. So take some rows, make their logits, their loss and their gradient, keep
# only what goes on to hidden states and weights, and throw the logits away. That is `linear_cross_entropy`:

# %% [markdown] lang="zh"
# ## 10. 融合输出头（fused head）
#
# 语言模型的最后一层把 D 个特征映射到大小为 V 的词表。批次里有 N 个词元，logits 就是 N x V 个数：
# 2048 个词元、32000 的词表，32 位就是 262 MB，梯度还要再来一份。而算出它们的隐藏状态只有 2 MB。
#
# 可是一行的损失只需要这一行。那就每次取一些行，算出它们的 logits、损失和梯度，只留下要传给隐藏状态和权重的部分，
# 然后把 logits 扔掉。这就是 `linear_cross_entropy`：

# %%
torch.manual_seed(2)
hidden = torch.randn(2048, 256, requires_grad=True)
weight = torch.randn(32000, 256, requires_grad=True)
targets = torch.randint(32000, (2048,))
print(crossent.plan(F.linear_cross_entropy, hidden, weight, targets))

# %% [markdown] lang="en"
# `plan` says beforehand what a call is going to do. Loss and gradients are those of the long way:

# %% [markdown] lang="zh"
# `plan` 会事先告诉你一次调用将怎么算。损失和梯度都与绕远路算的一致：

# %%
few, some = hidden[:64].detach().requires_grad_(), targets[:64]
long_way = F.cross_entropy(few @ weight.T, some)
(expected,) = torch.autograd.grad(long_way, few)
short_way = F.linear_cross_entropy(few, weight, some)
(found,) = torch.autograd.grad(short_way, few)
print(torch.allclose(long_way, short_way), torch.allclose(expected, found, atol=1e-6))

# %% [markdown] lang="en"
# Now measured: the peak memory of a training step beyond its arguments, each in a process of its own.

# %% [markdown] lang="zh"
# 实际测一测：一个训练步在参数之外的内存峰值，每种做法各用一个单独的进程。

# %% tags=["varies"]
STEP = """
import sys, torch, crossent
from crossent.tools.bench import memory

def step(rows):
    hidden = torch.randn(rows, 256, requires_grad=True)
    targets = torch.randint(32000, (rows,))
    before = memory.resident()
    if sys.argv[1] == "torch":
        loss = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    else:
        loss = crossent.linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    return (memory.peak() - before) / 1e6

weight = torch.randn(32000, 256, requires_grad=True)
weight.grad = torch.zeros_like(weight)
step(8)
print(step(2048))
"""


def megabytes(library):
    command = [sys.executable, "-c", STEP, library]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


measured = {library: megabytes(library) for library in ("torch", "crossent")}
for library, peak in measured.items():
    print(f"{library:10}{peak:6.0f} MB")

# %% tags=["varies"]
figure, ax = plt.subplots(figsize=(6, 1.8), layout="constrained")
bars = ax.barh(["hidden @ weight.T\ncross_entropy", "linear_cross_entropy"], measured.values(), color=["grey", "C0"])
ax.bar_label(bars, fmt="%.0f MB", padding=4)
ax.set(xlabel="MB", xlim=(0, 1.2 * max(measured.values())))
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown] lang="en" tags=["alt"]
# Two bars, the peaks of memory in MB that were printed above: the one of linear_cross_entropy is several times shorter.

# %% [markdown] lang="zh" tags=["alt"]
# 两根横条，表示上面打印出的内存峰值（MB）：linear_cross_entropy 的那根只有另一根的几分之一。

# %% [markdown] lang="en"
# PyTorch holds the logits three times over: themselves, their log-softmax and their gradient. What crossent takes is
# one chunk of logits (64 MB, `chunk_bytes`) and the gradients that were asked for; ten times as many tokens need no
# more than that.
#
# ## What to remember
#
# - Hand **logits** to `cross_entropy`, log-probabilities to `nll_loss`, and probabilities to nobody.
# - Modules for what keeps something, functions for what does not.
# - The loss is lse minus the label's logit; its gradient is p - q.
# - Never take the logarithm of a softmax.
# - A mean over parts divides by the count of the whole.
# - If the logits do not fit, do not make them.

# %% [markdown] lang="zh"
# PyTorch 把 logits 存了三份：logits 本身、它的 log-softmax 和它的梯度。crossent 占用的只是一块 logits（64 MB，由
# `chunk_bytes` 决定），再加上本来就要的梯度；词元再多十倍，这一块也不会变大。
#
# ## 记住这几条
#
# - 给 `cross_entropy` 的是 **logits**，给 `nll_loss` 的是对数概率，概率谁也别给。
# - 要保存东西的用模块，不保存的用函数。
# - 损失等于 lse 减去标签的 logit；梯度等于 p - q。
# - 永远不要对 softmax 的结果取对数。
# - 分批求平均，除数是整体的计数。
# - logits 放不下，就别把它们算出来。
