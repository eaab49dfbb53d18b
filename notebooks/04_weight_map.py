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
# # Losses: a mask that keeps the answer
#
# A class activation map is *read off* a classifier: no loss ever asked for it. This chapter asks. A second network paints a
# mask over the picture, and the classifier must give the same answer through the mask. Whatever can be hidden is hidden; what
# has to stay is the object, or so we hope. The method has two losses, no box, and one trap that decides everything: *when to stop*.
#
# ## Objectives
#
# About 60 minutes to read, two minutes to run on two cores. It needs no download; the cells on photographs need Tiny-ImageNet.
#
# 1. **Write the losses**: classifier invariance with its price for area, the inner and the outer triplet, and say what each
#    term alone would do.
# 2. **Stop in time**: watch a mask creep from the animal to its telling part, and choose an epoch with a score that needs no label.
# 3. **Judge the mask**: against CAM and the floors, where the cause is known and on photographs, and say what the mask *means*.

# %%
import importlib.util, subprocess, sys

if importlib.util.find_spec("wsol_lib") is None:  # in Colab; the torch that is there stays
    source = "git+https://github.com/wsol-book/wsol-book"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

from wsol_lib import setup

setup(seed=0)

# %%
import tempfile
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from wsol_lib import backbones, boxes, data, engine, figures, grid, maps
from wsol_lib.methods import weight_map

figures.style()

# %% [markdown]
# ## A classifier that needs one part
#
# Chapter 03 left us with this failure. In this world all six species share one body, and only a small part (a beak, a crest, a wing
# bar) tells them apart. The recipe `scenes/weight-map` has two stages. We first take the first one alone: a classifier f,
# trained on image labels. (Two thirds of the recipe's pictures and half of the mask's epochs must do here, so that the chapter runs in two minutes.)

# %%
knobs = ["data.options.families=1", "data.options.classes=6", "data.options.part_size=0.2"]
small = ["data.options.n=2000", "evaluate.options.n=300", "stages.mask.epochs=4"]
recipe = engine.load_recipe("scenes/weight-map", knobs + small)
print([(stage.name, stage.method, stage.epochs, stage.needs) for stage in recipe.stages])

# %% tags=["nbval-ignore-output"]
folder = tempfile.TemporaryDirectory()
first = recipe.model_copy(update={"stages": recipe.stages[:1]})
f = engine.run(first, folder.name, progress=False)
cam_scores = f.results["scores"]
print({name: round(cam_scores[name], 1) for name in ("top1_cls", "gt_known", "pxap")})

# %%
assert cam_scores["top1_cls"] > 75 and cam_scores["gt_known"] < 40

# %% tags=["nbval-ignore-output"]
rule = engine.make_protocol(recipe.evaluate)
scenes = data.load("scenes", "test", size=64, **recipe.data.options | recipe.evaluate.options)
chosen = [4, 14, 16, 24, 27, 38, 41, 60]
pictures = torch.stack([scenes[i]["image"] for i in chosen])  # [8,3,64,64]
labels = scenes.labels[chosen]  # [8]
cams = f.localizer.localize(pictures, labels).maps  # [8,8,8]
half = replace(rule, tau=0.5)
figures.gallery(
    pictures, maps=cams, boxes=[scenes[i]["boxes"] for i in chosen], predicted=[half.box(m)[None] for m in cams], columns=4,
    alt="Eight scenes with CAM, the true box and CAM's box. Most of CAM's blobs sit on one end of the animal, and the box with them.",
)  # fmt: skip
plt.show()

# %% [markdown]
# Five pictures of six are named right, and the boxes are poor: blobs on the telling part, or on the landscape. (The box is drawn at
# half the map's maximum, for looking only.)
#
# ## Ask with a mask
#
# Do not read the classifier. **Interrogate it.** Cover some of the picture and see whether the answer changes. If it stays, what was
# covered was not needed. Before anything is learned, let us do that by hand, on one picture whose parts we know: the
# world tells us where its animal and its telling part are.
#
# What does "cover" mean? A network sees pictures after normalisation: minus the mean colour, divided by the deviation. We multiply the
# *normalised* picture, so what is removed becomes the mean colour and not a black hole. Black would be a
# colour like any other, and a strange one.

# %%
network = f.localizer.network
picture = pictures[:1]  # [1,3,64,64]
inputs = network.normalize(picture)
animal = torch.from_numpy(scenes.masks[chosen[0]]).float()  # [64,64]
part = torch.from_numpy(scenes.part_masks[chosen[0]]).float()
grown = F.max_pool2d(part[None], 7, stride=1, padding=3)[0]  # the part and 3 px around it
by_hand = {
    "all": torch.ones(64, 64), "animal": animal, "part": grown, "all but part": 1 - grown,
    "all but animal": 1 - animal, "all, at half": torch.full((64, 64), 0.5), "nothing": torch.zeros(64, 64),
}  # fmt: skip

# %%
masks = torch.stack(list(by_hand.values()))  # [7,64,64]
shown = inputs * masks[:, None]  # [7,3,64,64]
seen = (shown * network.std + network.mean).clamp(0, 1)
figures.gallery(
    seen, titles=list(by_hand), columns=4,
    alt="One scene through seven masks: whole; the animal alone on grey; a small piece around its telling part; all but "
    "that piece; the landscape with a grey hole in the animal's shape; the whole at half contrast; plain grey.",
)  # fmt: skip
plt.show()

# %% [markdown]
# And what does f say? Its whole answer is a vector of probabilities, so we compare vectors: the cross-entropy D of what f says
# of the masked picture, with what it says of the whole picture as the target. That is the first term of the method's equation 1. The second is the area of the mask.

# %% tags=["nbval-ignore-output"]
with torch.no_grad():
    whole = f.localizer.classify(inputs)  # [1,K]
    through = f.localizer.classify(shown)  # [7,K]
name = whole.argmax()
D = -(whole.softmax(1) * through.log_softmax(1)).sum(1)  # [7]
for title, d, p, m in zip(by_hand, D, through.softmax(1)[:, name], masks, strict=True):
    print(f"{title:15} D {d:5.2f}   p(named class) {p:.2f}   area {m.mean():.2f}   D + area {d + m.mean():.2f}")
assert D[0] < D[3] and D[2] < D[3] and D[0] < D[6]

# %% [markdown]
# One picture may mislead. The same masks on 300 test pictures, for five classifiers and for telling parts of three sizes:
#
# ```
# python -m tools.hand_masks scenes/weight-map --to results/weight_map_by_hand.json --seeds 0,1,2,3,4 \
#     --set data.options.families=1 --set data.options.classes=6 --vary data.options.part_size=0.2,0.35,0.5
# ```

# %%
size_key, sizes = "data.options.part_size", ("0.2", "0.35", "0.5")
hand = {}  # (size, mask) -> [D, area, per cent that keep their name] a seed
for c in grid.read("weight_map_by_hand")["cells"].values():
    for title, found in c["by_hand"].items():
        row = [found["invariance"], found["area"], found["kept"]]
        hand.setdefault((c["setting"][size_key], title), []).append(row)
cost = {key: np.array(rows)[:, :2].sum(1) for key, rows in hand.items()}  # D + area, [seeds]

# %%
for key, rows in hand.items():
    d, area, kept = np.mean(rows, 0)
    print(f"part {key[0]:4} {key[1]:15} D {d:.2f}   area {area:.2f}   D + area {cost[key].mean():.2f}"
          f" ± {grid.half_width(cost[key]):.2f}   name kept {kept:3.0f} of 100")  # fmt: skip
for size in sizes:
    dearer = cost[size, "part"] - cost[size, "animal"]
    print(f"part {size:4} the part costs more than the animal by {dearer.mean():.2f} ± {grid.half_width(dearer):.2f}")

# %%
for size in sizes:
    assert min(cost[size, title].mean() for title in by_hand) == cost[size, "animal"].mean()
edge = [(cost[size, "part"] - cost[size, "animal"]).mean() for size in sizes]
assert edge[0] > edge[1] > edge[2] > 0

# %% [markdown]
# The whole chapter is in this table. Read it slowly.
#
# - **All but part** costs most: hide the telling part and the name is gone, though nearly everything else is visible. The classifier looks where we thought.
# - **The animal** is the cheapest of all. This is why the method can work: with a price on area, the mask of the object *is* the best of those we can think of.
# - **The part** alone has the smaller area, but f is not at ease with it: it was trained on parts that sit on animals. How uneasy it is depends on the part. The last three lines have the
#   difference: where the part is small it is large, and where the part is large it is a quarter of that. There the loss hardly cares which of the two the mask shows. Keep this in mind.
# - **All, at half contrast** costs a lot as well. A mask that dims everything is no way out.
#
# ## Equation 1: keep the answer, pay for the area
#
# Let $f$ be the frozen classifier, $g$ a network that draws the mask $M = g(I)$ with values in $(0, 1)$. The loss is
#
# $$L = D\big(f(I),\, f(I \odot M)\big) + \lambda R(M), \qquad \lambda = 1.$$
#
# D keeps the answer. It reads "keep the vector of pseudo-probabilities", so the target is *soft*. There is another reading,
# the named class alone, a *hard* target. On paper:

# %%
p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.5, 0.3, 0.2]])
soft = -(p * q.log()).sum()
hard = -q[0, p.argmax()].log()
entropy = -(p * p.log()).sum()
print(f"soft {soft:.6f} = entropy {entropy:.6f} + KL {soft - entropy:.6f}     hard {hard:.6f}")
assert torch.isclose(soft, weight_map.invariance_loss(p.log(), q.log()))
assert torch.isclose(hard, weight_map.invariance_loss(p.log(), q.log(), target="hard"))

# %% [markdown]
# A soft cross-entropy does not go to zero. Its least value is the entropy of the target. That is no flaw, for a constant has no
# gradient, but do not take a flat curve at that height for a failure.
#
# R is the price of area. Printed is a norm, $\lVert M \rVert_1$: a *sum* over pixels. At 224 pixels a side a sum is fifty thousand
# times a mean, and with $\lambda = 1$ the cheapest mask is then the empty one. The code base of the same authors takes the mean, and so do we. It
# makes the price the same at every picture size:

# %%
uniform = [torch.full((1, side, side), 0.5) for side in (64, 224)]
print("mean", [m.mean().item() for m in uniform], "  sum", [m.sum().item() for m in uniform])
assert uniform[0].mean() == uniform[1].mean()

# %% [markdown]
# What would each term do alone? D alone is happy with $M = 1$: the answer of the whole picture is the answer of the whole picture.
# R alone is happy with $M = 0$. Neither localizes. Only their *balance* can, and later on we take R away to see it.
#
# ## g: a network that draws
#
# A mask needs the outline of the animal, to the pixel, and some idea of what an animal is. Early stages of a network have the first, late ones
# the second. A **U-Net** has both: from the coarsest map it goes up in steps of two, and at each step it takes along the encoder's map of the same size.

# %%
block = weight_map.UpBlock(channels=96, skip=64, out=64, activation=torch.nn.ReLU())
coarse, fine = torch.randn(2, 96, 4, 4), torch.randn(2, 64, 8, 8)
print(tuple(coarse.shape), "and", tuple(fine.shape), "->", tuple(block(coarse, (8, 8), fine).shape))

# %% [markdown]
# Enlarge, put the finer map beside it, convolve twice, normalise before the activation. Five blocks lead from stride 32 to the full
# picture. The last one has no map of its size to take along, and ends in a sigmoid.

# %%
stage = recipe.stages[1]
g = weight_map.MaskNetwork(backbones.create(**stage.backbone)).eval()
with torch.no_grad():
    print({name: tuple(m.shape[1:]) for name, m in g.encoder(pictures).items()})
    fresh = g(pictures)  # [8,64,64]
print(len(g.decoder), "blocks ->", tuple(fresh.shape))
assert len(g.decoder) == 5 and fresh.shape == (8, 64, 64) and fresh.min() > 0 and fresh.max() < 1

# %% [markdown]
# One loss of a batch, by hand and by the library. Mind two details. f stays in *eval mode*: its batch norms must not adapt to masked
# pictures, or f would learn to like them. But the gradient must flow *through* f to the mask.

# %%
method = weight_map.WeightMap(g.encoder, f.localizer, classes=6).eval()
M = method.mask(pictures)  # [8,64,64]
x = network.normalize(pictures)
kept = f.localizer.classify(x).softmax(1)  # [8,K]
D = F.cross_entropy(f.localizer.classify(x * M[:, None]), kept)
found = method.losses({"image": pictures})
assert torch.isclose(D, found["invariance"]) and torch.isclose(M.mean(), found["area"])
found["invariance"].backward()
print("gradient reaches g:", method.mask.decoder[0].last[0].weight.grad.abs().sum().item() > 0)
print("and f is trained:  ", any(p.requires_grad for p in f.localizer.parameters()))

# %% [markdown]
# ## From the mask to a box, and to a score
#
# The box needs no threshold to be tuned (equation 5): what is below **a tenth of the largest weight** is background; of the rest the largest
# connected piece is boxed. Here is a mask in two pieces that touch at a corner only, and one crumb.

# %%
mask = torch.zeros(8, 8)
mask[1:4, 1:4], mask[4:6, 4:6], mask[7, 0], mask[0, 7] = 0.8, 0.5, 0.3, 0.05
shown = mask >= 0.1 * mask.max()
x0, y0, x1, y1 = boxes.box_at(shown.double(), 0.0)[0].tolist()
print(mask.numpy(), (x0, y0, x1, y1))
assert (x0, y0, x1, y1) == (1, 1, 6, 6) and not shown[0, 7]

# %% [markdown]
# The two pieces are one: corners join (8-connected). The crumb stays outside, and the faintest pixel is below a tenth. How much of the
# mask's weight did the box catch? That share is the score $S$ (equation 6):
#
# $$S = \frac{\sum_{(i,j) \in \text{box}} \hat M_{ij}}{\sum_{(i,j)} \hat M_{ij}}, \qquad \hat M = M \text{ where } M \ge \tfrac{1}{10} \max M, \text{ else } 0.$$

# %%
kept = torch.where(shown, mask, 0)
S = kept[y0:y1, x0:x1].sum() / kept.sum()
print(f"S = {kept[y0:y1, x0:x1].sum():.1f} / {kept.sum():.1f} = {S:.3f}")
assert torch.isclose(S, weight_map.completeness(mask))
assert weight_map.completeness(torch.full((8, 8), 0.3)) == 1 and weight_map.completeness(torch.zeros(8, 8)) == 0

# %% [markdown]
# A mask in one piece has $S$ near one; a mask in crumbs has less. No label, no box. But mind the trap in the last line: a mask that
# is *the same everywhere* has $S = 1$, the best there is.
#
# ## Train, and watch
#
# The second stage of the recipe trains g. A tenth of the *training* pictures is held out, and after each epoch $S$ is averaged over their
# masks. To see what the score cannot see, we let an observer look on: after each epoch it measures GT-known on 300 test pictures, scores their masks once they are *stretched* to the
# full range (why, we shall see), and keeps those of our eight. **It may look, but it has no say**: choosing the epoch by it would be choosing on the test boxes.


# %%
class Observer(engine.Callback):
    """Looks on after each epoch: GT-known and S of stretched masks on test pictures, and the masks of eight."""

    def __init__(self):
        self.gt_known, self.stretched, self.masks = [], [], []

    def after_epoch(self, epoch, localizer, history):
        judge = engine.evaluate(localizer, scenes, rule, progress=False)
        self.gt_known.append(judge.compute().gt_known)
        all_masks = engine.localize(localizer, scenes, progress=False).maps
        self.stretched.append(weight_map.completeness(maps.normalize(all_masks)).mean().item())
        self.masks.append(localizer.localize(pictures).maps)


# %% tags=["nbval-ignore-output"]
observer = Observer()
with warnings.catch_warnings(record=True) as said:
    trained = engine.run(recipe, folder.name, progress=False, callbacks={"mask": [observer]})
print(*[warning.message for warning in said], sep="\n")
history = trained.histories["mask"]
for epoch, gt_known in zip(history.epochs, observer.gt_known, strict=True):
    told = "   ".join(f"{key} {epoch[key]:.2f}" for key in ("invariance", "area", "completeness"))
    print(f"epoch {epoch['epoch']}   {told}   GT-known {gt_known:.1f}")

# %%
losses = history.losses()
assert np.mean(losses[-20:]) < np.mean(losses[:20])
assert history.epochs[-1]["area"] < history.epochs[0]["area"]

# %% [markdown]
# The loss falls to the end. Localization does not rise to the end. Move through the epochs:

# %% tags=["nbval-ignore-output"]
frames = []
for masks in observer.masks:
    frame = figures.gallery(pictures, maps=masks, columns=4, alt="The masks of eight scenes after one epoch.")
    frames.append(frame)
    plt.close(frame)
figures.slider(
    frames, [f"after epoch {epoch}" for epoch in range(len(frames))], title="epoch",
    alt="The masks of eight scenes after one epoch: first a haze over everything, then bright shapes on animals and other striking things "
    "in front of a fainter haze.",
)  # fmt: skip

# %% [markdown]
# First a haze: g starts with one half everywhere. Then the haze thins, and animals and other striking things stand out. Then the shapes begin to shrink, for the loss pays for every pixel that can go. This is the
# paper's **over-segmentation**. The table by hand says how far it will go: where the part costs little more than the animal, little holds the mask at the animal's outline. So the epoch is not a
# detail. It is half of the method.

# %% [markdown]
# ## Which epoch?
#
# $S$ has a trap, we saw: a haze that is the same everywhere has the best score. So an epoch counts only if its masks do not
# *show* the whole frame: the part of the frame above a tenth of the maximum must lie between 5 and 90 per cent (cited: a guard of ours; the paper names none).
# Of the epochs that pass, the one with the largest mean $S$ is kept.

# %% mystnb={"image": {"alt": "Left: S and the shown area on held-out training pictures, both near one, and S of stretched masks on test pictures, which is highest in the first epoch; right: GT-known on test pictures, lowest in the first epoch."}} tags=["nbval-ignore-output"]
ticks = range(len(history.epochs))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for key, marker in (("completeness", "o"), ("shown_area", "s")):
    left.plot([epoch[key] for epoch in history.epochs], marker=marker, label=key)
left.plot(observer.stretched, marker="^", label="completeness, stretched")
left.axhline(0.9, color="grey", linestyle=":")
left.set(xlabel="epoch", ylabel="mean over held-out pictures", ylim=(0, 1.05), xticks=ticks)
left.legend(loc="lower left")
right.plot(observer.gt_known, marker="o", color="black")
kept = ticks[-1] if history.kept_epoch is None else history.kept_epoch  # None: the last one
right.axvline(kept, color="grey", linestyle="--", label="kept")
right.set(xlabel="epoch", ylabel="GT-known, 300 test pictures", ylim=(0, None), xticks=ticks)
right.legend()
plt.show()

# %% [markdown]
# Two failures in one picture. The paper's $S$, of masks as they are, is stuck at one: a haze lies above a tenth of the maximum nearly all over the frame. The box of equation 5 *is* the frame, and catches
# everything. So no epoch passes the guard, and the last one stays. The authors' later code stretches each mask to the full range first, and an even haze is gone. But that curve (key `stretch` of
# the callback) is best where localization is worst, in the first epoch, when the stretched haze makes one big piece.

# %% [markdown]
# Is that luck? The same with five seeds and three sizes of the part; each epoch was measured on 500 test pictures, and the observer had no say. The *oracle* takes the best epoch
# of each run by those very pictures. It is an upper bound, and a flattering one: the best of eight noisy numbers.
#
# ```
# python -m tools.mask_epochs scenes/weight-map --to results/weight_map_part_size.json --seeds 0,1,2,3,4 \
#     --set data.options.families=1 --set data.options.classes=6 --vary data.options.part_size=0.2,0.35,0.5
# ```

# %%
watched = [c for c in grid.read("weight_map_part_size")["cells"].values() if "epochs" in c]
curves = {}
for c in watched:
    curve = np.array([epoch["gt_known"] for epoch in c["epochs"]])
    kept = c["kept_epochs"]["mask"]
    row = [curve.max(), curve[-1 if kept is None else kept], curve[0], curve[-1]]
    curves.setdefault(c["setting"][size_key], []).append(row)
    print(
        f"part {c['setting'][size_key]:4}  seed {c['seed']}  kept {kept!s:4}  oracle {curve.argmax()}   {curve.round(0)}"
    )

# %%
for size, rows in curves.items():
    oracle, kept, first, last = np.array(rows).T  # [5] each
    gap = oracle - kept
    print(f"part {size:4}  oracle {oracle.mean():.1f}   kept {kept.mean():.1f}   gap {gap.mean():.1f} ± "
          f"{grid.half_width(gap):.1f}   first epoch {first.mean():.1f}   last epoch {last.mean():.1f}")  # fmt: skip

# %% [markdown]
# (These runs used the paper's $S$, of masks as they are.) **S does not find the oracle's epoch.** At the smallest part the gap is a few points. Some of it is the oracle's luck, for it picks the best of
# eight noisy numbers. But simply training to the end is as good. At the larger parts the gap is wide: look at the rows with `None`. No epoch passed the guard, so the last one was kept. Two causes.
#
# 1. *Haze*, as above. Then S says nothing.
# 2. *Blindness.* S counts crumbs. A mask that has shrunk to a compact *part* is in one piece, and has the best score there is.
#
# And the larger the part, the sooner the shrinking, as the table by hand foretold: there the part costs little more than the animal.

# %%
best = {size: np.array(rows)[:, 0].mean() for size, rows in curves.items()}
left_over = {size: np.array(rows)[:, 1].mean() for size, rows in curves.items()}
assert best["0.35"] - left_over["0.35"] > 2 and best["0.5"] - left_over["0.5"] > 2

# %% [markdown]
# ## The claim, tested
#
# Does a mask draw the animal where CAM draws the part? The knob is the size of the telling part, as in chapter 03; the same
# classifier f stands behind CAM and behind the mask, seed by seed. Protocol `wsolevaluation` at the 64 pixels of the scenes, 1,000 test
# pictures, cross-fitted threshold, epoch kept by $S$. (Rates and numbers of epochs were chosen once, on the split `val` of seed 0 at the smallest part.) The world knows every pixel of its animals, so there is a second score: **PxAP**,
# the area under the pixel precision-recall curve. (pIoU, the best pixel IoU over thresholds, chooses its threshold on the test pictures: an upper bound.)
#
# ```
# wsol compare scenes/cam --to results/weight_map_part_size.json (the options of the command above)
# ```


# %%
def read(name, **setting):
    """Score -> array over the seeds, for the cells of a results file with this setting; of the floor too."""
    cells = [c for c in grid.read(name)["cells"].values() if setting.items() <= c["setting"].items()]
    cells.sort(key=lambda c: c["seed"])
    floor, names = [c["floors"]["centred Gaussian"] for c in cells], ("gt_known", "pxap", "piou")
    scores = {name: np.array([c["scores"][name] for c in cells]) for name in names}
    return scores | {f"floor {name}": np.array([f[name] for f in floor]) for name in names}


# %%
def tell(title, found, before=""):
    scores = [f"{before}{name}" for name in ("gt_known", "pxap", "piou")]
    told = [f"{found[name].mean():5.1f} ± {grid.half_width(found[name]):4.1f}" for name in scores]
    print(f"{title:24} GT-known {told[0]}   PxAP {told[1]}   pIoU {told[2]}   {len(found['gt_known'])} seeds")


claim = {}
for size in sizes:
    for title, name in {"CAM": "scenes/cam", "mask, method I": "scenes/weight-map"}.items():
        claim[title, size] = read("weight_map_part_size", recipe=name, **{size_key: size})
        tell(f"part {size}  {title}", claim[title, size])
    tell(f"part {size}  floor", claim["CAM", size], "floor ")

# %% mystnb={"image": {"alt": "GT-known and PxAP of CAM, the mask and the floor over the size of the telling part; values as printed above."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for axis, (score, label) in zip(axes, {"gt_known": "GT-known", "pxap": "PxAP"}.items(), strict=True):
    series = {title: [claim[title, size][score] for size in sizes] for title in ("CAM", "mask, method I")}
    series["floor"] = [claim["CAM", size][f"floor {score}"] for size in sizes]
    for (title, rows), marker in zip(series.items(), "os^", strict=True):
        spread = [grid.half_width(row) for row in rows]
        axis.errorbar(sizes, [row.mean() for row in rows], spread, marker=marker, capsize=4, label=title)
    axis.set(xlabel="part_size", ylabel=f"{label}, per cent", ylim=(0, None))
axes[0].legend()
plt.show()

# %%
for size in sizes:
    for score in ("gt_known", "pxap"):
        gain = claim["mask, method I", size][score] - claim["CAM", size][score]
        print(f"part {size}  {score:9} mask minus CAM {gain.mean():5.1f} ± {grid.half_width(gain):.1f}")
        assert gain.mean() > grid.half_width(gain) or (score == "gt_known" and size != "0.2")

# %% [markdown]
# Read it by score.
#
# - **GT-known at the smallest part**: the mask is far above CAM and the floor, which CAM is not. The claim holds where it was made.
# - **GT-known at larger parts**: the advantage melts, for by the kept epoch the mask *is* the part. The oracle's epochs, in the table before, were better than CAM at every size. The
#   method had the animal in its hands and let it go.
# - **PxAP** does not care about boxes, only whether what is shown is animal. There the mask wins at every size, and by much: its edges are drawn on the grid of the picture, not on eight by eight cells.

# %% [markdown]
# ### The price, taken away and put back
#
# What does R do? The paper's first ablation takes it away. We do the same at the smallest part, five seeds. (Two epochs are enough to see it.)
#
# ```
# wsol compare scenes/weight-map --to results/weight_map_ablation.json (the options above, part_size=0.2) \
#     --set stages.mask.epochs=2 --vary "stages.mask.args={area: 0}"
# ```

# %%
free = read("weight_map_ablation", recipe="scenes/weight-map", **{"stages.mask.args": "{area: 0}"})
tell("without the price", free)
tell("with it", claim["mask, method I", "0.2"])
tell("floor", free, "floor ")
assert free["pxap"].mean() < claim["mask, method I", "0.2"]["pxap"].mean()

# %% [markdown]
# Worse, but not as bad as one might expect of a loss whose best mask is all ones. Look at what such a mask does, live on our 300 pictures (after one epoch):

# %% tags=["nbval-ignore-output"]
no_price = ["stages.mask.args={area: 0}", "stages.mask.epochs=1", "stages.mask.callbacks=[]"]
freed = engine.run(engine.load_recipe("scenes/weight-map", knobs + small[:2] + no_price), folder.name, progress=False)
inside = torch.from_numpy(scenes.masks)  # [300,64,64]
for title, result in {"without": freed, "with": trained}.items():
    found = engine.localize(result.localizer, scenes, progress=False).maps
    print(
        f"{title:8} the price: weight on the animal {found[inside].mean():.2f}, elsewhere {found[~inside].mean():.2f}"
    )

# %% [markdown]
# **D lifts the weights where the answer comes from; R sinks the rest.** Without R the rest stays where it began, near one half: neither shown nor hidden. A
# threshold that is fitted to the masks still finds the animal in that relief. The box rule of equation 5 would show the whole frame.

# %% [markdown]
# ## Method II: no names, only "same" and "other"
#
# Method I asks f for a name. The second method asks for less: that pictures of one class lie *near* one another. Its f is an
# embedding, trained on triplets of an anchor, a positive of the same class and a negative of another (equation 2):
#
# $$\max\big(\lVert f(I_a) - f(I_p) \rVert - \lVert f(I_a) - f(I_n) \rVert + 1,\ 0\big).$$
#
# The distance is plain, not squared. Three points in the plane are enough to check it.

# %%
anchor, positive, negative = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[0.0, 5.5]]])  # [1,2] each
near, far = (anchor - positive).norm(), (anchor - negative).norm()
print(f"max({near} - {far} + 1, 0) = {max(near - far + 1, torch.zeros(())):.2f}")
assert torch.isclose(weight_map.outer_triplet(anchor, positive, negative), torch.tensor(0.5))
assert weight_map.outer_triplet(anchor, negative, positive + 10) == 0

# %% [markdown]
# The root hides a trap. Its slope at zero is infinite, and a foreground *equals* its picture whenever the mask is all ones. Then the gradient is not a number, and
# the training is lost. A speck inside the root heals it.

# %%
same = torch.ones(1, 2, requires_grad=True)
bare = (same - torch.ones(1, 2)).square().sum().sqrt()
(broken,) = torch.autograd.grad(bare, same)
(healed,) = torch.autograd.grad(weight_map.distance(same, torch.ones(1, 2)).sum(), same)
print("bare root", broken.tolist(), "  with eps", healed.tolist())
assert broken.isnan().all() and (healed == 0).all()

# %% [markdown]
# The mask cuts each picture in two, a foreground $J^f = M \odot I$ and a background $J^b = (1 - M) \odot I$. Two wishes follow.
#
# - **Inner** (equation 3): the whole anchor should lie nearer to its own foreground than to its background. *The foreground tells what the picture is; the background does not.*
# - **Outer** (equation 4): the foreground of the anchor should lie nearer to the foreground of its positive than to that of its negative. *What two herons share
#   is the heron.*
#
# Below are both, with an embedding that is just the mean colour. The "pictures" are one row of four pixels: an animal of the class's colour on two of
# them, and grass (green) on the rest.

# %%
red, green, blue = 0, 1, 2
colours = [[red, red, green, green], [green, red, red, green], [blue, blue, green, green]]
rows = torch.eye(3)[torch.tensor(colours)]  # [3,4,3]: anchor, positive, negative
right = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]).float()[..., None]  # [3,4,1]


def embed(row):
    return row.mean(1)  # [N,4,3] -> [N,3]


for title, m in {"animal": right, "grass": 1 - right, "all": torch.ones_like(right)}.items():
    a, p, n = embed(rows * m).split(1)  # the foregrounds
    inner = weight_map.inner_triplet(embed(rows[:1]), a, embed(rows[:1] * (1 - m[:1])))
    print(f"{title:7} inner {inner:.3f}   outer {weight_map.outer_triplet(a, p, n):.3f}")

# %% [markdown]
# Look at the column *inner*. Animal and grass cost the same: to this embedding each is half of the picture. And "all" costs least. The inner term
# alone does not know what is foreground. The column *outer* does: grass is the worst, for it is the same in both classes. It
# cannot tell the animal from the whole, though. The area term can. **Each of the three terms is blind to something that another one sees.**

# %%
a, p, n = embed(rows * right).split(1)
grass = [weight_map.outer_triplet(*embed(rows * (1 - right)).split(1)), weight_map.outer_triplet(a, p, n)]
assert grass[0] > grass[1]

# %% [markdown]
# An anchor now needs three passes through g and five through f: whole, foreground and background of the anchor, foregrounds of the
# other two. In the library it is one batch through each. The view `Triplets` draws the partners, a function of seed, epoch and
# index, so that a run that was killed goes on with the same.
#
# One thing is missing. This f has no classes, so it cannot name anything, but Top-1 Loc wants a name. The paper prints the same Top-1 accuracy for both
# methods, to the second decimal; so it evidently borrowed the classifier of method I. The recipe `scenes/siamese-weight-map` says it plainly: its last stage `needs`
# both. (And the embedding starts with the classifier's weights, as the paper's starts with those of ImageNet.)

# %%
siamese = engine.load_recipe("scenes/siamese-weight-map")
for stage in siamese.stages:
    print(f"{stage.name:10} {stage.method:20} needs {stage.needs}")
assert siamese.stages[-1].needs == {"embedding": "embedding", "classifier": "cam"}

# %% [markdown]
# ### Tested, at the smallest part
#
# Two worlds. In the first, as everywhere above, the landscape hints at the species: half of a species' pictures are taken in its own habitat, the others anywhere. In the second
# (`context_bias=0`) it hints at nothing. The same classifiers name the class; five seeds.
#
# ```
# wsol compare scenes/siamese-weight-map --to results/weight_map_siamese.json --set data.options.families=1 \
#     --set data.options.classes=6 --set data.options.part_size=0.2 --vary data.options.context_bias=0,0.5
# wsol compare scenes/cam scenes/weight-map --to results/weight_map_siamese.json (the same) --vary data.options.context_bias=0
# ```

# %%
bias_key = "data.options.context_bias"
kinds = {"CAM": "scenes/cam", "mask, method I": "scenes/weight-map", "mask, method II": "scenes/siamese-weight-map"}
worlds = {(title, "0.5"): claim[title, "0.2"] for title in ("CAM", "mask, method I")}
for title, bias in (("mask, method II", "0.5"), *((title, "0") for title in kinds)):
    worlds[title, bias] = read("weight_map_siamese", recipe=kinds[title], **{bias_key: bias})
for bias in ("0.5", "0"):
    for title in kinds:
        tell(f"bias {bias:3} {title}", worlds[title, bias])
    tell(f"bias {bias:3} floor", worlds["mask, method II", bias], "floor ")

# %%
for bias in ("0.5", "0"):
    for title in ("mask, method I", "mask, method II"):
        gain = worlds[title, bias]["gt_known"] - worlds["CAM", bias]["gt_known"]
        print(f"bias {bias:3}  {title:15}  GT-known minus CAM's {gain.mean():5.1f} ± {grid.half_width(gain):.1f}")
        assert gain.mean() > grid.half_width(gain)
        assert worlds[title, "0"]["gt_known"].mean() > worlds[title, "0.5"]["gt_known"].mean()
runs = [c for c in grid.read("weight_map_siamese")["cells"].values() if c["setting"]["recipe"] == siamese.name]
print("epochs of method II that S kept:", [c["kept_epochs"]["mask"] for c in runs])

# %%
for bias in ("0.5", "0"):
    one, two = worlds["mask, method I", bias], worlds["mask, method II", bias]
    ahead = {score: one[score] - two[score] for score in ("gt_known", "pxap")}
    told = [f"{score} {gap.mean():.1f} ± {grid.half_width(gap):.1f}" for score, gap in ahead.items()]
    print(f"bias {bias:3}  method I minus method II: {'   '.join(told)}")
assert all(gap.mean() > grid.half_width(gap) for gap in ahead.values())

# %% [markdown]
# Both masks are far above CAM and the floor, in both worlds. So "same" and "other" are enough to learn what an animal is; no name is needed. The second world is kinder to both: where the landscape
# says nothing about the species, f does not use it, and a mask has no reason to show it.
#
# In the first world nobody can tell the two methods apart, as in the paper. In the second, method I is ahead in boxes and in pixels: the masks of method II are hazier. (S had no say in
# method II: `None` means that in no epoch the masks passed the guard, so the last one stayed.)
#
# ### Which term can go?
#
# The paper's table 6 leaves out one term at a time. So do we, in the second world, with three seeds.
#
# ```
# wsol compare scenes/siamese-weight-map --to results/weight_map_ablation.json --seeds 0,1,2 (the same options) \
#     --set data.options.context_bias=0 --vary "stages.mask.args={},{inner: 0},{outer: 0},{area: 0}"
# ```

# %%
terms, second = "stages.mask.args", {"recipe": "scenes/siamese-weight-map"}
rows = {"all three terms": "{}"} | {f"no {term}": f"{{{term}: 0}}" for term in ("inner", "outer", "area")}
ablation = {title: read("weight_map_ablation", **second, **{terms: value}) for title, value in rows.items()}
for title, found in ablation.items():
    tell(title, found)
tell("floor", ablation["no inner"], "floor ")

# %%
for title, found in list(ablation.items())[1:]:
    lost = ablation["all three terms"]["gt_known"] - found["gt_known"]
    print(f"{title:9} GT-known lost {lost.mean():5.1f} ± {grid.half_width(lost):.1f}")
table = np.array([found["gt_known"] for found in ablation.values()])  # [4 rows, 3 seeds]
assert (table.argmin(0) == list(ablation).index("no area")).all()

# %% [markdown]
# With every seed the boxes are worst without the area, for the reason seen before: nothing sinks what is not needed. The two triplets can stand in for one another: either may go, and what is lost is
# less than what seeds differ by. Three seeds cannot say more. Mind the widths before you believe an ablation table, this one too.

# %% [markdown]
# ## Real photographs
#
# The encoder of g and the features of f are EfficientNet-Lite0 of ImageNet; the head of f is a logistic regression fitted to the training pictures that g learns from, hardly penalised. The
# paper's f was trained for hundreds of epochs on those very pictures and is as sure of them. (It pays in Top-1 Loc: few pictures make a poor classifier.)
#
# First live, on one picture of each class, for one short epoch. That is far too little; it is here to be seen at work.

# %% tags=["needs:tiny-imagenet", "nbval-ignore-output"]
short = ["data.options.per_class=1", "stages.mask.epochs=1", "evaluate.limit=100", "stages.mask.workers=0",
         "stages.mask.callbacks=[]", "stages.mask.hold_out=0"]  # fmt: skip
tiny_recipe = engine.load_recipe("tiny-imagenet/weight-map-lite0", short)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scikit-learn minds so few pictures of a class
    quick = engine.run(tiny_recipe, folder.name, progress=False)
low, high = quick.results["intervals"]["gt_known"]
print(f"GT-known {quick.results['scores']['gt_known']:.1f}  95% [{low:.1f}, {high:.1f}], n = {quick.results['n']}")
print({name: round(floor["gt_known"], 1) for name, floor in quick.results["floors"].items()})

# %% tags=["needs:tiny-imagenet"]
tiny_losses = quick.histories["mask"].losses()
assert np.mean(tiny_losses[-5:]) < np.mean(tiny_losses[:5])

# %% tags=["needs:tiny-imagenet", "nbval-ignore-output"]
tiny = data.load("tiny-imagenet", "val", size=224)
rows = torch.linspace(0, len(tiny) - 1, 8).long().tolist()
photos, truth = torch.stack([tiny[i]["image"] for i in rows]), tiny.labels[rows]
said = {"mask": quick.localizer.localize(photos).maps, "CAM": quick.stages["cam"].localize(photos, truth).maps}
figures.gallery(
    photos.repeat(2, 1, 1, 1), maps=[m for maps_of in said.values() for m in maps_of], columns=8,
    boxes=[tiny[i]["boxes"] for i in rows] * 2, titles=[name for name in said for _ in rows],
    alt="Eight photographs of Tiny-ImageNet, above with the mask after one short epoch, below with CAM, and the true box. The masks follow "
    "outlines, of the object and of other striking things; CAM is a blob.",
)  # fmt: skip
plt.show()

# %% [markdown]
# And the runs that count: all training birds of CUB-50, and 15 pictures of each class of Tiny-ImageNet (method II: fewer epochs and pictures, for a step
# costs almost three times as much). Whole pictures, GT-known with a cross-fitted threshold on *all* test pictures (MaxBoxAcc is an upper bound). One seed; the interval
# is over pictures. The epoch was kept by S of *stretched* masks, for here a haze stays.
#
# What was chosen on what? The rates and the strength of the head's penalty were chosen on 200 *training* pictures of each set, held out, by looking at their boxes: a validation set with boxes, as
# much of the field has one. And one thing is less clean. On Tiny-ImageNet the network's own head was tried first, and given up after a look at 500 of the test pictures.
#
# ```
# python -m tools.mask_epochs cub/weight-map-lite0 cub/siamese-weight-map-lite0 --to results/weight_map_cub.json --limit 300
# python -m tools.mask_epochs tiny-imagenet/weight-map-lite0 tiny-imagenet/siamese-weight-map-lite0 \
#     --to results/weight_map_tiny-imagenet.json --limit 300
# ```


# %%
def photographs(name):
    """Print the floors, CAM and the masks on one data set; return GT-known of each."""
    cams = grid.read(f"cam_family_{name}")["cells"].values()
    cam = next(c for c in cams if c["setting"]["stages.cam.args.variant"] == "cam")
    masks = {c["setting"]["recipe"]: c for c in grid.read(f"weight_map_{name}")["cells"].values()}
    one, two = (masks[f"{name}/{method}-lite0"] for method in ("weight-map", "siamese-weight-map"))
    measured = {"CAM": cam, "mask, method I": one, "mask, method II": two}
    print(grid.score_table(measured))
    return {title: row["scores"]["gt_known"] for title, row in grid.with_floors(measured).items()}


# %%
on_cub = photographs("cub")

# %%
on_tiny = photographs("tiny-imagenet")

# %%
assert on_cub["mask, method I"] > on_cub["best centred box"] + 5 > on_cub["CAM"] + 10
assert on_cub["mask, method II"] > on_cub["best centred box"]
assert max(on_tiny["mask, method I"], on_tiny["mask, method II"]) < on_tiny["best centred box"] < on_tiny["CAM"]

# %% [markdown]
# **On birds method I wins by far**: by many points over CAM, and clearly above the best centred box, which no member of CAM's family was in chapter 03. Nobody asked it for a *class* here, only
# that the classifier's answer stays, and birds are what the answer needs. Method II, after two epochs, is far above CAM as well; from the centred box chance could just explain it. **On Tiny-ImageNet they fail**: their boxes are hardly better than the whole frame, and CAM is far ahead.
#
# ### What stops it?
#
# Ask with masks by hand again, as we asked on the scenes. What does equation 1 say of the mask that we *want*, the true box?
#
# ```
# python -m tools.hand_masks cub/weight-map-lite0 tiny-imagenet/weight-map-lite0 --n 600 --set evaluate.limit=600 \
#     --to results/weight_map_by_hand_photos.json
# ```

# %%
price = {}  # (data, mask) -> D + area
for c in grid.read("weight_map_by_hand_photos")["cells"].values():
    print(f"{c['data']}, {c['pictures']} pictures")
    for title, found in c["by_hand"].items():
        price[c["data"], title] = found["invariance"] + found["area"]
        told = f"D {found['invariance']:.2f}   area {found['area']:.2f}   D + area {price[c['data'], title]:.2f}"
        print(f"  {title:15} {told}   name kept {found['kept']:3.0f} of 100")

# %%
dearer = {name: price[name, "box"] - price[name, "all"] for name in ("cub-50 test", "tiny-imagenet val")}
print({name: round(more, 2) for name, more in dearer.items()})
assert dearer["tiny-imagenet val"] > 10 * dearer["cub-50 test"] > 0

# %% [markdown]
# On the scenes the object was the cheapest mask of all. Here its box is not. On **birds** the box costs about as much as showing everything, and a mask may still be cheaper than both, for
# a bird fills less than half of its box. On **Tiny-ImageNet** the box costs *twice* what showing everything costs, and half of the pictures lose their name in it. **Equation 1 does
# not want the object there.** No training, however long, makes a loss prefer what it prices double.
#
# Why? The loss is only as good as f. These features were made for photographs, and are fed pictures of 64 pixels, enlarged. A piece of such a picture, cut out along a
# hard edge, is something that f never saw. The paper's f was trained on these very pictures, features and all. Would such an f mind the cut less? That is the experiment to do, and it needs a GPU.
#
# Was the training too short, then, on birds? Look at the epochs (GT-known here on 300 of the test pictures, measured by an observer):

# %%
for name in ("cub", "tiny-imagenet"):
    for cell in grid.read(f"weight_map_{name}")["cells"].values():
        print(cell["setting"]["recipe"], "  kept by S: epoch", cell["kept_epochs"]["mask"])
        for e in cell["epochs"]:
            told = "   ".join(f"{key} {e[key]:.2f}" for key in ("total", "area", "completeness", "shown_area"))
            print(f"  epoch {e['epoch']:2}   {told}   GT-known {e['gt_known']:.1f}")

# %%
runs = grid.read("weight_map_cub")["cells"].values()
birds = next(c for c in runs if c["setting"]["recipe"] == "cub/weight-map-lite0")
flown = [e["gt_known"] for e in birds["epochs"]]
kept = flown[birds["kept_epochs"]["mask"]]
print(f"birds, method I: kept {kept:.1f}, oracle {max(flown):.1f}, last {flown[-1]:.1f}")
assert max(flown) - kept < 2 and kept - flown[-1] > 5

# %% [markdown]
# No. On birds loss and area fall to the end, but GT-known does not rise to the end: it climbs for a handful of epochs, wanders, and sinks. This is the paper's over-segmentation, on photographs. And here
# **S did its work**: it kept an epoch within two points of the oracle's, far better than the last one. (S is near one all the time; what it tells apart are the crumbs in the third decimal. And
# the guard refused some epochs whose stretched masks show more than nine tenths of the frame.)
#
# Of method II's two epochs S kept the worse one: its masks are all haze still. On Tiny-ImageNet the area *rises* from epoch to epoch, as the prices by hand foretold: hiding costs.

# %% [markdown]
# ## Where it breaks
#
# The mask shows what *f uses*. Where f looks at the landscape, so does the mask. Below are test pictures with the *smallest* animals, on which
# our f can hardly see the telling part:

# %% tags=["nbval-ignore-output"]
extent = torch.from_numpy(scenes.masks).flatten(1).float().mean(1)  # [300], part of the frame
tiny_ones = extent.argsort()[:8].tolist()
little = torch.stack([scenes[i]["image"] for i in tiny_ones])
figures.gallery(
    little, maps=trained.localizer.localize(little).maps, boxes=[scenes[i]["boxes"] for i in tiny_ones], columns=4,
    alt="Eight scenes whose animals are a few pixels large, with their masks. Most masks lie on trees, water or sky, not on the animal.",
)  # fmt: skip
plt.show()

# %% tags=["nbval-ignore-output"]
answers = trained.localizer.localize(torch.stack([scenes[i]["image"] for i in range(300)]))
on_animal = (answers.maps * torch.from_numpy(scenes.masks)).sum((1, 2)) / answers.maps.sum((1, 2))  # [300]
quarter = extent <= extent.quantile(0.25)
named = answers.logits.argmax(1) == scenes.labels
for title, some in {"smallest quarter": quarter, "the others": ~quarter}.items():
    print(f"{title:17} classes {100 * named[some].double().mean():.0f}   part of the mask's weight on the animal "
          f"{on_animal[some].mean():.2f}   the animal's part of the frame {extent[some].mean():.2f}")  # fmt: skip
assert on_animal[~quarter].mean() > on_animal[quarter].mean()

# %% [markdown]
# - **The mask explains f, not the world.** Landscape that f uses stays visible; parts of the animal that f does not need may go.
# - **A haze lingers.** g begins with one half everywhere, and it takes many steps to sink. On photographs it never went away in our
#   short runs; scores and boxes must then stretch the mask first.
# - **When to stop** decides the box, and $S$ only sees crumbs. It is blind to a compact mask in the wrong place.
# - **One mask for all.** Several objects share it, and their boxes merge, as with CAM.
#
# ## Published, and ours
#
# The paper's numbers are for whole training sets, long training and networks of its own, under its own crop: pictures resized to 256, the middle
# 224 cut out, boxes clipped; threshold a tenth of the maximum. Under *that* crop a fixed box in the middle is strong.

# %%
published = {  # Shaharabany and Wolf (2021), tables 1 and 3: GT-known
    "Tiny-ImageNet": {"CAM": 54.56, "infoCAM+": 57.71, "method I": 60.21, "method II": 60.41},
    "CUB": {"method I": 82.85, "method II": 83.03},
}
for name, row in published.items():
    print(f"{name:14} paper: {row}")


# %%
for c in grid.read("weight_map_crop")["cells"].values():
    ends, floor = c["intervals"]["gt_known"], c["floors"]["best centred box"]["gt_known"]
    title = c["setting"]["recipe"].removesuffix("-lite0")
    print(f"{title:26} GT-known {c['scores']['gt_known']:5.1f}  95% [{ends[0]:.1f}, {ends[1]:.1f}]"
          f"   best centred box {floor:.1f}   n = {c['n']}")  # fmt: skip

# %% [markdown]
# Under this crop, on 1,000 test pictures of each set, evenly spread, and with a cross-fitted threshold: on birds the mask stays far above the box in the middle, CAM does not reach it; on Tiny-ImageNet it is the other way round. The
# paper's two methods lie *at* the best centred box of all 10,000 pictures, as chapter 02 computed. A mask that hides nothing cannot be told from them by its score alone.
#
# The full runs, with the paper's settings, are the recipes `cub/weight-map`, `cars/weight-map`, `flowers/weight-map` and
# `tiny-imagenet/weight-map-resnet50`, and the same with `siamese-`. They need a GPU, the data and timm's weights; we have not run
# them. The paper's own code could not be read, so all of this chapter is a reconstruction from its text. What the text leaves open (momentum, the sampling of triplets, their prices,
# widths of the decoder, the pictures for $S$) is said in the recipes and in `wsol_lib/methods/weight_map.py`.
#
# ## Exercises
#
# ### Exercise 1: predict
#
# Train with a *hard* target, the named class alone, in place of the vector. For a picture on which f is torn between two classes, what
# may the mask now do that it could not do before? Predict, then look at the loss of `by_hand["part"]` under both.
#
# <details><summary>Solution</summary>
#
# It may *decide*. A soft target must keep the doubt: evidence for the second class has to stay visible as well. A hard target asks for the first class only, so whatever speaks for
# the second may be hidden, and it pays to hide it: the loss can fall *below* that of the whole picture. The floor of a soft target is the entropy of f's answer; the floor of a hard one is zero.
#
# ```python
# with torch.no_grad():
#     for target in ("soft", "hard"):
#         print(target, [weight_map.invariance_loss(whole, through[i : i + 1], target).item() for i in (0, 2)])
# ```
#
# </details>
#
# ### Exercise 2: implement
#
# A haze is neither shown nor hidden. Make it pay: write a term that is 0 for masks of zeros and ones, largest at one half, and a
# mean over pixels. What does its gradient do to a haze at .3, and to one at .7? (cited: values of the exercise)
#
# <details><summary>Solution</summary>
#
# `4 * (mask * (1 - mask)).mean()` will do. Its slope is $4 (1 - 2M)$: descent pushes a weight below one half towards 0 and one above it towards 1. So a haze at 0.3 (cited: of the exercise) clears, and one at
# 0.7 (cited: of the exercise) *hardens* into "everything is visible". The term sharpens what the mask already leans to; it does not know what is right.
#
# ```python
# class Crisp(weight_map.WeightMap):
#     def losses(self, batch):
#         mask = self.mask(batch["image"])
#         return super().losses(batch) | {"crisp": 4 * (mask * (1 - mask)).mean()}
# ```
#
# </details>
#
# ### Exercise 3: investigate
#
# Does the mask follow the landscape because it *can*? Train at `context_bias=0`, where habitat and species are independent, and at 1. Where does the
# mask's weight lie?
#
# <details><summary>Solution</summary>
#
# ```
# wsol compare scenes/weight-map scenes/cam --to context.json --seeds 0,1,2 --set data.options.families=1 \
#     --set data.options.classes=6 --vary data.options.context_bias=0,0.5,1
# ```
#
# At 1 the landscape is all that f needs, and a mask that keeps the answer keeps the landscape. At 0 it says nothing about the class, and showing it only costs. A
# mask can be no better than the reasons of its classifier.
#
# </details>
#
# ## Summary
#
# 1. **Write the losses.** Invariance keeps the classifier's answer, area makes hiding pay; the inner triplet parts foreground from background, the
#    outer one ties foregrounds of a class together. Alone, each has an empty optimum: all, nothing, or no matter which.
# 2. **Stop in time.** The loss wants the part. The mask passes through the animal on its way there, and a score of compactness, guarded against haze, may choose the epoch without
#    a label: on birds it did, on scenes it did not.
# 3. **Judge the mask.** Where the telling part is small, the boxes of both methods are far above CAM and the floor; where it is large, the mask shrinks to the part and the advantage in boxes melts. Its pixels are about
#    twice as good at every size. On birds method I beats CAM and every floor; on Tiny-ImageNet the loss itself, with our f, prices the object higher than the whole. And whatever a mask shows is what *f* uses.
