# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A token for space
#
# [Chapter 08](08_attention_maps.ipynb) read a map from the attention of a classifier. That attention was made for naming, and the map came for free. Suppose we want a better map, and say so in a loss. Then one row of attention has two masters: it must pick what *names* the animal, and it must cover the *whole* animal. SAT (Wu et al. 2023; [references](../book/references.md)) ends the quarrel with one more token. It belongs to no place, like the class token, and it does not classify. Its only work is to say, for every patch, whether it is object.
#
# ## Objectives
#
# About 70 minutes to read, two minutes to run on two cores. It needs no download; the photographs come from stored results.
#
# 1. **Show the conflict**: the same losses on the attention of the class token, and on a token of its own.
# 2. **Build SAT**: the spatial token, the query that becomes a mask, and the two losses, by values and by gradients.
# 3. **Judge it**: what each part, each loss and each number is worth, with few pictures, at every threshold, and by the ways in which boxes fail.

# %%
import importlib.util, subprocess, sys

if importlib.util.find_spec("wsol_lib") is None:  # in Colab; the torch that is there stays
    source = "git+https://github.com/wsol-book/wsol-book"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

from wsol_lib import setup

setup(seed=0)

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from wsol_lib import data, engine, figures, grid
from wsol_lib.methods import sat

figures.style()

# %% [markdown]
# ## One map, two masters
#
# What do we know of a map of foreground before we have seen a box? Two things. Objects fill *some* share $\lambda$ of the pictures, neither all nor nothing. And each place is object or is not, so the map should be near 0 or near 1. SAT makes a loss of each; we come to their form below. Now put both on the map of chapter 08, the attention of the class token in the last three blocks, each picture's stretched to [0, 1]. Then give the same losses a token of their own. Same network, same pictures, same everything.

# %% tags=["nbval-ignore-output"]
folder = tempfile.TemporaryDirectory()
small = ["data.options.n=1000", "evaluate.options.n=300", "stages.sat.args.area=AREA09"]
runs = {}
for title, query in (("attention", "attention"), ("token", "token")):
    recipe = engine.load_recipe("scenes/sat", [*small, f"stages.sat.args.query={query}"])
    runs[title] = engine.run(recipe, folder.name, progress=False)
    scores = runs[title].evaluator.compute()
    print(f"{title:16} names right {scores.top1_cls:5.1f} %   GT-known {scores.gt_known:5.1f}   n = {scores.n}")
for title, floor in runs["token"].results["floors"].items():
    print(f"{title:16} {'':17}   GT-known {floor['gt_known']:5.1f}")

# %% tags=["nbval-ignore-output"]
scenes, rule = engine.evaluation_data(runs["token"].recipe)
shown = torch.stack([scenes[i]["image"] for i in range(4)])
both = torch.cat([runs[title].localizer.localize(shown).maps for title in runs])
figures.gallery(
    torch.cat([shown] * 2), maps=both, boxes=[scenes.boxes(i) for i in range(4)] * 2,
    titles=["attention"] * 4 + ["token"] * 4, alt="CONFLICT09_ALT",
)  # fmt: skip
plt.show()

# %% [markdown]
# PROSE_CONFLICT09
#
# ## The token
#
# Chapter 08's sequence was [class token, patches]. One more vector goes to its end, the **spatial token**, with a position of its own; both are learned. It passes all blocks like any token. In the last three it *asks*. With $H$ heads and $S = QK^\top / \sqrt{d}$, its row of logits becomes a mask:
#
# $$m = \sigma\Big(\frac{1}{H}\sum_{h} S^{(h)}_{\text{spatial},\,\cdot}\Big), \qquad \text{out} = \big(\mathrm{softmax}(S) \odot m\big)\, V$$
#
# Two things differ from a row of attention. The sigmoid says of each token *by itself* whether it is foreground; a softmax makes tokens compete for a sum of one, so a large animal gets small numbers. And the mean over heads is taken before the sigmoid: one mask for all heads. Then every *column* of the attention is scaled by it. What the mask leaves out, no token can see. By hand, in the first of the three blocks:

# %%
model = runs["token"].localizer.eval()
block = model.network.blocks[-3]
before, after = [], []
block.attn.register_forward_pre_hook(lambda _, given: before.append(given[0].detach()))
block.attn.register_forward_hook(lambda _, __, gave: after.append(gave.detach()))
model.localize(shown)
tokens = before[-1]  # [4, 1 + 64 + 1, 128]
with torch.no_grad():
    qkv = block.attn.qkv(tokens).unflatten(2, (3, 4, 32))  # [4,66,3,4,32]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [4,4,66,32]: picture, head, token, number
    S = q @ k.transpose(2, 3) / 32**0.5  # [4,4,66,66]
    m = S[:, :, -1].mean(1).sigmoid()  # [4,66]
    seen = (S.softmax(-1) * m[:, None, None, :]) @ v  # [4,4,66,32]: columns scaled
    out = block.attn.proj(seen.transpose(1, 2).flatten(2))  # [4,66,128]
assert torch.allclose(out, after[-1], atol=1e-4)
print("m:", list(m.shape), "  the library's block gives the same")

# %% [markdown]
# No row of this attention sums to one any more, and nobody divides by the sum. If the token asks nothing ($S = 0$), every $m$ is one half, and the block gives exactly half of what it gave without a mask. And note that a scaled column is a scaled value: $\sum_k A_{qk}\, m_k\, v_k$. So the big matrix need not be made to be scaled; the library scales values and leaves the rest to the fused attention of PyTorch.

# %%
with torch.no_grad():
    halved = (S.softmax(-1) * 0.5) @ v
    whole = F.scaled_dot_product_attention(q, k, v)
    fused = F.scaled_dot_product_attention(q, k, m[:, None, :, None] * v)
assert torch.allclose(halved, whole / 2, atol=1e-5) and torch.allclose(fused, seen, atol=1e-5)

# %% [markdown]
# The map is the mean of the three masks, its columns of patches:
#
# $$M = \frac{1}{3} \sum_{\text{last 3 blocks}} m_{\text{patches}}$$

# %% tags=["nbval-ignore-output"]
with torch.no_grad(), sat.foregrounds(model.network.blocks[-3:]) as found:
    model.look(shown)
masks = torch.stack(found)[:, :, 1:-1].unflatten(2, (8, 8))  # [3,4,8,8]
assert torch.allclose(masks.mean(0), model.localize(shown).maps, atol=1e-5)
figures.gallery(
    torch.cat([shown] * 3), maps=masks.flatten(0, 1), titles=[f"block {n}" for n in (4, 5, 6) for _ in range(4)],
    alt="MASKS09_ALT",
)  # fmt: skip
plt.show()

# %% [markdown]
# PROSE_MASKS09
#
# ## What teaches the token?
#
# No loss of this section looks at a box. The first teacher is the label. What the mask leaves out cannot help to name the animal; so cross-entropy tells the token which patches it must *keep*. The gradient goes through the values:

# %%
network = sat.SAT(FRESH09, 20)
batch = {"image": shown, "label": scenes.labels[:4]}
network.losses(batch)["classification"].backward()
slope = network.spatial["token"].grad.norm().item()
assert slope > 0
print("cross-entropy moves the spatial token")

# %% [markdown]
# But it never tells the token what to *leave out*: a mask of ones keeps everything, and names as well as the plain network. That is the work of the two other losses. The **batch area** loss says how much of a *batch* is foreground:
#
# $$L_{ba} = \Big|\,\frac{1}{B h w}\sum_{b,x,y} M_b(x,y) - \lambda\,\Big|$$
#
# The mean runs over the batch, and only then comes the distance. So one picture may have a large animal and the next a small one. (The paper's equation 7 prints sums; the code has means.) Two pictures, one with a tenth of foreground and one with six tenths, and $\lambda = 1/4$:

# %%
maps = torch.stack([torch.full((8, 8), 0.1), torch.full((8, 8), 0.6)])
batch_area, per_image = sat.batch_area_loss(maps, 0.25), sat.batch_area_loss(maps, 0.25, per_image=True)
print(f"over the batch {batch_area:.2f}   picture by picture {per_image:.2f}")
assert abs(batch_area - 0.10) < 1e-6 and abs(per_image - 0.25) < 1e-6

# %% [markdown]
# The **normalization** loss makes places sure. With $M^*$ a smoothed $M$,
#
# $$L_{norm} = \frac{1}{hw} \sum_{x,y} M^*(x,y)\,\big(1 - M^*(x,y)\big)$$
#
# It is 0 at 0 and at 1, and largest at one half. [Chapter 07](07_entropy_weighting.ipynb) asked a detector for certainty by its entropy; this is the same wish in a gentler form. Its slope is $1 - 2M$: at most one, while the slope of the entropy has no bound.

# %%
p = torch.linspace(0.005, 0.995, 199)
entropy = -(p * p.log() + (1 - p) * (1 - p).log())
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for title, price in (("M (1 - M), times 4", 4 * p * (1 - p)), ("entropy, in bits", entropy / np.log(2))):
    axes[0].plot(p, price, label=title)
    axes[1].plot(p[1:], price.diff().abs() / p.diff(), label=title)
for ax, title in zip(axes, ("price of a place", "size of its slope"), strict=True):
    ax.set(xlabel="M", title=title)
axes[0].legend()
plt.show()

# %% [markdown]
# Why smooth first? A place that is sure, and alone, is probably wrong; smoothed with its neighbours it is *not* sure, and pays. How much, depends on the kernel, and here text and code part. The paper says a Gaussian with $\sigma = 6$. The code takes 6 for the *extent* of a normal distribution that it cuts into three bins. What comes out is hardly a filter at all:

# %%
code, gaussian = sat.smoothing_kernel("code"), sat.smoothing_kernel("gaussian")
print("code's kernel\n", np.round(code.numpy(), 3), "\nGaussian of sigma 6\n", np.round(gaussian.numpy(), 3))
assert abs(code[1, 1] - 0.805440) < 1e-6 and abs(code[0, 1] - 0.046012) < 1e-6 and abs(code[0, 0] - 0.002628) < 1e-6
ones = sat.smooth(torch.ones(1, 4, 4), "code")[0, 0]
print(f"a map of ones, smoothed: corner {ones[0, 0]:.4f}, edge {ones[0, 1]:.4f}, inside {ones[1, 1]:.4f}")

# %% [markdown]
# The last line shows a side effect. Beyond the border the filter finds zeros, so a sure place at the border is never quite sure. The loss draws the foreground to the middle of the picture a little, where objects are.
#
# The whole loss is the sum, each with weight one: $L = L_{cls} + L_{ba} + L_{norm}$. The head is TS-CAM's, a convolution over the final patches. Here is how the three fell for both maps of the first section:

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
for ax, loss in zip(axes, ("classification", "area", "normalization"), strict=True):
    for title, run in runs.items():
        ax.plot(run.histories["sat"].losses(loss), label=title)
    ax.set(title=loss, xlabel="step", ylim=(0, None))
axes[0].legend()
plt.show()

# %% [markdown]
# PROSE_CURVES09
#
# ## What each loss is worth
#
# Five seeds each, 3,000 training and 1,000 test pictures of scenes. The threshold is cross-fit, as everywhere in this book. $\lambda$ = AREA09, learning rate and epochs were chosen on the val split, with another seed.
#
# ```
# OPTIONS="--to results/space_losses.json --seeds 0,1,2,3,4 --set stages.0.precision=bf16"
# COMMANDS09
# ```

# %%
RESULTS09
