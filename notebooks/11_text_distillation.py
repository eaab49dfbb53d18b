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
# # Text distillation
#
# [Chapter 10](10_maps_from_language.ipynb) pointed with a model that has read captions. It needs two towers and a list of sentences, and most of its maps must be told the *name* of what is in the picture. Suppose you have labels and no captions, and want *one* network that names and points. TeD-Loc (Murtaza et al. 2025; [references](../book/references.md)) trains it: the names become fixed points in space, and every patch of a picture learns to go to the point of its object. When training is over, the text tower is thrown away.
#
# The authors' code could not be read, so this is a reconstruction from the text. Decoder, number of seeds, prices of the losses and the length of the vectors are not given there, and are ours.
#
# ## Objectives
#
# About 80 minutes to read, two minutes to run on two cores. It needs no download; photographs come from stored results, and one section from CLIP's own text features.
#
# 1. **Make anchors** of names: what orthogonalization does to them, and what it does where there are more names than dimensions.
# 2. **Build TeD-Loc**: seeds, three losses, the soft selection between them, and two routes to a map.
# 3. **Ask what it distils**: text, or a codebook that any orthonormal set could be?

# %%
import importlib.util, subprocess, sys

if importlib.util.find_spec("wsol_lib") is None:  # in Colab; the torch that is there stays
    source = "git+https://github.com/wsol-book/wsol-book"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

from wsol_lib import setup

setup(seed=0)

# %%
import copy, statistics, tempfile, time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE

from wsol_lib import clip, data, engine, figures, grid
from wsol_lib.methods import ted_loc
from wsol_lib.methods.clip_maps import ClipMaps
from wsol_lib.pseudo import otsu_seeds
from wsol_lib.text import class_embeddings, imagenet_embeddings, orthogonal_anchors

figures.style()

# %% [markdown]
# ## Points for names
#
# Mini-CLIP's text tower says of each of our twelve names where it lies: $t_k$, a vector of length one in 128 dimensions. What are the cosines between them?

# %%
scenes = data.load("scenes", "test", n=300)
texts = class_embeddings(scenes.classes, clip.text_encoder("mini"), "a picture of a {}")  # [12,128]
cosines = texts @ texts.T  # [12,12]
apart = ~torch.eye(12, dtype=torch.bool)
others = cosines[apart]
print(f"cosine of two names: mean {others.mean():.2f}, from {others.min():.2f} to {others.max():.2f}")
pair = (cosines - 2 * torch.eye(12)).argmax().item()
print("the most alike:", scenes.classes[pair // 12], "and", scenes.classes[pair % 12])

# %% [markdown]
# Names that share a word lie close. This is bad news for whoever has to tell them apart: a patch that moves towards the one also moves towards the other. So TeD-Loc makes the points orthogonal. The paper takes the QR decomposition, which is **Gram-Schmidt**: the first name stays, and of each later one the part is cut off that lies along those before it.
#
# $$\tilde t_k = t_k - \sum_{j<k} \langle t_k, a_j\rangle\, a_j, \qquad a_k = \tilde t_k / \|\tilde t_k\|$$

# %%
anchors = []
for t in texts:
    rest = t - sum((t @ a) * a for a in anchors)
    anchors.append(rest / rest.norm())
anchors = torch.stack(anchors)  # [12,128]
qr = orthogonal_anchors(texts, "qr")
assert torch.allclose(anchors, qr, atol=1e-3) and torch.allclose(qr @ qr.T, torch.eye(12), atol=1e-5)

# %% [markdown]
# (A library's QR may return some directions reversed, $-a_k$ for $a_k$. Learning towards the opposite of a name would go just as well, and no test of accuracy would notice. The library fixes the signs.)

# %% mystnb={"image": {"alt": "Three tables of cosines, twelve by twelve. Between the names: bright stripes where two names share their colour word or their animal. After QR: a bright diagonal and nothing else. Between the anchors and the names: all to the left of the diagonal is zero, and the diagonal itself fades."}}
tables = {"names with names": cosines, "QR with QR": qr @ qr.T, "QR with names": qr @ texts.T}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for ax, (title, table) in zip(axes, tables.items(), strict=True):
    chart = ax.imshow(table.numpy(), cmap="cividis", vmin=-0.4, vmax=1)
    ax.set(title=title, xticks=range(0, 12, 2), yticks=range(0, 12, 2))
    ax.grid(False)
figure.colorbar(chart, ax=axes, label="cosine")
plt.show()

# %% [markdown]
# Rows and columns are the twelve classes, in order. The third table shows the price. The first anchor *is* its name; of later ones ever less is left. And who says that the red-crested heron comes first? Gram-Schmidt is not one set of anchors, but one for each order of the classes. **Löwdin**'s orthogonalization has no order: with $T = U S V^\top$ the anchors are $U V^\top$, and of all orthonormal sets this is the nearest to the names.

# %%
order = torch.randperm(12)
back = order.argsort()
for title in ("qr", "lowdin"):
    one = orthogonal_anchors(texts, title)
    other = orthogonal_anchors(texts[order], title)[back]
    kept, again = (one * texts).sum(1), (one * other).sum(1)
    print(f"{title:7} with its own name: mean {kept.mean():.2f}, least {kept.min():.2f};"
          f"  in another order: {again.mean():.2f}")  # fmt: skip
    assert torch.allclose(one, other, atol=1e-4) == (title == "lowdin")

# %% [markdown]
# In another order QR gives anchors that have about as little to do with the first ones as with the names.
#
# One warning before we go on. Mini-CLIP's *pictures* know nothing of the new points. Asked without any training, by the nearest anchor:

# %%
mini = clip.create("mini")
pictures = torch.stack([scenes[i]["image"] for i in range(300)])
right = {}
for kind in ("text", "lowdin", "qr"):
    points = texts if kind == "text" else orthogonal_anchors(texts, kind)
    answers = ClipMaps(mini.model, points).localize(pictures).logits.argmax(1)
    right[kind] = 100 * (answers == scenes.labels).double().mean().item()
    print(f"{kind:7} named right: {right[kind]:.1f} %   n = 300")
assert right["text"] > right["qr"] + 10

# %% [markdown]
# Orthogonal points are no better language. They are targets, and something must be trained towards them.
#
# ### More names than dimensions
#
# In $d$ dimensions there are no more than $d$ orthogonal directions. ImageNet has 1000 names, and the text vectors of CLIP have 512 or 768 numbers. The paper does not say what it does there. Two lines of code suggest themselves:

# %%
many = F.normalize(torch.randn(1000, 512), dim=1)  # stand-ins for 1000 names
columns, rows = torch.linalg.qr(many.T).Q.T, torch.linalg.qr(many).Q
print(f"QR of the names as columns: anchors for {len(columns)} of {len(many)} classes")
print(
    f"as rows: for {len(rows)}, of length {rows.norm(dim=1).min():.2f} to {rows.norm(dim=1).max():.2f}; right angles between columns"
)
frame = orthogonal_anchors(many)  # the tight frame, where K > d
assert frame.shape == (1000, 512)
off = (frame @ frame.T)[~torch.eye(1000, dtype=torch.bool)]
welch = ((1000 - 512) / (512 * 999)) ** 0.5
print(f"frame: rms cosine {off.square().mean().sqrt():.4f} (least possible {welch:.4f}), largest {off.abs().max():.2f}")

# %% [markdown]
# The first leaves 488 classes without an anchor. The second gives every class one, of some length, and none of them orthogonal to the others; it says nothing of that. What exists is a **tight frame**: 1000 vectors that share 512 dimensions evenly. Their mean square cosine is nearly the smallest possible, the Welch bound. This is what the library makes for $K > d$, and calls it so.
#
# For real names, the 200 of Tiny-ImageNet as CLIP's own text tower gives them (ViT-B/32):

# %% tags=["needs:clip-text", "needs:tiny-imagenet"]
tiny = data.load("tiny-imagenet", "val")
clip_names = imagenet_embeddings(tiny.wnids)  # [200,512]
unequal = ~torch.eye(200, dtype=torch.bool)
print(f"200 names of Tiny-ImageNet: mean cosine {(clip_names @ clip_names.T)[unequal].mean():.2f}")
for method in ("qr", "lowdin"):
    left = (orthogonal_anchors(clip_names, method) * clip_names).sum(1)
    print(
        f"{method:7} with its own name: " + " ".join(f"{one:.2f}" for one in left[:6]) + f" ... mean {left.mean():.2f}"
    )

# %% [markdown]
# They lie closer than ours, and after QR soon half of a name is gone.
#
# ## Encoder, decoder, patches
#
# The encoder is frozen. (The paper's is "EVA-L, pretrained for classification", most likely on ImageNet's labels; then much of its naming comes from there.) Here it is the small transformer of chapter 08, pretrained in another world. A decoder makes its 8 x 8 tokens into $z_p$ on a finer grid, in the dimensions of the text; and a single linear unit says with $g(z_p) \in [0,1]$ whether the place is object.

# %%
recipe = engine.load_recipe("scenes/ted-loc")
train = data.load("scenes", "train", n=256)
stage = recipe.stages[-1]
model = engine.build(stage, train)
batch = torch.stack([train[i]["image"] for i in range(16)])
z, g = model.decode(batch)
print("tokens", list(model.encoder(batch)["last"].shape), " z", list(z.shape), " g", list(g.shape))
print(f"parameters that learn: {sum(p.numel() for p in model.parameters()):,}")

# %% [markdown]
# Little is learned: a decoder and one unit. This recipe doubles the grid once. With `upscale: 1` there is no block at all, and $z$ is a linear function of the tokens.
#
# ## Seeds
#
# Somebody must say first where the object might be. In the paper it is CLIP-ES with the image label; with our mini-CLIP that map points nowhere ([chapter 10](10_maps_from_language.ipynb)). The attention of its class token does point, so it is our teacher; further down we try others. Otsu's threshold splits the teacher's map. From what lies above it, among the brightest, eight places are drawn as foreground; from the darkest as many as background. All other places are left alone. And in the next step they are drawn **anew** (below: yellow is foreground, red background).

# %%
teacher = engine.build(recipe.stages[0], train)
cams = teacher.localize(batch).maps  # [16,8,8]
fine = F.interpolate(cams[:, None], (16, 16), mode="bilinear")[:, 0]
torch.manual_seed(0)
draws = [otsu_seeds(fine, 8, top=0.1, low=0.3) for _ in range(2)]  # [16,16,16]: 1, 0 and -1


def big(grid):
    """The first four, [4,64,64], with hard edges."""
    return F.interpolate(grid[:4, None].float(), scale_factor=4)[:, 0]


# %%
figures.gallery(
    batch[:4].repeat(3, 1, 1, 1), maps=torch.cat([big(fine), *(big(draw) for draw in draws)]),
    titles=["teacher"] * 4 + ["seeds of one step"] * 4 + ["of the next"] * 4,
    alt="Four scenes in three rows. First the teacher's map, brightest on head and belly. Then yellow squares on head and belly, a few elsewhere, and red squares on sky and ground; the rest is dark. In the third row the squares lie in other places of the same areas.",
)  # fmt: skip
plt.show()

# %%
masks = torch.from_numpy(scenes.masks).float()[:, None]  # [300,1,64,64]
inside = F.interpolate(masks, (16, 16), mode="area")[:, 0] > 0.5
cams = F.interpolate(teacher.localize(pictures).maps[:, None], (16, 16), mode="bilinear")[:, 0]
seeds = otsu_seeds(cams, 8, top=0.1, low=0.3)
for title, places in {"foreground seeds": seeds == 1, "background seeds": seeds == 0, "all places": seeds > -2}.items():
    print(f"of {title} {100 * inside[places].double().mean():.1f} % lie on the animal")

# %% [markdown]
# ## Three losses
#
# **Distillation** (eq. 1): a foreground patch goes to the point of its name. Cross-entropy over the classes, of the logits $\langle z_p, a_k \rangle$, at the sampled places only (printed as a sum; a mean does not depend on how many were drawn):
#
# $$L_{KD} = \frac{1}{|\omega^+|} \sum_{p \in \omega^+} -\ln \frac{e^{\langle z_p, a_y \rangle}}{\sum_k e^{\langle z_p, a_k \rangle}}$$

# %%
labels = train.labels[:16]
seeds = draws[0].flatten(1)  # [16,256]
zs, gs = z.detach().flatten(2).transpose(1, 2), g.detach().flatten(1)  # [16,256,128], [16,256]
image, place = (seeds == 1).nonzero(as_tuple=True)
logits = zs[image, place] @ model.anchors.T  # [n,12]: never a row of classes for every place
by_hand = -logits.log_softmax(1)[torch.arange(len(image)), labels[image]].mean()
assert torch.allclose(by_hand, ted_loc.distillation_loss(zs, model.anchors, labels, seeds == 1))
print(f"{len(image)} places of {seeds.numel()}: {by_hand:.3f}; of one who knows nothing, ln 12 = {np.log(12):.3f}")

# %% [markdown]
# Two things are easily done wrong. The logits are made where they are asked, and nowhere else: with 1000 classes a row for every place would be the largest tensor of the step. And $z_p$ must not be scaled to length one. Then all logits lie in $[-1, 1]$. The best that $z_p$ could do is to point towards its own anchor and a little away from all others, and with $K$ orthonormal anchors the loss could not fall below
#
# $$\ln\big(1 + (K - 1)\, e^{-\sqrt{K/(K-1)}}\big)$$

# %%
for K in (12, 200, 1000):
    least = np.log(1 + (K - 1) * np.exp(-((K / (K - 1)) ** 0.5)))
    print(f"K = {K:4}: never below {least:.2f}, where knowing nothing costs {np.log(K):.2f}")

# %% [markdown]
# **Patches** (eq. 2): $g$ learns from the seeds of both kinds, by cross-entropy.

# %%
known = seeds >= 0
right = torch.where(seeds == 1, gs, 1 - gs)[known]  # the probability of what the seed says
assert torch.allclose(-right.log().mean(), ted_loc.patch_loss(gs, seeds))

# %% [markdown]
# **The picture** (eqs. 3 and 4). All $z_p$ are averaged, each weighted by how much its place is foreground:
#
# $$h = \sum_p \frac{g_p}{\sum_j g_j}\, z_p, \qquad L_{CL} = \mathrm{CE}(y, \langle h, a_k \rangle)$$
#
# This is the *classification by localization* that gives the method its second half: the class comes from the foreground, and from nothing else. In numbers:

# %%
few_z = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])  # three places
few_g = torch.tensor([[0.9, 0.1, 0.0]])
print("h =", ted_loc.expected_embedding(few_z, few_g), "  the third place, with g = 0, has no say")
assert torch.allclose(ted_loc.expected_embedding(few_z, few_g), ted_loc.expected_embedding(few_z, few_g / 3))

# %% [markdown]
# One could also *choose* the places where $g > 1/2$. But a choice has no gradient; $h$ does. With $s = \sum_j g_j$, and $p_k$ the probabilities that the softmax gives,
#
# $$\frac{\partial h}{\partial g_p} = \frac{z_p - h}{s}, \qquad -\frac{\partial L_{CL}}{\partial g_p} = \frac{1}{s} \Big\langle a_y - \sum_k p_k a_k,\; z_p - h \Big\rangle$$
#
# So a place is drawn in if it speaks for the right name, against those that $h$ finds probable, more than $h$ itself does. Otherwise it is pushed out; at every place, seed or not.

# %%
grown = gs.clone().requires_grad_()
h = ted_loc.expected_embedding(zs, grown)  # [16,128]
(slope,) = torch.autograd.grad(F.cross_entropy(h @ model.anchors.T, labels, reduction="sum"), grown)
p = (h @ model.anchors.T).softmax(1).detach()  # [16,12]
direction = model.anchors[labels] - p @ model.anchors  # [16,128]
by_hand = ((zs - h.detach()[:, None]) * direction[:, None]).sum(2) / gs.sum(1, keepdim=True)
assert torch.allclose(-slope, by_hand, atol=1e-5)

# %% [markdown]
# ## Trained
#
# All three at once, with 600 pictures for four epochs, half a minute. (The paper's weights of the losses are searched in (0, 1]; ours are all one.)

# %% tags=["nbval-ignore-output"]
folder = tempfile.TemporaryDirectory()
small = ["data.options.n=600", "evaluate.options.n=300", "stages.ted-loc.batch_size=16"]
run = engine.run(engine.load_recipe("scenes/ted-loc", small), folder.name, progress=False)
scores = run.evaluator.compute()
print(
    f"names right {scores.top1_cls:.1f} %, GT-known {scores.gt_known:.1f}, Top-1 Loc {scores.top1_loc:.1f}, n = {scores.n}"
)
for title, floor in run.results["floors"].items():
    print(f"{title:20} GT-known {floor['gt_known']:5.1f}")
assert scores.gt_known > run.results["floors"]["best centred box"]["gt_known"] + 10 and scores.top1_cls > 60

# %% tags=["nbval-ignore-output"]
tested, rule = engine.evaluation_data(run.recipe)
shown = torch.stack([tested[i]["image"] for i in range(4)])
localizer, drawn = run.localizer, []
for localizer.route in ("g", "anchors"):
    drawn.append(localizer.localize(shown, tested.labels[:4]).maps)
figures.gallery(
    shown.repeat(2, 1, 1, 1), maps=torch.cat(drawn), boxes=[tested.boxes(i) for i in range(4)] * 2,
    titles=["g"] * 4 + [tested.classes[k] for k in tested.labels[:4]],
    alt="Four test scenes, g in the first row and the map of the true anchor in the second. Both are bright on three beetles, g more sharply; on the fourth scene both light up a bare sky beside the fish.",
)  # fmt: skip
plt.show()

# %% [markdown]
# Two routes lead to a map. The first is $g$ itself, and it knows no class. The second asks every patch how far it went towards one anchor, $\langle z_p, a_c \rangle$. It can be asked for any class: the true one, or the one that $h$ names.
#
# What did the patches learn? We take patches that lie on animals: the token that goes into the decoder, and the mean of the four $z$ that come out for it. How often is the nearest patch *of another picture* one of the same species?

# %%
model = run.localizer.eval()
with torch.no_grad():
    tokens = model.encoder(pictures)["last"]  # [300,128,8,8]
    out = F.avg_pool2d(model.decode(pictures)[0], 2)  # [300,128,8,8]
image, y, x = (F.avg_pool2d(masks, 8)[:, 0] > 0.9).nonzero(as_tuple=True)
species, nearest = scenes.labels[image], {}
for title, vectors in {"tokens": tokens, "z": out}.items():
    unit = F.normalize(vectors[image, :, y, x], dim=1)  # [n,128]
    cosine = (unit @ unit.T).masked_fill(image[:, None] == image, -2)
    nearest[title] = 100 * (species[cosine.argmax(1)] == species).double().mean().item()
    print(f"{title:7} nearest neighbour of the same species: {nearest[title]:.1f} %   n = {len(image)} patches")
assert nearest["z"] > 80

# %% [markdown]
# The encoder, trained in another world, has grouped its tokens by species already, and $z$ adds a little. Seen so, the decoder had not much left to do.
#
# t-SNE lays the vectors into a plane so that neighbours stay together. (Distances between clouds, and their sizes, mean nothing.)

# %% mystnb={"image": {"alt": "Two planes of 777 points, colour for the animal and shape for the colour word. In both most clouds hold one species, with a few strangers; blue-tailed species lie side by side, and some clouds of one species come in two or three pieces."}}
animals, colours = ("heron", "deer", "fish", "beetle"), ("red", "blue", "gold")
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, (title, vectors) in zip(axes, {"tokens of the encoder": tokens, "z of the decoder": out}.items(), strict=True):
    plane = TSNE(init="pca", random_state=0).fit_transform(vectors[image, :, y, x].numpy())  # [n,2]
    for k, name in enumerate(scenes.classes):
        hue, animal = colours.index(name.split("-")[0]), animals.index(name.split()[-1])
        ax.scatter(*plane[species == k].T, s=14, color=f"C{animal}", marker="o^s"[hue], label=name)
    ax.set(title=title, xticks=[], yticks=[])
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
plt.show()

# %% [markdown]
# ## Text, or a codebook?
#
# Now the question of this chapter. After QR the anchors are an orthonormal set, and little of most names is left in them. What would a set be worth that has *nothing* of the names: twelve random directions, made orthonormal? The paper has no such row. GT-known by three readings of one network; five seeds, 2,000 training pictures, a thousand test pictures, threshold cross-fit:
#
# ```
# OPTIONS="--set stages.ted-loc.precision=bf16"
# python -m tools.routes scenes/ted-loc $OPTIONS --seeds 0,1,2,3,4 --to results/distil_anchors.json \
#   --vary stages.ted-loc.args.anchors=qr,text,lowdin,random
# ```


# %%
def of(name, setting, recipe="scenes/ted-loc"):
    return grid.over_seeds(name, {"recipe": recipe, **setting})


def row(title, scores, columns=("gt_known", "anchors gt_known", "named gt_known", "top1_cls")):
    print(f"{title:24}" + "".join(f"{grid.told(scores[one]):>13}" for one in columns))


def blank(name):
    """The floor of a comparison: the best centred box on its pictures."""
    cell = next(iter(grid.read(name)["cells"].values()))
    print(f"{'blank box':24}{cell['floors']['best centred box']['gt_known']:6.1f}     n = {cell['n']}")


heads = f"{'':24}{'g':>13}{'true anchor':>13}{'named anchor':>13}{'names right':>13}"

# %%
kinds = {"qr": "QR of the names (paper)", "lowdin": "Löwdin of the names", "random": "random, orthonormal",
         "text": "the names as they are"}  # fmt: skip
by_kind = {kind: of("distil_anchors", {"stages.ted-loc.args.anchors": kind}) for kind in kinds}
paper = by_kind["qr"]
print(heads)
for kind, title in kinds.items():
    row(title, by_kind[kind])
blank("distil_anchors")
lost = grid.told(paper["gt_known"] - by_kind["random"]["gt_known"])
print("QR minus random by g, seed by seed:", lost)
assert abs((paper["gt_known"] - by_kind["random"]["gt_known"]).mean()) < 1.5

# %% [markdown]
# Nothing is lost that could be seen. The names of twelve animals, made orthogonal, and twelve directions out of a hat give the same boxes (the interval allows two points either way) and name as well.
#
# It had to be so, nearly. The anchors enter the losses through $\langle z_p, a_k\rangle$ alone, and the last layer that makes $z$ is linear: $z_p = W u_p + b$. Turn all anchors by a rotation, $a'_k = R\, a_k$. Then $W' = R W$, $b' = R b$, and $g$ turned likewise, give the same logits everywhere for every picture. So the only thing that a set of anchors can mean to such a network is what no rotation changes: **the cosines between the anchors**. QR makes these the identity matrix. So does any other orthonormal set. Whatever the text said is gone.

# %%
turned = copy.deepcopy(model)
R = torch.linalg.qr(torch.randn(128, 128))[0]
last = turned.decoder[-1]
with torch.no_grad():
    turned.anchors = model.anchors @ R
    last.weight.copy_(torch.einsum("dcij,de->ecij", last.weight, R))
    last.bias.copy_(last.bias @ R)
    turned.g.weight.copy_(torch.einsum("odij,de->oeij", turned.g.weight, R))
ours, theirs = (one.localize(batch) for one in (model, turned))
assert torch.allclose(ours.logits, theirs.logits, atol=1e-3) and torch.allclose(ours.maps, theirs.maps, atol=1e-4)

# %% [markdown]
# Gradient descent keeps the two alike: started from turned weights SGD takes turned steps, and a test of the library trains three. (AdamW divides entry by entry, which a rotation does not respect, and our runs start where chance puts them; hence the differences in the table.) The same holds for any decoder that ends in a linear layer; how the paper's ends is not said. So TeD-Loc with QR is a classifier of patches, with $K$ outputs and a $g$, whatever the words were. It distils a codebook.
#
# "The names as they are" keep their cosines, and could know more. On scenes it makes no difference. And where there are more names than dimensions, the tight frame keeps a part of them: 200 species, 128 dimensions, 4,000 pictures, three seeds:
#
# ```
# python -m tools.routes scenes/ted-loc $OPTIONS --seeds 0,1,2 --set data.options.classes=200 --set data.options.n=4000 \
#   --to results/distil_many.json --vary stages.ted-loc.args.anchors=auto,text,random
# ```

# %%
print(heads)
many_kinds = {"auto": "tight frame of the names", "random": "random tight frame", "text": kinds["text"]}
by_frame = {kind: of("distil_many", {"stages.ted-loc.args.anchors": kind}) for kind in many_kinds}
for kind, title in many_kinds.items():
    row(title, by_frame[kind])
blank("distil_many")
ahead = [by_frame["auto"][score] - by_frame["random"][score] for score in ("anchors gt_known", "top1_cls")]
print("first minus second: true anchor {}, names {}".format(*map(grid.told, ahead)))
assert (ahead[1] > 2).all()

# %% [markdown]
# **Here something of the text is left.** In a tight frame some anchors must lie close to each other. In the frame of the names those of kindred species do, so a patch that is unsure may go between them; in a random frame strangers do. That is worth some names, and a better map from the anchors. By $g$ the three cannot be told apart. The names as they are name worst: some of the 200 are hardly a hair apart.
#
# ### Why the paper sees a difference
#
# The paper does compare QR with the names as they are, on birds (its Table 5), and there it matters: without QR the names fall from 93 to 56 %, while MaxBoxAcc loses one point (cited: TeD-Loc, Table 5). On scenes we see nothing of it; on photographs, further down, we do. Where could such a fall come from?
#
# Take the simplest case: every two anchors have the same cosine $c$. Then each is a sum of what all share and of an orthonormal part, $a_k = \sqrt{c}\, v + \sqrt{1-c}\, q_k$. The first term adds the same number to the logits of all classes, and a softmax does not see it. So names that are all at a cosine of $c$ **are orthonormal anchors, only shorter**, by $\sqrt{1-c}$. For a linear layer under gradient descent that means: learning is slower, by $1-c$. A test, with one linear layer on mean tokens of the frozen encoder, from zero, 100 steps on all of 256 pictures at once:

# %%
with torch.no_grad():
    seen = model.encoder(torch.stack([train[i]["image"] for i in range(len(train))]))["last"].mean((2, 3))  # [256,128]
any_direction = torch.randn(128)
v = F.normalize(any_direction - qr.T @ (qr @ any_direction), dim=0)  # orthogonal to all anchors
close = 0.9**0.5 * v + 0.1**0.5 * qr  # [12,128]: every cosine is .9


def linear(points, rate, inputs=seen, labels=train.labels, trained=slice(None)):
    """Log-probabilities of the test pictures after 100 steps towards the trained points."""
    W = torch.zeros(128, 128, requires_grad=True)
    for _ in range(100):
        (slope,) = torch.autograd.grad(F.cross_entropy(inputs @ W @ points[trained].T, labels), W)
        W = (W - rate * slope).detach().requires_grad_()
    return (tokens.mean((2, 3)) @ W @ points.T).log_softmax(1).detach()  # [300,12]


# %%
tried = {
    "QR": linear(qr, 0.03), "the names as they are": linear(texts, 0.03), "every cosine .9": linear(close, 0.03),
    "every cosine .9, rate / (1 - .9)": linear(close, 0.03 / 0.1),
}  # fmt: skip
for title, probabilities in tried.items():
    print(f"{title:34} named right {100 * (probabilities.argmax(1) == scenes.labels).double().mean():.1f} %   n = 300")
assert torch.allclose(tried["QR"], tried["every cosine .9, rate / (1 - .9)"], atol=1e-3)

# %% [markdown]
# With the names as they are the layer learns less in as many steps. At a cosine of .9 with a rate ten times higher it learns *exactly* what it learns with QR. So closeness by itself does not forbid anything. It slows learning down, as a lower rate would, or a shorter $z$. (Real names are not all equally close, which changes more than that.) Whoever trains briefly, or with a rate that suits orthogonal anchors, sees a fall. Mini-CLIP's names are at a mean cosine of .36, CLIP's of Tiny-ImageNet at .70, and AdamW adapts its steps; how much of the paper's fall is this we cannot tell without its code.
#
# ### What text would be worth
#
# Is text good for nothing, then? There is one thing that a name can do and a number cannot: say what has *never been trained*. Who knows the red-crested heron and the blue-tailed beetle might guess the blue-tailed heron. Leave out one species in training, and ask for it by its anchor; each species in turn:


# %%
def left_out(points):
    """Of each species, left out in training: per cent of its pictures, and of others, that get its name, [12,2]."""
    found = []
    for k in range(12):
        rest = torch.arange(12) != k
        known = train.labels != k
        renumbered = rest.cumsum(0) - 1  # the eleven that are left
        answers = linear(points, 0.03, seen[known], renumbered[train.labels[known]], rest).argmax(1)
        found.append(
            [100 * (answers == k)[of_it].double().mean() for of_it in (scenes.labels == k, scenes.labels != k)]
        )
    return torch.tensor(found)


# %%
sets = {"the names as they are": texts, "the names, exchanged": texts.roll(5, 0), "QR": qr,
        "Löwdin": orthogonal_anchors(texts, "lowdin")}  # fmt: skip
named_by = {title: left_out(points) for title, points in sets.items()}
print(f"{'given the missing name':26}{'its pictures':>14}{'others':>10}")
for title, (mine, others) in {title: found.T for title, found in named_by.items()}.items():
    print(f"{title:26}{mine.mean():12.1f} %{others.mean():8.1f} %   by species {mine.min():.0f} to {mine.max():.0f}")
mine, others = named_by["the names as they are"].mean(0)
assert mine > 4 * others and named_by["QR"].max() == 0

# %% [markdown]
# **Here is the text, and this is what orthogonalization takes away.** With the names as they are one in five of such pictures gets a name that no picture was given in training, ten times as many as of the others; some species are found often, some never. With the names exchanged, so that each species has another one's, it is no better than a guess. So it is the *meaning* that helps. With orthogonal anchors no picture gets the name. None can, in this layer: it starts at zero and moves along the trained anchors only, so its answer to one at right angles to all is zero; and the answers to the eleven sum to zero, so that one of them is always as large. (A network that starts elsewhere would give the new name by accident.) Orthogonal anchors cannot have this ability. What remains is a codebook.
#
# ### Confused by name
#
# If names that share a word lie close, are they also confused? Among the other eleven names two share the animal and three the colour word. We count what is wrong, for mini-CLIP without any training and for two TeD-Locs: the live one, with QR, and one trained alike on the names as they are.

# %% tags=["nbval-ignore-output"]
untouched = engine.load_recipe("scenes/ted-loc", [*small, "stages.ted-loc.args.anchors=text"])
raw = engine.run(untouched, folder.name, progress=False)
answers = {
    "mini-CLIP, no training": ClipMaps(mini.model, texts).localize(pictures).logits.argmax(1),
    "names as they are": raw.localizer.localize(pictures).logits.argmax(1),
    "QR": model.localize(pictures).logits.argmax(1),
}
words = [set(name.replace("-", " ").split()) for name in scenes.classes]
shares = torch.tensor([[len(a & b) > 0 for b in words] for a in words])  # [12,12]

# %% tags=["nbval-ignore-output"]
for title, answer in answers.items():
    wrong = answer != scenes.labels
    alike = 100 * shares[answer[wrong], scenes.labels[wrong]].double().mean()
    print(f"{title:24} wrong {wrong.sum():3} of 300, of these sharing a word {alike:5.1f} %")
others = 100 * (shares.sum(1) - 1).double().mean() / 11
print(f"{'a name out of a hat':24} {others:43.1f} %")
assert (answers["QR"] != scenes.labels).double().mean() < 0.5

# %% [markdown]
# Whoever is wrong mostly says a name that shares a word with the true one: about twice as often as chance. But right angles do not mend it. With QR it is so as often as with the names as they are, among about as many errors. What is alike by name is alike to the eye here: the names say what the pictures show. (300 pictures each, one run.)
#
# ## Which loss does what
#
# The paper adds them one by one; on birds MaxBoxAcc rises from 62.3 to 95.4 and 98.7 (cited: TeD-Loc, Table 2). We also leave the first one out:
#
# ```
# python -m tools.routes scenes/ted-loc $OPTIONS --seeds 0,1,2,3,4 --to results/distil_losses.json \
#   --vary stages.ted-loc.args.lambdas=[1,0,0],[1,1,0],[0,1,1]
# ```

# %%
losses = {"distillation alone": "[1,0,0]", "+ patches": "[1,1,0]", "all three": None, "without distillation": "[0,1,1]"}
by_loss = {}
print(heads)
for title, prices in losses.items():
    by_loss[title] = paper if prices is None else of("distil_losses", {"stages.ted-loc.args.lambdas": prices})
    row(title, by_loss[title])
gained = by_loss["without distillation"]["gt_known"] - paper["gt_known"]
print("without distillation minus all three, seed by seed, by g:", grid.told(gained))
assert gained.mean() > 1

# %% [markdown]
# - **Distillation alone** teaches $g$ nothing, and its map is worse than a blank box. The map of the true anchor finds half of the animals.
# - **Patches** give $g$ its map, and the anchors' one eleven points more.
# - **The picture** (*classification by localization*) adds names, and no boxes.
# - **Without distillation** boxes by $g$ are *better*, by 1.5 to 5.5 points, and names no worse. The anchors' map is helped by it.
#
# So on scenes the loss that gives the method its name costs boxes by $g$. Perhaps because four in ten of the foreground seeds do not lie on the animal: they are taught the name all the same, and $g$ reads the same $z$. Is it a matter of price? Three seeds:
#
# ```
# python -m tools.routes scenes/ted-loc $OPTIONS --seeds 0,1,2 --to results/distil_prices.json \
#   --vary stages.ted-loc.args.lambdas=[0.1,1,1],[0.3,1,1]
# ```

# %%
print(heads)
for price in ("0.1", "0.3"):
    row(f"distillation x {price}", of("distil_prices", {"stages.ted-loc.args.lambdas": f"[{price},1,1]"}))

# %% [markdown]
# It is. The cheaper the distillation, the better $g$ and the worse the map of the anchors. A tenth of the price gives nearly what none at all gives.
#
# ## Whose seeds
#
# The student sees its teacher's map through a few seeds. Is it then as good as its teacher? Four teachers; the lower three with three seeds, the first needs no training and its student has five:
#
# ```
# python -m tools.routes scenes/ted-loc-ddt $OPTIONS --seeds 0,1,2 --to results/distil_teachers.json \
#   --vary stages.ted-loc.views.0.needs.maps=cam.maps,ddt.maps
# ```

# %%
seeds_from = {
    "attention of mini-CLIP": ("distil_anchors", {"stages.ted-loc.args.anchors": "qr"}, "scenes/ted-loc"),
    "TS-CAM": ("distil_teachers", {}, "scenes/ted-loc-ts-cam"),
    "CAM": ("distil_teachers", {"stages.ted-loc.views.0.needs.maps": "cam.maps"}, "scenes/ted-loc-ddt"),
    "DDT": ("distil_teachers", {"stages.ted-loc.views.0.needs.maps": "ddt.maps"}, "scenes/ted-loc-ddt"),
}  # fmt: skip
maps_of_clip = {(c["setting"]["stages.0.args.clip"], c["setting"]["stages.0.args.kind"]): c
                for c in grid.read("language_scenes")["cells"].values()}  # fmt: skip
themselves = {"attention of mini-CLIP": np.repeat(maps_of_clip["mini", "attention"]["scores"]["gt_known"], 5)}
for name in ("TS-CAM", "CAM", "DDT"):
    themselves[name] = of("distil_teachers", {}, f"scenes/{name.lower()}")["gt_known"]

# %%
gains = {}
print(f"{'teacher':24}{'itself':>14}{'its student':>14}{'gain, paired':>14}{'names':>12}")
for name, (file, setting, recipe) in seeds_from.items():
    scores, alone = of(file, setting, recipe), themselves[name]
    gains[name] = scores["gt_known"] - alone
    told = [grid.told(one) for one in (alone, scores["gt_known"], gains[name])]
    print(f"{name:24}" + "".join(f"{one:>14}" for one in told) + f"{grid.told(scores['top1_cls']):>12}")
assert gains["attention of mini-CLIP"].mean() < -5 and gains["CAM"].mean() > 5

# %% [markdown]
# The trained teachers differ much from seed to seed, so we compare each student with its own. The student of CAM is better than its teacher. Those of DDT and TS-CAM may be, and that of the best teacher is worse by ten points. A student looks with eyes of its own, the encoder's tokens. Perhaps it averages out errors that change from picture to picture, and cannot follow what its eyes do not show.
#
# (The paper also gives all birds one name, *bird*, and finds better boxes. That changes the seeds of CLIP-ES and nothing else; [chapter 10](10_maps_from_language.ipynb) repeats it.)
#
# Seeds are drawn **anew** in every step. Or once for every picture (`redraw: false`; both without other augmentation):

# %%
print(heads)
for title, redraw in {"drawn anew": "true", "drawn once": "false"}.items():
    row(title, of("distil_redraw", {"stages.ted-loc.args.redraw": redraw}))

# %% [markdown]
# No difference, in our world. (The paper redraws and does not say what it is worth.)
#
# And the **grid**: with upscale 1 the decoder is one linear layer on 8 x 8 tokens, with 4 it draws 32 x 32.

# %%
print(heads)
for upscale in (1, 2, 4):
    scores = paper if upscale == 2 else of("distil_upscale", {"stages.ted-loc.args.upscale": str(upscale)})
    row(f"{8 * upscale} x {8 * upscale}", scores)

# %% [markdown]
# The step from 8 to 16 is worth most: twenty points by $g$, and the anchors' map lives by it. It is not the finer grid alone, for without a doubling the decoder has no 3 x 3 convolution, and a patch cannot ask its neighbours. A further doubling lifts the mean of the anchors' map; the intervals overlap.
#
# ## One checkpoint, two tasks
#
# In most methods of this book the epoch that names best is not the one that points best ([chapter 04](04_weight_map.ipynb)), and whoever may look at no box keeps the wrong one. The paper says that TeD-Loc has no such conflict. Eight epochs, three seeds, 500 test pictures after each:
#
# ```
# python -m tools.mask_epochs scenes/ted-loc $OPTIONS --seeds 0,1,2 --limit 500 --set stages.ted-loc.epochs=8 \
#   --to results/distil_epochs.json
# ```

# %% mystnb={"image": {"alt": "Two curves over eight epochs, each the mean of three seeds with a band from least to greatest. Names right climb from about 71 to 89 per cent in a narrow band, GT-known from about 48 to 69 in a band up to eight wide."}}
curves = [cell["epochs"] for cell in grid.read("distil_epochs")["cells"].values()]
figure, ax = plt.subplots(figsize=(6.5, 3.4))
for (score, title), style in zip({"top1_cls": "names right", "gt_known": "GT-known"}.items(), ("--", "-"), strict=True):
    lines = np.array([[epoch[score] for epoch in curve] for curve in curves])  # [3,8]
    ax.plot(range(1, 9), lines.mean(0), style, marker="o", label=title)
    ax.fill_between(range(1, 9), lines.min(0), lines.max(0), alpha=0.2)
ax.set(xlabel="epoch", ylabel="per cent", ylim=(0, 100))
ax.legend()
plt.show()

# %%
for curve in curves:
    named, boxed = (max(curve, key=lambda epoch: epoch[score])["gt_known"] for score in ("top1_cls", "gt_known"))
    print(f"GT-known of the epoch that names best {named:.1f}, of the epoch that points best {boxed:.1f}")

# %% [markdown]
# On average both rise together, and the epoch that names best points almost as well as the best one: the price of looking at no box is about two points at most. (The best was chosen on the very pictures that it is measured on, so even that is an upper bound. Single runs jump more: one of them loses and wins back eight points.) The tables above stop after four epochs, as chosen on val; eight would have been better for both.
#
# ## Without a label
#
# At test time CLIP-ES is *told* the class, or uses the one that CLIP names. TeD-Loc's $g$ needs neither.
#
# What does that cost? CLIP-ES as measured in chapter 10, and TeD-Loc's mean over five seeds, on the same 1,000 pictures:

# %%
print(f"{'':47}{'GT-known':>10}{'Top-1 Loc':>12}")
for one, title in {"mini": "class token", "mini-mean": "mean of patches"}.items():
    scores = maps_of_clip[one, "clip-es"]["scores"]
    for reading, asked in {"": "told the class", "named ": "class named by CLIP"}.items():
        line = f"CLIP-ES ({title}), {asked}"
        print(f"{line:47}{scores[reading + 'gt_known']:10.1f}{scores[reading + 'top1_loc']:12.1f}")
for title, reading in {
    "by g, no label": "",
    "anchor of the true class": "anchors ",
    "anchor of the class named": "named ",
}.items():
    boxes, both = (paper[reading + score].mean() for score in ("gt_known", "top1_loc"))
    print(f"{'TeD-Loc, ' + title:47}{boxes:10.1f}{both:12.1f}")

# %% [markdown]
# For TeD-Loc the label is worth four points on the route of the anchors, and nothing by $g$, which is better than either. Between CLIP-ES and TeD-Loc this is no fair contest: our CLIP-ES fails for a reason of its own ([chapter 10](10_maps_from_language.ipynb)), with the label as without, and TeD-Loc has a better teacher here.

# %% [markdown]
# ## What it costs
#
# Parameters, operations and time of one picture on this machine, for the networks of the tables above. Operations are those of matrix products and convolutions, two for a multiplication and its addition, backward passes included. A dispatch mode sees every call that PyTorch makes, and asks its registry for a formula; attention must be taken apart for that (`MATH`).

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Operations(TorchDispatchMode):
    """Counts floating-point operations of products and convolutions: two for a multiplication and its addition."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=found) if formula else 0
        return found


# %%
behind = F.normalize(mini.encode_text([f"a picture of {a}" for a in ("the ocean", "the snow", "a forest")]), dim=1)
contestants = {
    "TeD-Loc, by g": (model, model.encoder.module),
    "TS-CAM": (engine.build(engine.load_recipe("scenes/ts-cam").stages[0], train), torch.nn.Module()),
    "CLIP-ES": (ClipMaps(mini.model, texts, kind="clip-es", background=behind), mini.model),
}

# %% tags=["nbval-ignore-output"]
print(f"{'':16}{'parameters, million':>20}{'operations, million':>21}{'ms':>8}")
for title, (localizer, held) in contestants.items():
    parameters = {p for part in (localizer, held) for p in part.parameters()}
    said, times = torch.tensor([0]), []
    with Operations() as counter, sdpa_kernel(SDPBackend.MATH):
        localizer.localize(batch[:1], said)
    for _ in range(9):
        start = time.perf_counter()
        localizer.localize(batch[:1], said)
        times.append(1000 * (time.perf_counter() - start))
    size, work = sum(p.numel() for p in parameters) / 1e6, counter.total / 1e6
    print(f"{title:16}{size:20.2f}{work:21.0f}{statistics.median(times):8.1f}")
    assert work > 10

# %% [markdown]
# About as much for all three at this size. CLIP-ES also needs a backward pass through its last block, and all names read once by its text tower (whose parameters are counted). At the sizes of the paper the picture is another one. On the *meta* device tensors have a shape and no content, so that we may count without weights:

# %%
import timm

with torch.device("meta"):
    large = {
        "EVA-L, the encoder": (timm.create_model("eva_large_patch14_196", num_classes=0), 3, 196),
        "decoder of our recipe": (ted_loc.decoder(1024, 512, 512, 4), 1024, 14),
        "DeiT-S, as for TS-CAM": (timm.create_model("deit_small_patch16_224"), 3, 224),
        "CLIP ViT-B/16, pictures": (timm.create_model("vit_base_patch16_clip_224", num_classes=512), 3, 224),
    }
    for title, (network, channels, side) in large.items():
        with Operations() as counter:
            network(torch.rand(1, channels, side, side))
        size = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{title:24}{size:8.1f} million parameters{counter.total / 1e9:8.1f} billion operations")

# %% [markdown]
# The paper gives 569.67 million parameters for the whole of TeD-Loc (cited: TeD-Loc, Table 3), so its decoder must be far larger than ours, and its pictures have 224 pixels where this encoder takes 196. The encoder alone has thirteen times the operations of DeiT-S. It is also a far better classifier to begin with, which no column of boxes shows.
#
# Training is cheap in memory. A step holds the logits of *sampled* places, and never a tensor of classes times places. Measured with batches of four on a grid of 56 x 56 (`python benchmarks/ted_loc.py`): the step holds 119 MiB for 10, for 100 and for 1000 classes (a plain one, logits everywhere, 119, 119 and 213), the same for one seed a picture as for 256, and takes less than half of the plain one's time at 1000.
#
# ## Photographs
#
# Birds (CUB-50) with EfficientNet-Lite0 of ImageNet, frozen, at stride 16. No CLIP can be had without the network, so the names go through an encoder of *sentences* (all-MiniLM), which has never seen a picture. One seed. First the teachers: CAM, which with this network is below a blank box, and C2AM, trained on the same pictures without a name ([chapter 07](07_entropy_weighting.ipynb)). Then what helped on scenes, taken over as it was found there: seeds from the brightest tenth of all places, and no distillation. Then another cut. Chapter 07 saw that Otsu's threshold takes half a picture for a bird where the teacher is C2AM, and found one without a box: .7, where C2AM's boxes agree most with DDT's on the training pictures. Last, pictures of 448 pixels for teacher and student, with that cut.
#
# ```
# python -m tools.routes cub/ted-loc-lite0 $OPTIONS --seeds 0 --to results/distil_cub.json \
#   --vary stages.ted-loc.args.anchors=qr,text,random
# wsol compare cub/ted-loc-lite0 $OPTIONS --seeds 0 --to results/distil_cub_steps.json \
#   --vary stages.ted-loc.args.threshold=0.7
# ```
#
# The other rows are made likewise; every stored run holds its whole recipe. (We came to the cut after seeing, on test pictures, that the student inherits Otsu's boxes. The number is chapter 07's, found without a box.)


# %%
def stored(name, setting, recipe="cub/ted-loc-lite0"):
    """The one stored run of a setting."""
    (cell,) = [c for c in grid.read(name)["cells"].values() if c["setting"] == {"recipe": recipe, **setting}]
    return cell


args, anchors_key = "stages.ted-loc.args", "stages.ted-loc.args.anchors"
plain = {"stages.cam.args.variant": "cam"}
columns = f"{'':22}{'by g, 95 %':>20}{'true anchor':>13}{'names':>7}{'Top-1':>7}{'Top-5':>7}"
from_cam = {"stages.ted-loc.views.0.needs.maps": "classifier.maps", "data.size": "224"}
cut = {f"{args}.threshold": "0.7"}
finer = {"data.size": "448", "evaluate.args.resize": "448", f"{args}.upscale": "1",
         "stages.ted-loc.views.1.args": "{resize: 512, crop: 448}", **cut}  # fmt: skip

# %%
birds = {
    "CAM itself": stored("cam_family_cub", plain, "cub/cam-lite0"),
    "seeds from CAM": stored("distil_cub_steps", from_cam, "cub/ted-loc-ddt-lite0"),
    "seeds from C2AM": stored("distil_cub", {anchors_key: "qr"}),
    "brightest tenth": stored("distil_cub_steps", {f"{args}.top": "0.1"}),
    "no distillation": stored("distil_cub_steps", {f"{args}.lambdas": "[0,1,1]"}),
    "cut at .7": stored("distil_cub_steps", cut),
    "448 pixels": stored("distil_cub_steps", finer),
    "C2AM itself": stored("entropy_cub", {}, "cub/c2am-lite0"),
}
print(grid.score_table(birds))

# %%
print(f"{'':18}{'Top-5 Loc':>10}{'names right':>13}")
for title, cell in birds.items():
    if "itself" not in title:
        print(f"{title:18}{cell['scores']['top5_loc']:10.1f}{cell['scores']['top1_cls']:13.1f}")

# %% [markdown]
# - **The teacher is most of it.** With CAM's seeds the student beats CAM, and comes up to the blank box; with C2AM's it is 17 points better.
# - **What helped on scenes helps little.** The brightest tenth costs two points; no distillation gives one, within the interval.
# - **The cut** gives five points, for one number that no box was asked for. With Otsu's the seeds of half a picture say *bird*.
# - **448 pixels** give five more, and five in naming. (The grid of $z$ is the same, 28 x 28: this decoder has no doubling.)
#
# The last row is C2AM's own map at 224 pixels (at 448 we have not measured it). There its student stays below it, as the student of the best teacher does on scenes. But it names, which C2AM cannot.


# %%
def sets_of_anchors(name, first, recipe):
    cells = {kind: stored(name, {anchors_key: kind}, recipe) for kind in (first, "text", "random")}
    print(f"{cells[first]['data']}, n = {cells[first]['n']}; Top-1 and Top-5 Loc\n{columns}")
    for title, cell in zip(("QR", "names as they are", "random, orthonormal"), cells.values(), strict=True):
        scores, (low, high) = cell["scores"], cell["intervals"]["gt_known"]
        line = f"{title:22}{scores['gt_known']:6.1f} [{low:.1f}, {high:.1f}]{scores['anchors gt_known']:13.1f}"
        print(line + f"{scores['top1_cls']:7.1f}{scores['top1_loc']:7.1f}{scores['top5_loc']:7.1f}")
    cam = stored(name.replace("distil", "cam_family"), plain, recipe.replace("ted-loc", "cam"))
    blank = cells[first]["floors"]["best centred box"]["gt_known"]
    print(f"{'CAM itself':22}{cam['scores']['gt_known']:6.1f} (n = {cam['n']})\n{'blank box':22}{blank:6.1f}\n")


# %%
sets_of_anchors("distil_cub", "qr", "cub/ted-loc-lite0")
sets_of_anchors("distil_tiny-imagenet", "auto", "tiny-imagenet/ted-loc-lite0")

# %% [markdown]
# A taste of the second table, live: two pictures of each class, one epoch, CLIP's own text features as anchors, EfficientNet-Lite0 as the eye. Twenty-five steps cannot do more than begin.

# %% tags=["needs:clip-text", "needs:tiny-imagenet", "nbval-ignore-output"]
stages = ["stages.teacher.workers=0", "stages.ted-loc.workers=0", "stages.ted-loc.epochs=1"]
taste = [*stages, "data.options.per_class=2", "evaluate.options.per_class=1"]
started = engine.run(engine.load_recipe("tiny-imagenet/ted-loc-lite0", taste), folder.name, progress=False)
begun = started.evaluator.compute()
print(f"of 200 names {begun.top1_cls:.1f} % right (by chance .5), GT-known {begun.gt_known:.1f}, n = {begun.n}")
assert torch.allclose(started.localizer.anchors @ started.localizer.anchors.T, torch.eye(200), atol=1e-4)
assert begun.top1_cls > 1.5

# %% [markdown]
# (Tables: Tiny-ImageNet with 15 training pictures a class and seeds from CAM; CLIP's own text features of the names. By QR, for 200 names fit into 512 dimensions. The run is measured on ten pictures of each class.) Boxes do not care which anchors. Names do: with the names as they are five in a hundred fewer are right on birds, and nine on Tiny-ImageNet, whose names CLIP puts at a mean cosine of .70. That is the paper's Table 5, smaller. And it is not the text that mends it. Random orthonormal anchors name as well as QR of the names, within the spread that one seed lets us guess at. One run each; the intervals are over pictures.
#
# ## Published

# %%
published = {  # MaxBoxAcc of TeD-Loc, Tables 1, 2, 4 and 5
    "CUB, by g (1)": 98.7, "CUB, by anchor (4)": 98.7, "ILSVRC, by g (1)": 75.6, "ILSVRC, by anchor (4)": 77.18,
    "CUB, distillation alone (2)": 62.3, "+ patches (2)": 95.4, "+ the picture (2)": 98.7,
    "CUB, names as they are (5)": 97.73,
}  # fmt: skip
for title, score in published.items():
    print(f"{title:32} {score:6.2f}")

# %% [markdown]
# | | paper | here |
# |---|---|---|
# | encoder | EVA-L, trained on ImageNet's labels | six blocks, trained in another world; photographs: EfficientNet-Lite0, ImageNet |
# | decoder | not described; about 265 million parameters | a doubling or none, under a million |
# | seeds | CLIP-ES with the true label | mini-CLIP's attention; C2AM; CAM |
# | names | CLIP | mini-CLIP; an encoder of sentences that is not CLIP (birds); CLIP ViT-B/32 (Tiny-ImageNet) |
# | training | SGD; rate and prices of the losses searched, values not given | AdamW; all prices one |
# | threshold | MaxBoxAcc: the best on the test pictures | cross-fit |
# | seeds of chance | one | five or three on scenes, one on photographs |
#
# Two warnings about the paper's own tables. The columns of TS-CAM and SCM for birds in its Table 1 are shifted by one: what stands there as TS-CAM's Top-1 is not (cited: TS-CAM's own paper has GT-known 87.7, Top-1 71.3, Top-5 83.8). And naming nearly nine of ten pictures of ILSVRC right is what such an encoder's own classifier does, so much of the gain in Top-1 Loc is the encoder's. `cub/ted-loc-eva_large-vit_b16` and three others follow the paper as far as it goes; they need a GPU and a network, and we have not run them.
#
# ## Where it breaks
#
# - **No better seeds, no better map.** With seeds from CLIP-ES of our mini-CLIP, which points nowhere, the student points nowhere (three seeds, stored in `distil_teachers`).
# - **A closed list.** Orthogonal anchors know the names of training and no others. To add a class is to train again.
# - **One foreground for all.** $g$ knows no class. With two animals in a picture, it cannot be asked for one; the anchors' map can.
# - **The decoder decides.** Without a doubling, with its convolutions and its finer grid, a third of the boxes is lost on scenes.
#
# ## Exercises
#
# ### Exercise 1: predict
#
# Two classes, two unit anchors with cosine $c$. A patch of length $|z|$ points in the best direction there is. How large is the difference of its two logits? How much longer must $z$ be at $c = 0.9$ than with orthogonal anchors, for the same probability?
#
# <details><summary>Solution</summary>
#
# The difference is $\langle z, a_1 - a_2\rangle$, largest along $a_1 - a_2$, and $|a_1 - a_2| = \sqrt{2 - 2c}$. So it is $|z| \sqrt{2(1-c)}$, and $z$ must be longer by $1/\sqrt{1-c}$, here 3.2 times. If nothing holds the length of $z$, it grows.
#
# ```python
# for c in (0.0, 0.5, 0.9):
#     a = torch.tensor([[1.0, 0.0], [c, (1 - c**2) ** 0.5]])
#     print(c, (a[0] - a[1]).norm().item(), (2 * (1 - c)) ** 0.5)
# ```
#
# </details>
#
# ### Exercise 2: implement
#
# Write the distillation loss as its equation stands there: logits of *all* places, cross-entropy at all, then the mean over the foreground. Show that value and gradient are the library's, and compare the time with a thousand classes on a grid of 56 x 56.
#
# <details><summary>Solution</summary>
#
# ```python
# def everywhere(z, points, label, foreground):
#     logits = z @ points.T  # [B,P,K]
#     each = F.cross_entropy(logits.transpose(1, 2), label[:, None].expand(foreground.shape), reduction="none")
#     return each[foreground].mean()
#
#
# far, points = torch.randn(4, 3136, 128, requires_grad=True), orthogonal_anchors(torch.randn(1000, 128))
# asked, what = torch.rand(4, 3136) < 0.003, torch.randint(1000, (4,))
# slopes = []
# for loss in (ted_loc.distillation_loss, everywhere):
#     start = time.perf_counter()
#     value = loss(far, points, what, asked)
#     slopes.append(torch.autograd.grad(value, far)[0])
#     print(f"{value.item():.4f}  {1000 * (time.perf_counter() - start):.1f} ms")
# assert torch.allclose(*slopes, atol=1e-6)
# ```
#
# </details>
#
# ### Exercise 3: investigate
#
# Eight seeds of each kind is a guess of ours. (With `top: 0.1` a grid of 16 x 16 has no more than 26 places to draw from.) Train with 1, 8 and 26, choose on the val split, and measure the chosen one on test.
#
# <details><summary>Solution</summary>
#
# ```python
# def score(count, split):
#     asked = [*small, f"stages.ted-loc.args.seeds={count}", f"evaluate.split={split}"]
#     run = engine.run(engine.load_recipe("scenes/ted-loc", asked), folder.name, progress=False)
#     return run.evaluator.compute().gt_known
#
#
# on_val = {count: score(count, "val") for count in (1, 8, 26)}
# best = max(on_val, key=on_val.get)
# print(on_val, "chosen:", best, "on test:", score(best, "test"))
# ```
#
# With 300 val pictures a difference of five points can be chance. Say how sure the choice is, and what the test picture says of it.
#
# </details>
#
# ## Summary
#
# 1. **Make anchors.** Names that share a word lie close. QR sets them at right angles in order, and little of the late ones is left; Löwdin's has no order and stays as near as can be. More names than dimensions cannot be orthogonal: a tight frame is what there is.
# 2. **Build TeD-Loc.** Seeds from a teacher's map say of a few places what they are. Distillation moves foreground patches to the point of their name, the patch loss teaches $g$, and the picture loss names by what $g$ selects. On scenes the second gives the boxes, the third the names, and the first costs boxes. One network then names and points without a label, and its map is seldom better than the seeds allow.
# 3. **Ask what it distils.** After QR nothing of the text is left but the number of classes: random orthonormal anchors do as well, and for a decoder with a linear end they must. Only where names outnumber dimensions does the frame keep something of them. What text could give, a name for what was never trained, is what right angles take away.
