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
# # Quickstart
#
# Somebody showed a network a million pictures and told it what is in each. Nobody ever told it *where*. Today you ask
# it where, and it points. A photograph goes in at the top of this page, and a box comes out a few cells below.
#
# ## Objectives
#
# About 5 minutes to read, a few seconds to run. It needs the installed packages and nothing else: no data set, no
# network connection, no GPU.
#
# 1. **Draw a map**: turn the insides of an ordinary classifier into a picture of where it sees a class.
# 2. **Draw a box**: turn the map into a box, and see which choice decides how big the box is.
# 3. **Doubt the box**: set its score beside that of a box which never looked at the picture.

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
import skimage.data
import torch
from PIL import Image
from skimage.filters import threshold_otsu

from wsol_lib import backbones, boxes, figures, maps, photo
from wsol_lib.data.geometry import to_tensor
from wsol_lib.methods.cam import CAM

figures.style()

# %% [markdown]
# ## The photograph
#
# This is Chelsea. (Photograph: Stéfan van der Walt, CC0, from scikit-image.)

# %%
chelsea = Image.fromarray(skimage.data.chelsea())
figure = figures.gallery(
    [to_tensor(chelsea)],
    alt="The head and shoulder of a striped cat that looks past us. It fills most of the photograph.",
)
figure.set_size_inches(4.5, 3.0)
plt.show()

# %% [markdown]
# ## What is in it?
#
# The network is an EfficientNet-Lite0, a small classifier of the kind that runs on a phone. It learnt the thousand
# classes of ImageNet from pictures with one label each. We let it see the photograph at about its own shape, 224
# pixels high.

# %%
network = backbones.create("tf_efficientnet_lite0", weights="lite0-pip").eval()
names = [name.split(",")[0] for name in backbones.imagenet_classes()]
weight, bias = network.head()  # [1000,1280], [1000]

frame = photo.keep_aspect(chelsea.size)  # 352 x 224
image = frame.image(chelsea)  # [3,224,352]
with torch.no_grad():
    features = network(image[None])["last"]  # [1,1280,7,11]
logits = features.mean((2, 3)) @ weight.T + bias  # [1,1000]
best = logits.softmax(1)[0].topk(5)  # [5]
for p, k in zip(best.values, best.indices, strict=True):
    print(f"{100 * p:4.1f} %  {names[k]}")

# %% [markdown]
# Three cats and a lynx: it is sure of a cat, if not of the breed. And a plastic bag, for luck. (Squeezed into the
# square of 224 pixels that it was trained on, it would be surer, and would draw a worse box: exercise 3.)
#
# ## Where is it?
#
# Look at how the last cell got its logits. The network ends in 1280 small pictures, its **features**, of 7 by 11
# cells each. The classifier averages each over all cells and weighs the averages. So let us weigh first and leave the
# average out: what remains is a picture of how much each cell speaks for the class. That is a **class activation
# map**, or CAM ([Zhou et al., 2016](../book/references.md)), and it takes three lines.

# %%
egyptian_cat = names.index("Egyptian cat")
weights_of_cat = weight[egyptian_cat]  # [1280]
cam = (features[0] * weights_of_cat[:, None, None]).sum(0)  # [7,11]

print(cam.shape)
logit = cam.mean() + bias[egyptian_cat]
assert torch.isclose(logit, logits[0, egyptian_cat], atol=1e-4)

# %% [markdown]
# The assertion says that nothing was made up: average the map, add the bias, and the logit is back. The map *is* the
# answer "Egyptian cat", spread out over the picture.
#
# It has only 77 cells. To lay it over the photograph we resize it smoothly, then stretch it so that its lowest value
# is 0 and its highest 1.

# %%
size = (224, 352)
cells = maps.resize(cam[None], size, mode="nearest-exact")[0]  # [224,352]
score_map = maps.normalize(maps.resize(cam[None], size))[0]  # [224,352] in [0,1]
figure = figures.gallery(
    [image, image],
    maps=[cells, score_map],
    titles=["7 x 11 cells", "resized"],
    alt="Twice the cat in grey with its map in colour, as coarse cells and smooth. It is bright on the "
    "cat's face and ear, dark on the background at the right.",
)
figure.set_size_inches(8.0, 2.9)
plt.show()

# %% [markdown]
# ## From map to box
#
# A box needs a decision: from which value on does a pixel belong to the cat? **Otsu's rule** splits the values into a
# low and a high group that are each as uniform as possible. It looks at this map alone; no true box helped to choose
# the threshold. Then we take the largest connected piece above it, and the box around that piece.

# %%
tau = float(threshold_otsu(score_map.numpy()))
seen = boxes.box_at(score_map, tau)  # [1,4], pixels of the 352 x 224 picture
scale = torch.tensor([chelsea.width / 352, chelsea.height / 224]).repeat(2)  # [4]
box = seen * scale  # [1,4], pixels of the photograph
print(f"tau {tau:.2f}, box {box[0].round().int().tolist()}")

# %% [markdown]
# Was that right? To say so we need a true box. There is none for this picture, so the author of this page drew one
# **by eye**: all that is cat, without the whiskers. It is one person's opinion of one picture, and it was not used
# for anything above.

# %%
by_eye = torch.tensor([[0.0, 0.0, 400.0, 300.0]])
figure = figures.gallery(
    [to_tensor(chelsea)],
    boxes=[by_eye],
    predicted=[box],
    alt="The cat with two boxes that nearly agree: solid white by eye, dashed orange from the map. "
    "The dashed one starts a little further right and ends a little further right.",
)
figure.set_size_inches(5.4, 3.6)
plt.show()

# %% [markdown]
# Solid white is the truth, dashed orange the prediction; this book keeps to that. They look alike, and **intersection
# over union** (IoU) puts a number on it: the area that both cover, divided by the area that either covers, so 1 for
# the same box and 0 for boxes apart.
#
# Before you read the number, ask what a box would get that **never looks at the picture**. Here are two: the whole
# picture, and a centred box of 0.8 times its width and height.

# %%
width, height = chelsea.size
whole = torch.tensor([[0.0, 0.0, width, height]])
centred = whole * 0.8 + 0.1 * torch.tensor([width, height, width, height])
overlap = boxes.iou(torch.cat([box, whole, centred]), by_eye)[:, 0]  # [3]
tried = ["from the map", "whole picture", "centred, 0.8"]
for name, value in zip(tried, overlap, strict=True):
    print(f"{name:14} IoU {value:.2f}")
assert 0 < overlap[0] - overlap[1] < 0.05 and overlap[1] > overlap[2]

# %% [markdown]
# That is sobering. The map's box is good, and a box drawn with closed eyes is nearly as good, because the cat fills
# the photograph. Such a blank box is called the **floor**, and every score in this book stands beside its floor. This
# picture cannot tell us whether the network knows where the cat is. We need a harder question.
#
# ## A harder question
#
# Let us put a cup of coffee under the cat (photograph: Rachel Michetti, CC0) and ask the same network two things
# about the same picture. A blank box has only one answer to both. First, the steps above are one function of the
# library, and it gives the same box.

# %%
localizer = CAM.pretrained(network)
classes = backbones.imagenet_classes()
finding = photo.locate(localizer, classes, chelsea)
assert finding.name == "Egyptian cat"
assert torch.allclose(finding.box, box[0], atol=0.01)
assert torch.allclose(finding.score_map, score_map, atol=1e-4)

# %%
coffee = Image.fromarray(skimage.data.coffee()).resize(chelsea.size)
both = Image.fromarray(np.vstack([chelsea, coffee]))  # 451 x 600
asked = ["Egyptian cat", "espresso"]
wanted = [names.index(name) for name in asked]
found = [photo.locate(localizer, classes, both, wanted=k) for k in wanted]

# %% [markdown]
# And here are its two answers, beside two boxes drawn by eye again: the cat as before, and the cup without its saucer.

# %%
truth = [by_eye, torch.tensor([[130.0, 313.0, 307.0, 531.0]])]  # by eye
figure = figures.gallery(
    [to_tensor(both)] * 2,
    maps=[answer.score_map for answer in found],
    boxes=truth,
    predicted=[answer.box[None] for answer in found],
    titles=[f"{name}?" for name in asked],
    alt="A cat above a cup of coffee, twice. Asked for the cat, the map is bright on the cat's face and "
    "the dashed box lies inside the cat; asked for espresso, map and box are on the cup.",
)
figure.set_size_inches(7.0, 5.0)
plt.show()

# %% [markdown]
# One network, one picture, one set of features. Only the row of `weight` differs, and the map moves from the cat to
# the cup. Neither box is tight, but each is on the right thing.

# %%
blank = torch.tensor([[0.0, 0.0, 451.0, 600.0], [45.1, 60.0, 405.9, 540.0]])
print(" " * 12, "  map  whole  centred")
for name, answer, true in zip(asked, found, truth, strict=True):
    ious = boxes.iou(torch.cat([answer.box[None], blank]), true)[:, 0]  # [3]
    print(f"{name:12} {ious[0]:5.2f} {ious[1]:6.2f} {ious[2]:8.2f}")
    assert ious[0] > ious[1:].max() + 0.1

# %% [markdown]
# Now the map beats both blank boxes on both questions. Two questions about one collage are still an anecdote. Chapter
# [01](01_task_and_data.ipynb) brings data sets, chapter [02](02_measuring.ipynb) learns to measure on them, and chapter
# [03](03_class_activation_maps.ipynb) finds that on photographs of birds the map of this very network falls *below* the floor.
#
# ## Who decides the size of the box?
#
# Not the network. Move the slider: the map stays, and the threshold $\tau$ makes the box what you like.

# %% tags=["nbval-ignore-output"]
taus = [t / 10 for t in range(1, 10)]
boxes_at = [boxes.box_at(score_map, t) * scale for t in taus]
frames, labels = [], []
for t, b in zip(taus, boxes_at, strict=True):
    shown = {"maps": [score_map], "boxes": [by_eye], "predicted": [b]}
    frames.append(figures.gallery([to_tensor(chelsea)], **shown, alt="see the slider"))
    frames[-1].set_size_inches(5.4, 3.6)
    labels.append(f"{t:.1f}, IoU {boxes.iou(b, by_eye).item():.2f}")
alt = "The cat's map with the box by eye and the box at a threshold."
figures.slider(frames, labels, title="threshold", alt=alt)

# %%
ious = torch.stack([boxes.iou(b, by_eye)[0, 0] for b in boxes_at])  # [9]
assert ious.max() > 0.85 and ious[-1] < 0.1

# %% [markdown]
# From all of the cat to a spot on it, with one and the same map. At 0.3 the box would score 0.96, where Otsu's rule
# got 0.90. But to know that, you must look at the true box, and whoever may look can make a method seem better than
# it is. Otsu's rule did not look. What that choice is worth on thousands of pictures is the business of chapter
# [02](02_measuring.ipynb).
#
# ## What was the network told?
#
# | it was told | it was not told |
# |---|---|
# | one label for each picture of ImageNet's training set | any box, mask or point, in training or for the threshold |
# | that cats and cups are different things | how big a cat is, or that it is one thing with edges |
#
# Chelsea is no picture of ImageNet's, but thousands of other cats are: the network knows cats very well. A map shows
# what *helped the answer*. If whiskers are enough, only whiskers light up; if cats always sat on sofas, the sofa
# would light up too. The methods of this book try to mend that, and each chapter tests whether they do.
#
# ## Your own photograph
#
# The whole page is one command in a terminal. It prints the five likeliest names and the box, and writes the figure
# beside the photograph:
#
# ```
# wsol predict photo.jpg
# wsol predict photo.jpg --class espresso
# wsol predict photo.jpg --json
# ```
#
# ## Exercises
#
# ### Exercise 1: predict
#
# Ask for the *espresso* in the photograph of Chelsea, where there is none. What will the map look like, and the box?
# Decide, then run `photo.locate(localizer, classes, chelsea, wanted=names.index("espresso"))`.
#
# <details>
# <summary>Solution</summary>
#
# There is always a box. The map is stretched from 0 to 1 however faint it was, so even nonsense has a maximum. Here
# the map is bright nearly everywhere, and the box becomes the whole photograph. Its IoU with the cat is that of the
# floor, so a good IoU is no proof of a good map. `finding.top` knows better: espresso is not among the likely names.
#
# </details>
#
# ### Exercise 2: implement
#
# Draw a map that knows no class: the mean of all features. Find its box in Chelsea's photograph, then in the collage.
# For which of the two do you need a class?
#
# <details>
# <summary>Solution</summary>
#
# ```python
# def class_free(picture):
#     seen = photo.keep_aspect(picture.size)
#     with torch.no_grad():
#         mean = network(seen.image(picture)[None])["last"].mean(1)  # [1,h,w]
#     unit = maps.normalize(maps.resize(mean, (seen.height, seen.width)))[0]
#     box = boxes.box_at(unit, float(threshold_otsu(unit.numpy())))
#     scale = [picture.width / seen.width, picture.height / seen.height]
#     return box * torch.tensor(scale).repeat(2)
#
# print(class_free(chelsea), class_free(both))
# ```
#
# On Chelsea's photograph you hardly need one: the box is smaller than before, but it is on the cat. In the collage
# you do: the box goes to the cup, whoever asks. The mean knows that *something* is there, not which thing you meant.
# (Where each picture has only one thing in it, a map without a class is a strong rival. Chapter
# [03](03_class_activation_maps.ipynb) measures it.)
#
# </details>
#
# ### Exercise 3: investigate
#
# Show the network the photograph as a square of 224 pixels, and again at 448 by 288 and 672 by 448. What happens to
# the probability, the map and the IoU? Which size would you choose, and what would you need to choose it honestly?
#
# <details>
# <summary>Solution</summary>
#
# ```python
# from wsol_lib.data.geometry import Frame
#
# for size in [(224, 224), (352, 224), (448, 288), (672, 448)]:
#     shape = Frame(*size)
#     finding = photo.locate(localizer, classes, chelsea, frame=lambda _: shape)
#     print(size, finding.top[0], boxes.iou(finding.box[None], by_eye).item())
# ```
#
# In the square the network is surest, yet the box shrinks to the face. At 448 by 288 the box is better than on this
# page, at a third of the square's probability. At 672 by 448 the map has so many cells that it falls
# apart: the largest piece is a part of the cat. So the confidence of a classifier is no guide to its box. To choose
# honestly you need other pictures with true boxes, set aside for choosing and named (a validation set), or a size
# fixed beforehand. This page took the default of `wsol predict`, and not the best of the four.
#
# </details>
#
# ## Summary
#
# 1. **Draw a map.** A classifier that averages its features can leave the average out: features times the weights of
#    a class, summed over channels. Its mean plus the bias is the logit.
# 2. **Draw a box.** Resize, stretch to 0 and 1, threshold, largest piece, box. The threshold decides the size, and
#    Otsu's rule chooses it without any true box.
# 3. **Doubt the box.** On Chelsea a blank box did almost as well; on the collage it did not. A score without its
#    floor says little.
#
# Next: [the task and the data](01_task_and_data.ipynb).
