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
# # The task and the data
#
# A child who is told "there is a heron in this picture" soon knows what a heron is, and can point at the next one.
# Nobody drew a box around the first. Can a network do the same? That is the question of this book. This chapter makes
# it precise, and looks hard at the pictures on which it is studied, because many surprises of the later chapters are
# already in them.
#
# ## Objectives
#
# About 40 minutes to read, two minutes to run on two cores. It needs no download; the cells on photographs need
# Tiny-ImageNet, CUB-50 and ILSVRC-mini.
#
# 1. **State the task**: what the learner sees, what it is asked, and how the code keeps the two apart.
# 2. **Turn a cause**: use a generated world in which every cause of failure has a knob, and say why that allows a
#    test that photographs do not.
# 3. **Read a data set**: measure where its boxes lie and how big they are, predict how far a blank guess gets, and
#    avoid three traps in its coordinates.

# %%
import importlib.util, subprocess, sys

if importlib.util.find_spec("wsol_lib") is None:  # in Colab; the torch that is there stays
    source = "git+https://github.com/wsol-book/wsol-book"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

from wsol_lib import setup

setup(seed=0)

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from wsol_lib import figures
from wsol_lib.data import collate, load, scenes

figures.style()

# %% [markdown]
# ## What the learner sees
#
# Here is a training set: pictures, each with the name of what it shows. Read the names and look at the pictures. You
# will find each animal at once, although nothing says where it is.

# %%
train = load("scenes", "train", size=224)
shown = [train[i] for i in (18, 1, 9, 12)]
names = [train.classes[item["label"]] for item in shown]
figures.gallery(
    [item["image"] for item in shown],
    titles=names,
    alt="Four drawn landscapes, each with one animal in it and its name above; no box is drawn.",
)
plt.show()

# %% [markdown]
# A training item holds a picture, a class number, a position in the data set, and here a caption. That is all.

# %%
print({key: getattr(value, "shape", value) for key, value in shown[0].items()})
assert not {"boxes", "mask"} & shown[0].keys()

# %% [markdown]
# ## What it is asked
#
# At test time the question changes. The learner was told **what**; it must now say **where**, with a box $b = (x_0,
# y_0, x_1, y_1)$. This is *weakly supervised object localization*, WSOL for short:
#
# $$\text{learn from } \{(I_i, y_i)\}_{i=1}^{n}, \qquad \text{answer } \hat b(I) \text{ for a new picture } I.$$
#
# An answer is judged by the overlap with the true box $b$, intersection over union:
#
# $$\mathrm{IoU}(\hat b, b) = \frac{|\hat b \cap b|}{|\hat b \cup b|}, \qquad \text{a hit if } \mathrm{IoU} \ge \tfrac12.$$
#
# Only the *test* split knows the true boxes, and only the evaluation reads them. White and solid is the truth in this
# book.

# %%
test = load("scenes", "test", size=224)
asked = [test[i] for i in (5, 3, 17, 11)]
figures.gallery(
    [item["image"] for item in asked],
    boxes=[item["boxes"] for item in asked],
    titles=[test.classes[item["label"]] for item in asked],
    alt="Four drawn landscapes with one animal each and a solid white box tightly around the animal.",
)
plt.show()

# %% [markdown]
# ## Why not simply draw the boxes?
#
# Because someone has to. With boxes in training the task is called *fully* supervised, and is ordinary object
# detection. Here is what published studies say about an annotator's time. The studies differ in interface, training
# of the annotators and quality checks, so read the orders of magnitude and not the digits.

# %%
studies = [
    ("box, drawn by its corners (ILSVRC)", "35 s a box", "Papadopoulos et al., 2017"),
    ("box, by four extreme points", "7 s a box", "Papadopoulos et al., 2017"),
    ("point on the object", "22.1 s a picture", "Bearman et al., 2016"),
    ("mask of every object (PASCAL VOC)", "239.7 s a picture", "Bearman et al., 2016"),
]
for what, time, source in studies:
    print(f"{what:38} {time:18} {source}")

# %% [markdown]
# ILSVRC has more than a million training pictures. At 35 s a box, one box for each would keep one annotator at work
# for longer than a year, day and night; the next cell does the sum. A label, on the other hand, often comes for free:
# a search word, a tag, the folder a photograph lies in, a diagnosis in a patient's file. *That* is the case for weak
# supervision. It is weaker where a box costs 7 s, and weaker still if you need only a few hundred boxes, as we shall
# see below. (Sources: [Papadopoulos et al., 2017](https://arxiv.org/abs/1708.02750), who take the 35 s from an earlier
# study; [Bearman et al., 2016](https://arxiv.org/abs/1506.02106); [Russakovsky et al., 2015](../book/references.md).)

# %%
pictures = 1_281_167  # training pictures of ILSVRC2012
years = [pictures * seconds / (3600 * 24 * 365) for seconds in (35, 7)]
print(f"{years[0]:.2f} years day and night at 35 s a box, {years[1]:.2f} at 7 s")
assert 1.4 < years[0] < 1.5

# %% [markdown]
# ## The rule is kept by code
#
# A rule that is only written down gets broken: a box slips into an augmentation, a threshold is chosen where boxes
# were at hand. So in this library a training split *refuses* to show boxes and masks.

# %%
from wsol_lib.types import SupervisionError

for ask in (train.boxes, train.mask):
    try:
        ask(0)
    except SupervisionError as error:
        print(error)

# %% [markdown]
# There is one door, and it has a sign on it. With `supervision="oracle"` the boxes of the training split can be read,
# to find out how much better one could be with them. Whatever was made this way is called an *oracle* in this book,
# and never competes with a weakly supervised method.

# %%
oracle = load("scenes", "train", size=224, supervision="oracle")
print(oracle.boxes(0))
assert "boxes" in oracle[0] and "boxes" not in train[0]

# %% [markdown]
# ## One interface for every method
#
# A loader joins items into a `Batch`. Pictures are stacked; boxes stay a list, because a picture may have several.

# %%
batch = collate([test[i] for i in range(4)])
print("image", tuple(batch["image"].shape))  # [B,3,H,W] in [0,1]
print("label", batch["label"].tolist(), "index", batch["index"].tolist())
print("boxes", [tuple(boxes.shape) for boxes in batch["boxes"]])  # N,4 for each picture

# %% [markdown]
# A method is a `Localizer`. It has `losses(batch)` to learn by, and `localize(images, labels)` to answer with a
# `Localization`: a score map for each picture, or boxes, or both. Here is the laziest method there is. It learns
# nothing and answers with the same blob in the middle of every picture.

# %%
from wsol_lib.types import Localization, Localizer


class AlwaysCentre(Localizer):
    """A Gaussian blob in the middle, whatever the picture shows."""

    uses_labels = False

    def localize(self, images, labels=None):
        x = 4 * (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1] - 2  # [W], from -2 to 2
        line = torch.exp(-(x**2) / 2)
        blob = line[:, None] * line  # [H,W]
        return Localization(maps=blob.expand(len(images), -1, -1))  # [B,H,W]


# %% [markdown]
# The evaluation knows nothing of the method but `localize`. It draws a box around the part of each map above a
# threshold $\tau$, and counts hits. The share of hits, in per cent, is called **GT-known**: the map may be drawn for the
# true class, so that only *where* is asked. The rules of the count are a **protocol**; this one, `wsolevaluation`, is
# that of [Choe et al. (2020)](../book/references.md). How maps become boxes is the subject of [chapter
# 02](02_measuring.ipynb). Only one thing matters here: with `tau="cross-fit"`, $\tau$ is chosen on one half of the pictures and scored on the
# other, both ways, so nothing is tuned on the pictures it is measured on.

# %% tags=["nbval-ignore-output"]
from dataclasses import replace

from wsol_lib.engine import evaluate
from wsol_lib.metrics import PROTOCOLS, trivial_floors

protocol = replace(PROTOCOLS["wsolevaluation"], tau="cross-fit")
evaluator = evaluate(AlwaysCentre(), load("scenes", "test", size=224, view=protocol), protocol, progress=False)
low, high = evaluator.interval()
print(
    f"GT-known {evaluator.compute().gt_known:.1f} (95 per cent interval {low:.1f} to {high:.1f}, n = {len(evaluator)})"
)

# %% [markdown]
# It finds one animal in five, without looking. Such a score is a **floor**: a method that does not beat it has not
# shown that it localizes anything. The library computes the floors of any data set from its boxes alone, and gets the same number as
# our class.

# %%
floors = trivial_floors(protocol, [test.boxes(i) for i in range(len(test))], test.image_sizes)
for name, scores in floors.items():
    print(f"{name:17} GT-known {scores.gt_known:5.1f}")
assert abs(floors["centred Gaussian"].gt_known - evaluator.compute().gt_known) < 1e-6

# %% [markdown]
# ## A world with known causes
#
# Methods are said to fail *because* a small part gives the class away, or *because* birds are mostly seen on
# branches. With photographs such sentences are hard to test: nobody can take the same photograph again with another
# background. So we draw a world, called `scenes`, in which we can.
#
# Twelve species belong to four families. The columns below are families. A family shares its body; only a small
# **telling part** differs, in kind and colour, from species to species.

# %%
world = scenes.make(400, seed=1, size=224, context_bias=0.0, clutter=0.0)
columns = np.arange(12)  # class k belongs to family k mod 4
first = [int((world.labels == k).nonzero()[0]) for k in columns]
figure = figures.gallery(
    [world[i]["image"] for i in first],
    titles=[world.classes[k] for k in columns],
    alt="Three rows of four animals: a column of herons, of deer, of fish and of beetles. The three animals of a "
    "column have the same body and differ in one coloured part: a crest, a tail, a collar.",
)
figure.set_size_inches(6.9, 6.0)
plt.show()

# %% [markdown]
# Every species has one of six habitats for its own, where it *may* be seen more often than elsewhere. In the next
# sheet that link is cut (`context_bias=0`), so each of the twelve lives everywhere. These are the pictures at the 64
# pixels at which the networks of this book are trained; a thousand of them are drawn in about a second.

# %%
small = scenes.make(1000, seed=1, context_bias=0.0)  # 64 px unless told
labels, homes = small.labels.numpy(), small.habitats
grid = [[small.images[np.flatnonzero((labels == k) & (homes == h))[0]] for k in range(12)] for h in range(6)]
sheet = np.concatenate([np.concatenate(row, axis=1) for row in grid])  # [6*64,12*64,3]
print(sheet.shape, sheet.dtype)

# %% mystnb={"image": {"alt": "A contact sheet of small landscapes, six habitats down and twelve species across: every species in the marsh, the ocean, the snow, the forest, the meadow and the desert."}}
figure, axes = plt.subplots(figsize=(7.8, 4.8))
axes.imshow(sheet)
axes.set_xticks(32 + 64 * np.arange(12), small.classes, rotation=55, ha="right", fontsize=9)
axes.set_yticks(32 + 64 * np.arange(6), small.habitat_names)
axes.grid(False)
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ### What each picture carries
#
# As the world is drawn, everything is known about each picture: the box, the mask of the object, the mask of the
# telling part, the habitat, and a sentence that describes it.

# %%
sample = scenes.make(40, seed=2, size=224, part_size=0.35)
i = 7
item = sample[i]
layers = [item["image"], item["image"]]
layers += [
    torch.from_numpy(0.25 + 0.75 * mask)[None] * item["image"] for mask in (sample.masks[i], sample.part_masks[i])
]
none = torch.zeros(0, 4)
figures.gallery(
    layers, boxes=[none, item["boxes"], none, none], titles=["picture", "box", "object mask", "part mask"],
    alt="One landscape four times: as it is, with the animal's box, with all but the animal darkened, and with "
    "all but its telling part darkened.",
)  # fmt: skip
plt.show()

# %%
print(f'"{item["caption"]}"; habitat: {sample.habitat_names[sample.habitats[i]]}')
object_share, part_share = sample.masks.mean(), (sample.part_masks.sum((1, 2)) / sample.masks.sum((1, 2))).mean()
print(f"the object covers {object_share:.2f} of a picture, the telling part {part_share:.2f} of the object")
x0, y0, x1, y1 = item["boxes"][0].int().tolist()
assert sample.masks[i][y0:y1, x0:x1].sum() == sample.masks[i].sum()  # the box holds the whole mask
assert not (sample.part_masks & ~sample.masks).any()  # the part belongs to the object

# %% [markdown]
# The last line is the reason why WSOL is hard. To name the species, a classifier needs little more than the part,
# about a seventh of the object here. The box wants all of it.
#
# ### The same picture, always
#
# Pictures are drawn from seeded numbers with exact arithmetic, so they are the same to the last byte on every
# machine. A hash pins that. Picture 5 also stays picture 5 when more are made, and at any size.

# %%
import hashlib

few, many = scenes.make(24, seed=0), scenes.make(100, seed=0)
print(hashlib.sha256(few.images.tobytes()).hexdigest()[:16])
assert (few.images == many.images[:24]).all()
large = scenes.make(24, seed=0, size=224)
assert few.captions == large.captions
assert (large.boxes(5) / 3.5 - few.boxes(5)).abs().max() <= 2  # the same box, to a pixel or two

# %% [markdown]
# ## Turn one knob
#
# Six knobs stand for six ways in which WSOL is said to fail:
#
# | knob | what it does | the failure it stands for |
# |---|---|---|
# | `context_bias` | how often a species is seen in its own habitat | the map lights up the background |
# | `part_size` | how small the telling part is | the map covers the part, not the object |
# | `instances` | how many animals a picture has | one box around several, or around the first |
# | `occlusion` | how much foreground hides | only pieces are found |
# | `reflection` | how often a mirror image is seen in water | the map covers what is no object |
# | `clutter` | how many bright distractors | the map is drawn to what is merely salient |
#
# Each row below is **one** picture, drawn four times. Only the knob of its row is turned. Where a knob is a *chance*,
# as in the rows of `context_bias` and `reflection`, one picture changes once, at the setting where its luck turns.

# %%
settings = {
    "context_bias": (0.0, 0.2, 0.5, 1.0),
    "part_size": (0.5, 0.3, 0.15, 0.05),
    "instances": (1, 2, 3, 4),
    "occlusion": (0.0, 0.25, 0.5, 0.75),
    "reflection": (0.0, 0.3, 0.6, 1.0),
    "clutter": (0.0, 0.35, 0.7, 1.0),
}
turned = {
    knob: [scenes.make(60, seed=4, size=224, **{knob: value}) for value in values] for knob, values in settings.items()
}

# %%
chosen = {"context_bias": 8, "part_size": 4, "instances": 15, "occlusion": 0, "reflection": 6, "clutter": 9}
rows = [
    (knob, value, w[chosen[knob]]) for knob in settings for value, w in zip(settings[knob], turned[knob], strict=True)
]
figure = figures.gallery(
    [item["image"] for _, _, item in rows],
    boxes=[item["boxes"] for _, _, item in rows],
    titles=[f"{knob} {value}" for knob, value, _ in rows],
    alt="Six rows of four pictures. Within a row one thing changes: the habitat behind an animal; the size of its "
    "telling part; one to four animals; how much of it foreground hides; a mirror image below it; more and more bright "
    "distractors.",
)
figure.set_size_inches(7.0, 12.0)
plt.show()

# %% [markdown]
# "Only the knob is turned" is a claim, so it is checked. Whatever is done to the five knobs other than
# `context_bias`, every picture keeps its class and its habitat. And when `part_size` changes, no pixel changes away
# from the animals.

# %%
for knob in list(settings)[1:]:
    base = turned[knob][0]
    assert all((w.labels == base.labels).all() and (w.habitats == base.habitats).all() for w in turned[knob])

a, b = turned["part_size"][0], turned["part_size"][-1]
changed = (a.images != b.images).any(-1)  # [N,H,W]
near = torch.nn.functional.max_pool2d(torch.from_numpy(a.masks | b.masks).float(), 9, 1, 4).numpy() > 0
print(f"changed pixels: {changed.mean():.3f} of all, {(changed & ~near).sum()} of them away from the animal")
assert not (changed & ~near).any()

# %% [markdown]
# `context_bias` is about *frequencies*, so one picture cannot show it. Move the slider: these are the same twelve
# pictures of red-crested herons, and what changes is how many of them stand in the heron's own marsh.

# %% tags=["nbval-ignore-output"]
frames = []
for bias in (0.0, 0.25, 0.5, 0.75, 1.0):
    herons = scenes.make(144, seed=6, size=96, context_bias=bias)
    herons = herons.images[herons.labels.numpy() == 0]  # [12,96,96,3]
    frames.append(np.concatenate([np.concatenate(row, axis=1) for row in herons.reshape(2, 6, 96, 96, 3)]))
figures.slider(
    frames, ["0", "0.25", "0.5", "0.75", "1"], title="context_bias",
    alt="Twelve pictures of a red-crested heron. At 0 they show all six habitats, at 1 only the marsh.",
)  # fmt: skip

# %% [markdown]
# ### How much does the landscape tell?
#
# Count habitats and species. Under `context_bias` $\beta$, a species is in its own habitat for certain in a share
# $\beta$ of its pictures, and anywhere in the rest. Each of the six habitats belongs to two of the twelve species.

# %%
tables = {}
for bias in (0.0, 0.5, 1.0):
    many = scenes.make(12000, seed=0, context_bias=bias)  # nothing is drawn until a picture is asked for
    tables[bias] = np.zeros((12, 6))
    np.add.at(tables[bias], (many.labels.numpy(), many.habitats), 1)
    tables[bias] /= tables[bias].sum()
print(np.round(12 * tables[0.5][:4], 2))  # of four species: share of their pictures in each habitat

# %% mystnb={"image": {"alt": "Three tables of twelve species against six habitats. At context bias 0 all cells are alike; at 0.5 one cell a row stands out; at 1 each row has a single filled cell."}}
figure, grid = plt.subplots(1, 3, figsize=(9.2, 4.6), sharey=True)
for axes, (bias, joint) in zip(grid, tables.items(), strict=True):
    drawn = axes.imshow(12 * joint, vmin=0, vmax=1, aspect="auto")
    axes.set_title(f"context_bias {bias:g}")
    axes.set_xticks(range(6), many.habitat_names, rotation=60, ha="right", fontsize=10)
    axes.grid(False)
grid[0].set_yticks(range(12), many.classes, fontsize=10)
figure.colorbar(drawn, label="share of the species' pictures")
plt.show()

# %% [markdown]
# One number says how much a look at the landscape tells about the species $S$: the mutual information with the
# habitat $H$, in bits,
#
# $$I(S; H) = \sum_{s,h} p(s,h) \log_2 \frac{p(s,h)}{p(s)\,p(h)}.$$
#
# It can be worked out by hand. All habitats are equally likely, so $I(S;H) = \log_2 6 - H(H \mid S)$, and given the
# species its own habitat has the probability $q = \beta + (1-\beta)/6$ and each of the five others $(1-\beta)/6$.


# %%
def by_hand(bias):
    other = (1 - bias) / 6
    p = np.array([bias + other] + 5 * [other])
    return np.log2(6) + sum(x * np.log2(x) for x in p if x > 0)


for bias, joint in tables.items():
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)  # [12,6]
    bits = (joint * np.log2(np.where(joint > 0, joint / independent, 1))).sum()
    best = joint.max(0).sum()  # name the likeliest species of each habitat
    print(
        f"context_bias {bias:3g}: {bits:.2f} bits counted, {by_hand(bias):.2f} by hand; landscape alone names {best:.2f}"
    )
    assert abs(bits - by_hand(bias)) < 0.03

# %% [markdown]
# At $\beta = 1$ a classifier that never finds the animal can still be right in half of the cases, where blind
# guessing is right once in twelve. Nothing in its training loss would complain.
#
# ### Why a known cause is worth having
#
# Suppose that a paper says: *our method is better because it is not misled by context.* On photographs you can
# compare two methods, but not two contexts. Pictures of herons in deserts are rare, and where they exist they also
# differ in season, camera and pose. So a better score has many possible reasons.
#
# Here you can take **the same pictures**, turn `context_bias` and nothing else, and watch. If the old method falls
# and the new one does not, context was the cause and the new method is a remedy for it. If both fall, or neither
# does, the paper's reason is not the reason, even if its method is better. Statisticians call this an *intervention*:
# to set a cause by hand, in place of watching what happens to come along with it. The chapters to come test their
# papers' claims this way.
#
# The price is plain too. This world is simple, and a method may behave differently on photographs. Therefore every
# chapter returns to them.

# %% [markdown]
# ## Real photographs
#
# Three sets of photographs serve throughout the book. `wsol data get NAME` fetches what may be fetched; the terms are
# at the end of this chapter.
#
# **Tiny-ImageNet** ([Le and Yang, 2015](../book/references.md)): 200 classes of ImageNet at 64 × 64 pixels, one box a
# picture.

# %% tags=["needs:tiny-imagenet"]
tiny = load("tiny-imagenet", "val")
seen = [tiny[i] for i in (43, 64, 85, 22, 107, 130, 1, 2012)]
figures.gallery(
    [item["image"] for item in seen], boxes=[item["boxes"] for item in seen],
    titles=[tiny.classes[item["label"]] for item in seen],
    alt="Eight small, blurred photographs from Tiny-ImageNet with their boxes; several boxes nearly fill the picture.",
)  # fmt: skip
plt.show()

# %% [markdown]
# *Photographs: Tiny-ImageNet, cut from ImageNet; shown at thumbnail size for teaching.* Sixty-four pixels are few,
# and many boxes fill much of the frame.
#
# **CUB-200-2011** ([Wah et al., 2011](../book/references.md)): 200 species of birds. The book's small cut, `cub-50`,
# has the first 50 of them.

# %% tags=["needs:cub"]
cub = load("cub-50", "test")
resized = load("cub-50", "test", size=160)
birds = [resized[i] for i in (3, 260, 345, 930)]
figures.gallery(
    [item["image"] for item in birds], boxes=[item["boxes"] for item in birds],
    titles=[cub.classes[item["label"]] for item in birds],
    alt="Four photographs of birds from CUB with their boxes; each bird stands near the middle of its picture.",
)  # fmt: skip
plt.show()

# %% [markdown]
# *Photographs: Caltech-UCSD Birds-200-2011; shown at thumbnail size for teaching.* Somebody aimed a camera at each of
# these birds, and it shows: the subject is in the middle.
#
# **ILSVRC** ([Russakovsky et al., 2015](../book/references.md)): ImageNet's thousand classes. The small cut,
# `ilsvrc-mini`, has 1,300 pictures of the official validation set, squashed to 227 × 227 pixels. Some have several
# boxes.

# %% tags=["needs:ilsvrc"]
ilsvrc = load("ilsvrc-mini", "test")
thumbnails = load("ilsvrc-mini", "test", size=160)
counts = [len(ilsvrc.boxes(i)) for i in range(len(ilsvrc))]
photos = [thumbnails[i] for i in (2, 121, counts.index(9), counts.index(3))]
figures.gallery(
    [item["image"] for item in photos], boxes=[item["boxes"] for item in photos],
    titles=[ilsvrc.classes[item["label"]] for item in photos],
    alt="Four squashed photographs from ILSVRC with their boxes; two have one box, one has nine and one has three.",
)  # fmt: skip
plt.show()

# %% [markdown]
# *Photographs: ILSVRC2012 validation set; shown at thumbnail size for teaching.*
#
# ### Where the boxes lie
#
# Divide every box by the size of its picture, and average the boxes of a data set as if each were a filled rectangle.
# The result says how likely each place is to be inside a box: the data set's own idea of where objects are, its
# *prior*.


# %%
def relative(data, last=0):
    """All boxes as fractions of their pictures, Float[M,4]; `last` is 1 where the ends belong to the box."""
    end = torch.tensor([0, 0, last, last])
    return torch.cat([(data.boxes(i) + end) / data.image_sizes[i].repeat(2) for i in range(len(data))])


def prior(boxes, cells=48):
    """How many of the relative boxes Float[M,4] hold each place: Float[cells,cells] in [0,1]."""
    x = (torch.arange(cells) + 0.5) / cells
    inside = [((x >= boxes[:, [k]]) & (x < boxes[:, [k + 2]])).float() for k in (0, 1)]  # two of [M,cells]
    return torch.einsum("mx,my->yx", *inside) / len(boxes)


# %% [markdown]
# A box in the left half fills the left half of the map, and nothing else. That pins the function before it is used.

# %%
half = prior(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), cells=4)
print(half)
assert half[:, :2].eq(1).all() and half[:, 2:].eq(0).all()

# %% tags=["needs:tiny-imagenet", "needs:cub", "needs:ilsvrc"]
sets = {"scenes": test, "tiny-imagenet": tiny, "cub-50": cub, "ilsvrc-mini": ilsvrc}
inclusive = {"tiny-imagenet": 1, "ilsvrc-mini": 1}  # see the traps below
spread = {name: relative(data, inclusive.get(name, 0)) for name, data in sets.items()}
priors = {name: prior(boxes) for name, boxes in spread.items()}

# %% mystnb={"image": {"alt": "Four heat maps of where boxes lie. That of scenes is flat and dim, low in the frame; those of the three photograph sets have a bright peak in the middle, the narrowest for birds."}} tags=["needs:tiny-imagenet", "needs:cub", "needs:ilsvrc"]
figure, grid = plt.subplots(1, 4, figsize=(9.6, 2.7))
for axes, (name, heat) in zip(grid, priors.items(), strict=True):
    drawn = axes.imshow(heat, vmin=0, vmax=1, extent=(0, 1, 1, 0))
    axes.set(title=name, xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.grid(False)
figure.colorbar(drawn, label="share of boxes")
plt.show()

# %% [markdown]
# Photographers put things in the middle. Nearly every box of CUB-50 holds the centre of its picture; the animals of
# `scenes` roam. Now the sizes.

# %% mystnb={"image": {"alt": "Cumulative curves of relative box area. Boxes of scenes are smallest and never exceed half of the picture; CUB is narrow around a third; Tiny-ImageNet and ILSVRC spread from tiny to the whole picture."}} tags=["needs:tiny-imagenet", "needs:cub", "needs:ilsvrc"]
figure, axes = plt.subplots(figsize=(7, 3.4))
areas = {name: (boxes[:, 2:] - boxes[:, :2]).prod(1).sort().values for name, boxes in spread.items()}
for name, area in areas.items():
    axes.plot(area, torch.linspace(0, 1, len(area)), label=name)
axes.set(xlabel="area of the box, as a share of the picture", ylabel="share of boxes below", xlim=(0, 1), ylim=(0, 1))
axes.legend()
plt.show()

# %% tags=["needs:tiny-imagenet", "needs:cub", "needs:ilsvrc"]
print(f"{'':15}{'boxes':>7}{'a picture':>11}{'median area':>13}{'centre inside':>15}{'spread of centres':>19}")
for name, boxes in spread.items():
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # [M,2]
    middle = ((boxes[:, :2] < 0.5) & (boxes[:, 2:] > 0.5)).all(1).float().mean()
    a_picture, area = len(boxes) / len(sets[name]), areas[name].median()
    print(f"{name:15}{len(boxes):7}{a_picture:11.2f}{area:13.2f}{middle:15.2f}{centres.std(0).mean():19.2f}")

# %% [markdown]
# "Centre inside" is the share of boxes that hold the middle of the picture. On CUB-50 it is 0.95, and a bird's centre
# strays by only 0.08 of the picture's side. In `scenes` it strays by 0.15, and the objects are smaller. ILSVRC-mini
# alone has more than one box a picture, 1.49 on average; among its many small boxes one is often big enough for a
# blind guess, as we shall see.
#
# ### Why blind guesses score so well
#
# Such priors are gifts to a method that does not look. Here is what the floors get on each set, under one and the
# same protocol.

# %% tags=["needs:tiny-imagenet", "needs:cub", "needs:ilsvrc"]
print(
    f"GT-known, wsolevaluation protocol, tau by cross-fit\n{'':15}{'n':>7}" + "".join(f"{name:>19}" for name in floors)
)
blind = {}
for name, data in sets.items():
    found = trivial_floors(protocol, [data.boxes(i) for i in range(len(data))], data.image_sizes)
    blind[name] = {floor: scores.gt_known for floor, scores in found.items()}
    print(f"{name:15}{len(data):7}" + "".join(f"{score:19.1f}" for score in blind[name].values()))

# %% tags=["needs:tiny-imagenet", "needs:cub", "needs:ilsvrc"]
measured = {"cub-50": (21.7, 57.8), "ilsvrc-mini": (48.6, 62.4), "tiny-imagenet": (50.2, 57.1)}  # once, by other code
for name, (full, centred) in measured.items():
    assert abs(blind[name]["full box"] - full) < 0.5 and abs(blind[name]["best centred box"] - centred) < 0.5
assert blind["scenes"]["best centred box"] < 25 < 55 < min(blind[name]["best centred box"] for name in measured)

# %% [markdown]
# On photographs, a box drawn blindly in the middle is right more often than not. The full box does well where objects
# are big, badly on CUB. Remember these numbers when a paper reports a few points above sixty. On `scenes` the same
# guess gets about 22 per cent, so there is room to see a method work. [Chapter 02](02_measuring.ipynb) makes the
# floors under the crops of published protocols.
#
# ## Three traps in the coordinates
#
# A box is four numbers, and what they mean differs between data sets. The library hands on the corners that each set
# publishes, and leaves the reading to the protocol. Three cases can be seen with the naked eye.
#
# **Ends that belong to the box.** In Tiny-ImageNet coordinates run from 0 to 63, both ends included. So a box can
# have $x_0 = x_1$: it is one pixel wide. Read as a half-open box it has no area, and even the true answer misses it.

# %% tags=["needs:tiny-imagenet"]
from wsol_lib.boxes import iou

corners = torch.cat([tiny.boxes(i) for i in range(len(tiny))])  # [10000,4]
thin = ((corners[:, 2] == corners[:, 0]) | (corners[:, 3] == corners[:, 1])).nonzero()[:, 0]
one = corners[thin[:1]]
print(f"{len(thin)} boxes of {len(corners)} are one pixel thin; the first is {one[0].int().tolist()}")
print(
    f"IoU with itself: {iou(one, one).item():.0f} read as half-open, {iou(one, one, inclusive=True).item():.0f} as inclusive"
)
assert len(thin) == 41 and corners.min() == 0 and corners.max() == 63

# %% tags=["needs:tiny-imagenet"]
inner = [int(i) for i in thin if corners[i].min() > 1 and corners[i].max() < 62]  # lines that are not at the rim
odd = [tiny[i] for i in (inner + thin.tolist())[:4]]
figures.gallery(
    [item["image"] for item in odd], boxes=[item["boxes"] for item in odd],
    titles=[tiny.classes[item["label"]] for item in odd],
    alt="Four small photographs whose boxes are one pixel wide or high, so that they appear as lines or dots.",
)  # fmt: skip
plt.show()

# %% [markdown]
# *Photographs: Tiny-ImageNet.* Many of them are plain annotation mistakes, and no method can be blamed for missing
# them. They stay in the count, because they are in everybody's count.
#
# **Boxes that leave the picture.** A few boxes of CUB reach over the edge. The dashed box is as published, the solid
# one as the library gives it: cut at the picture.

# %% tags=["needs:cub"]
name = "022.Chuck_will_Widow/Chuck_Will_Widow_0051_796991.jpg"
number = next(line.split()[0] for line in cub.source.lines("images.txt") if line.endswith(name))
row = next(line for line in cub.source.lines("bounding_boxes.txt") if line.split()[0] == number)
x, y, width, height = map(float, row.split()[1:])
as_published, i = torch.tensor([[x, y, x + width, y + height]]), cub.image_ids.index(name)
print(
    f"picture {cub.image_size(i)}; right edge as published {as_published[0, 2]:.1f}, as given {cub.boxes(i)[0, 2]:.1f}"
)
assert as_published[0, 2] > cub.image_size(i)[0] == cub.boxes(i)[0, 2]

# %% tags=["needs:cub"]
figure = figures.gallery(
    [cub[i]["image"]],
    boxes=[cub.boxes(i)],
    predicted=[as_published],
    alt="A bird on the ground; a dashed box reaches over the right edge of the photograph, a solid box ends at the edge.",
)
figure.set_size_inches(4.2, 3.2)
figure.axes[0].set_xlim(0, as_published[0, 2] + 4)
plt.show()

# %% [markdown]
# *Photograph: Caltech-UCSD Birds-200-2011.*
#
# **Pictures that were squashed.** The boxes of ILSVRC-mini are in pixels of the *original* photographs, but the
# pictures are 227 × 227. Width and height must be scaled by different factors. Forget that, and you get the dashed
# box.

# %% tags=["needs:ilsvrc"]
wide = [i for i in range(len(ilsvrc)) if ilsvrc.image_size(i) == (500, 333) and len(ilsvrc.boxes(i)) == 1][:2]
squashed = load("ilsvrc-mini", "test", size=227).subset(wide)
ratios = torch.tensor([227 / 500, 227 / 333] * 2)
figures.gallery(
    [squashed[i]["image"] for i in range(2)], boxes=[squashed[i]["boxes"] for i in range(2)],
    predicted=[ilsvrc.boxes(i) for i in wide],
    alt="Two squashed photographs; the solid boxes fit the objects, the dashed ones, left unscaled, lie too far to the "
    "right and too low.",
)  # fmt: skip
plt.show()
assert torch.allclose(squashed[0]["boxes"], ilsvrc.boxes(wide[0]) * ratios)

# %% [markdown]
# *Photographs: ILSVRC2012 validation set.*
#
# ## One frame moves everything
#
# Networks want pictures of one size, training wants random crops and mirror images, and boxes and masks must follow.
# If pictures and boxes were moved by two pieces of code, the two would drift apart one day, and nobody would see it.
# In this library one object, a `Frame`, moves them all: resize, then crop, then perhaps mirror.

# %%
from wsol_lib.data.geometry import Frame

i = 3
views = [Frame(64, 64), Frame(96, 64), Frame(96, 96, crop=(16, 24, 64, 64)), Frame(64, 64, flip=True)]
figures.gallery(
    [frame.image(few.picture(i)) for frame in views],
    boxes=[frame.boxes(few.boxes(i), few.image_size(i)) for frame in views],
    titles=["as it is", "stretched", "enlarged, cropped", "mirrored"],
    alt="One picture of an animal with its box four times: as it is, stretched sideways, enlarged and cropped, and mirrored. "
    "The box stays on the animal.",
)
plt.show()

# %% [markdown]
# Three properties must hold. To mirror twice is to do nothing. A box moved by a frame is the box of the mask moved by
# it. And IoU does not depend on the frame, as long as nothing is cut: a stretched picture is no easier.

# %%
picture, box, mask = few.picture(i), few.boxes(i), few.mask(i)
mirror = Frame(64, 64, flip=True)
assert torch.equal(mirror.boxes(mirror.boxes(box, (64, 64)), (64, 64)), box)
assert torch.equal(mirror.image(picture).flip(-1), Frame(64, 64).image(picture))

zoom = Frame(128, 192, crop=(8, 0, 120, 192), flip=True)
ys, xs = zoom.mask(mask).nonzero().unbind(1)
tight = torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]).float()
print(tight.tolist(), zoom.boxes(box, (64, 64)).tolist())
assert torch.equal(tight, zoom.boxes(box, (64, 64)))

# %%
from wsol_lib.boxes import iou

guess = box + torch.tensor([[4.0, -3.0, 9.0, 2.0]])
before, after = iou(box, guess), iou(zoom.boxes(box, (64, 64)), zoom.boxes(guess, (64, 64)))
plus_one = [iou(f.boxes(box, (64, 64)), f.boxes(guess, (64, 64)), inclusive=True).item() for f in (Frame(64, 64), zoom)]
print(f"half-open: {before.item():.4f} and {after.item():.4f}; with +1: {plus_one[0]:.4f} and {plus_one[1]:.4f}")
assert torch.allclose(before, after) and abs(plus_one[0] - plus_one[1]) > 1e-3

# %% [markdown]
# The last two numbers differ, and the first of them was lifted from below a half to the very edge of a hit. Published
# code mostly takes ends as inclusive and adds one to each width; then a score depends a little on the size to which
# pictures are resized, more for small objects. One more reason to name the protocol beside a score.
#
# ## Splits, and a leak that looks harmless
#
# Every data set has up to three splits.
#
# * **train**: pictures and labels. No boxes.
# * **val**: for choices such as a learning rate, an epoch, or the threshold $\tau$.
# * **test**: for one measurement at the end.
#
# Where should the boxes of *val* come from? This is less innocent than it looks. To choose $\tau$ by boxes on a
# validation set is already supervision by boxes, if only for a few parameters. [Choe et al.
# (2020)](../book/references.md) therefore made it explicit: they collected separate validation sets, CUBv2 and boxes
# for ImageNetV2, and everyone may use the same boxes for the same choices. And they asked what those boxes are worth
# if one *trains* on them. (MaxBoxAccV2 scores boxes and PxAP scores pixels; [chapter 02](02_measuring.ipynb) builds
# both, and the floors that belong beside them.)

# %% tags=["needs:wsol-metadata"]
from wsol_lib.data import load_metadata

for name, title in (("cub", "CUBv2"), ("ilsvrc", "ImageNetV2")):
    val, final = load_metadata(name, "val"), load_metadata(name, "test")
    print(f"{title}: {len(val.boxes)} pictures to choose on; test: {len(final.boxes)} pictures")
    assert not set(val.image_ids) & set(final.image_ids)

# %%
published = [  # of CAM with VGG16, InceptionV3 and ResNet50, and of a network trained on the validation boxes or masks
    ("ImageNet, MaxBoxAccV2", (60.0, 63.4, 63.7), 64.0),
    ("CUB, MaxBoxAccV2", (63.7, 56.7, 63.0), 80.2),
    ("OpenImages, PxAP", (58.3, 63.2, 58.5), 71.5),
]
print(f"{'Choe et al., 2020':24}{'CAM, labels only':>24}{'a few boxes':>14}")
for name, cam, few_boxes in published:
    print(f"{name:24}{'  '.join(map(str, cam)):>24}{few_boxes:14}")
    assert few_boxes > max(cam)

# %% [markdown]
# A network trained on the few boxes of the validation set, or on its masks for OpenImages, was as good as CAM on
# ImageNet and far better on the other two. (MaxBoxAccV2 is an upper bound, for its $\tau$ was chosen on the test
# pictures; PxAP chooses none.) If
# you have a few boxes, it may be wiser to train on them than to tune with them. [Murtaza et al.
# (2025)](../book/references.md) go on from there and choose without any true box. This book chooses by cross-fit, by
# Otsu's rule or not at all, and says which.
#
# A last warning, on overlap. Networks come pretrained on ImageNet, and the makers of CUB warn that some of its
# photographs are in ImageNet too. A backbone may therefore have seen a test bird, with a label but without a box. It
# has certainly seen the classes of Tiny-ImageNet and ILSVRC. Chapters that start from such weights say so; `scenes`
# has separate worlds for pretraining and for testing, whose numbers never meet.

# %%
splits = ("train", "val", "test")
drawn_in = {split: {image.tobytes() for image in load("scenes", split, n=200).images} for split in splits}
assert len(set.union(*drawn_in.values())) == sum(map(len, drawn_in.values()))
print({split: len(pictures) for split, pictures in drawn_in.items()}, "different pictures, none in two splits")

# %% [markdown]
# ## Where to get the data, and on what terms
#
# ```
# wsol data list                          what is on this machine, and the terms
# wsol data get tiny-imagenet             download, check the hash, unpack
# wsol data get cub --from ~/Downloads    the same from a file you already have
# wsol data verify cub                    decode every picture, name what is damaged
# ```
#
# The tool is careful by default. It checks a hash where the publisher gives one, goes on after an interruption, and
# never takes a half-written file for a whole one; an archive cannot write outside its folder. It fetches nothing that
# needs your consent: ILSVRC asks you to log in and agree to terms, and so you must. What may be done with a data set
# is written beside it.

# %%
from wsol_lib.data.fetch import manifest

for name in ("tiny-imagenet", "cub", "cub-v2", "ilsvrc", "imagenet-v2", "openimages30k"):
    print(f"{name:15} {manifest()[name].terms}")

# %% [markdown]
# The photographs of this chapter may not be passed on with your code. `scenes` may: it *is* code.
#
# ## A first classifier: it knows what
#
# Everything is in place to train on labels. A small convolutional network is enough: four layers that halve the
# picture each time, an average over all places, and a linear layer. As a `Localizer` it has a loss, cross-entropy on
# the label, and nothing else.

# %%
from torch import nn


class Classifier(Localizer):
    """It learns names. It has no answer to the question where."""

    def __init__(self, classes=12, widths=(3, 32, 64, 96, 128)):
        super().__init__()
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))

    def losses(self, batch):
        return {"classification": nn.functional.cross_entropy(self.network(batch["image"]), batch["label"])}


# %% [markdown]
# Two copies of it go to school. One sees a world in which species live everywhere, the other a world in which each
# keeps strictly to its own habitat. Both see 2,500 pictures and labels, eight times over.

# %%
from wsol_lib.recipe import Optimizer, Schedule, Training

adamw = Optimizer(name="adamw", lr=3e-3, weight_decay=0.05)
recipe = Training(epochs=8, batch_size=64, optimizer=adamw, schedule=Schedule(name="cosine", warmup=1))

# %% tags=["nbval-ignore-output"]
from wsol_lib.engine import fit

students = {}
for bias in (0.0, 1.0):
    torch.manual_seed(0)
    students[bias] = Classifier()
    losses = fit(students[bias], load("scenes", "train", n=2500, context_bias=bias), recipe, progress=False).losses()
    print(f"context_bias {bias:g}: loss {losses[0]:.2f} at first, {np.mean(losses[-20:]):.2f} in the end")

# %% [markdown]
# Now an exam in two worlds: the one in which each species stays at home, and one in which each stands in the habitat
# of another (`habitats="swapped"`). An answer can be right in the species, or at least in the family.

# %% tags=["nbval-ignore-output"]
exams = {name: load("scenes", "test", n=600, context_bias=1.0, habitats=name) for name in ("own", "swapped")}
species, family = {}, {}
for bias, student in students.items():
    for name, exam in exams.items():
        images = torch.from_numpy(exam.images).permute(0, 3, 1, 2) / 255  # [600,3,64,64]
        with torch.no_grad():
            answer = student.eval().network(images).argmax(1)  # [600]
        species[bias, name] = 100 * (answer == exam.labels).float().mean().item()
        family[bias, name] = 100 * (answer % 4 == exam.labels % 4).float().mean().item()
        shares = f"species {species[bias, name]:5.1f}, family {family[bias, name]:5.1f}"
        print(f"trained at context_bias {bias:g}, tested in {name:7} habitats: {shares} per cent right")

# %%
assert min(species[0.0, "own"], species[1.0, "own"]) > 85  # at home, both know their species
assert species[0.0, "swapped"] > 80  # one still does abroad
assert species[1.0, "swapped"] < 10 and family[1.0, "swapped"] > 85  # the other names the family and not the species

# %% [markdown]
# Where species stay at home, the two reports look alike. The swap tells the students apart. One still knows its
# animals. The other gets the family right and the species wrong, nearly without exception: it reads the family off
# the body and the species off the *landscape*, and shows no sign of having learnt the telling part, for in its world
# nothing ever asked for it. (One seed, 600 pictures an exam: a demonstration. Claims get five seeds.) Both know **what**, at home. From labels alone, nobody could see *from where in the picture* they
# know it.
#
# And if we ask?

# %%
try:
    students[0.0].localize(images[:1])
except NotImplementedError:
    print("no answer: it was never told where")

# %% [markdown]
# Yet the knowledge must be in there somewhere: the first student's answer depends on the animal, so the animal's
# place must matter to it. [Chapter 03](03_class_activation_maps.ipynb) reads that place off the network, without a
# single box. First, [chapter 02](02_measuring.ipynb) settles how to tell whether the answer is any good.
#
# ## Exercises
#
# ### Exercise 1: predict
#
# `scenes` is made with `instances=1`. A picture counts as a hit if the guess overlaps *any* of its boxes by half.
# Before you run anything: when `instances` goes from 1 to 4, does the floor of the best centred box go up, because
# there are more boxes to hit, or down? Then measure it with `trivial_floors`.
#
# <details><summary>Solution</summary>
#
# Down, to almost nothing. Four animals stand in the four quarters of the picture, so that a box in the middle touches
# all of them and covers none by half; and each animal is smaller. More boxes would help only if they were in the
# middle.
#
# ```python
# for n in (1, 2, 3, 4):
#     many = load("scenes", "test", instances=n)
#     boxes = [many.boxes(i) for i in range(len(many))]
#     found = trivial_floors(protocol, boxes, many.image_sizes)["best centred box"]
#     print(n, round(found.gt_known, 1))
# ```
#
# </details>
#
# ### Exercise 2: implement
#
# Write a `Localizer` called `MeanBox`. It may go through the oracle door: average the relative boxes of the
# *training* split, and answer with this box for every picture, as `Localization(boxes=[...])`. Does it beat the best
# centred box on `scenes`, and by how much?
#
# <details><summary>Solution</summary>
#
# ```python
# class MeanBox(Localizer):
#     uses_labels = False
#
#     def __init__(self, boxes):
#         super().__init__()
#         self.register_buffer("box", boxes.mean(0))  # [4], relative
#
#     def localize(self, images, labels=None):
#         box = self.box[None] * images.shape[-1]  # [1,4]
#         return Localization(boxes=[box] * len(images))
#
# oracle = load("scenes", "train", supervision="oracle")
# data = load("scenes", "test", view=protocol)
# print(evaluate(MeanBox(relative(oracle)), data, protocol, progress=False).compute().gt_known)
# ```
#
# It does not come above it at all: it stays *below* the best centred box, although it has seen two thousand boxes and
# knows that animals stand a little below the middle. The mean of the boxes is not the box that hits most often. True
# boxes differ in size and place, and a guess somewhat larger than their mean reaches half of the union more often;
# the size of the centred box was chosen to hit, and that is all its secret. Scale your box about its centre and
# watch. Two lessons: a floor is not made with little effort, and what is missing is not supervision but a look at the
# picture. Whatever `MeanBox` gets, it is an oracle, and must be labelled as one.
#
# </details>
#
# ### Exercise 3: investigate
#
# The second student was schooled at `context_bias=1`, an extreme. How strong must the link between species and
# habitat be before a classifier leans on it? Train at four values of `context_bias` between 0 and 1, plot the gap
# between the exams in own and in swapped habitats, and lay the mutual information $I(S;H)$ beside it. Then repeat it
# with `part_size=0.1`, and explain the change.
#
# <details><summary>Solution</summary>
#
# ```python
# gaps = []
# for bias in (0.0, 0.5, 0.9, 1.0):
#     torch.manual_seed(0)
#     student = Classifier()
#     fit(student, load("scenes", "train", n=2500, context_bias=bias), recipe, progress=False)
#     right = {}
#     for name, exam in exams.items():
#         images = torch.from_numpy(exam.images).permute(0, 3, 1, 2) / 255
#         with torch.no_grad():
#             right[name] = (student.eval().network(images).argmax(1) == exam.labels).float().mean()
#     gaps.append((bias, by_hand(bias), float(right["own"] - right["swapped"])))
# ```
#
# The gap opens early: it is plain at a half, where the landscape still misleads in four pictures of ten, and nearly
# complete at `0.9`. With the small part it is nearly complete at a half already. The animal is then harder to read
# than the landscape, and the loss takes what is cheap. As only `part_size` was turned, it is the cause.
#
# Look also at `context_bias=0`. With the small part there is a gap even there, and *no* leaning can explain it, for
# there was nothing to lean on. Some parts are simply harder to see before some landscapes. So compare with this
# baseline and not with zero. And one seed is not enough for a claim: repeat with five and draw the interval.
#
# </details>
#
# ## Summary
#
# 1. **The task.** In WSOL the learner sees pictures and labels and is asked for boxes. The training split refuses
#    boxes; the oracle door is open for upper bounds only. A method is a `Localizer` that answers with a
#    `Localization`, and even one that always points to the centre has a score: the floor.
# 2. **The causes.** In `scenes` a family shares its body, a small part tells the species, and each failure has its
#    own knob. Turning one knob on the same pictures is an intervention, which tests a paper's *reason* and not only
#    its score. At `context_bias=1`, landscape alone names half of the species.
# 3. **The data.** Photographs have objects in the middle, and often big ones: a blind centred box is a hit on
#    more than half of the pictures of Tiny-ImageNet, CUB-50 and ILSVRC-mini. Ends may be inclusive, boxes may leave the picture,
#    pictures may be squashed: one `Frame` moves picture, box and mask together, and the protocol says how they are
#    read. Validation with boxes is supervision too.
