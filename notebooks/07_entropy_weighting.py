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
# # Entropy weighting
#
# So far a map had to become a box. Now a network gives the box itself. It learns from *pseudo boxes*. A method that has seen no box draws them, so some are wrong. Two troubles follow. A network that has one box to give cannot mark two animals. And a network that
# believes every box learns the wrong ones too. The answer to the first is a *detector* of one class, "object". The answer to the second is to ask the detector for **certainty**: low entropy of its own answers, above all where it
# hesitates. The method is WEND (Weighted ENtropy Detector; [references](../book/references.md)). We found its equations 2 and 3 printed nowhere. What stands here is rebuilt from the text; beside each part we say how sure we are.
#
# ## Objectives
#
# About 70 minutes to read, two minutes to run on two cores. It needs no download; the photographs come from stored results.
#
# 1. **Make pseudo boxes** by DDT and by C2AM, without any box, and say what it is worth to pick the threshold by true boxes.
# 2. **Build the detector**: why one regressed box fails on two objects, what a binary-class detector asks instead, and what the weighted entropy adds, by values and by gradients.
# 3. **Judge the gain**: with wrong boxes put in on purpose, with one, two and four animals, and on photographs.

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

from wsol_lib import backbones, boxes, data, engine, figures, grid, pseudo
from wsol_lib.data import views
from wsol_lib.methods import c2am, ddt, wend

figures.style()

# %% [markdown]
# ## One box for two animals
#
# Say a picture holds two objects of the same size, and its pseudo box lies on the one or on the other, as it happens. What should a network answer that has *one* box to give and pays squared errors? Their mean:

# %%
left, right = torch.tensor([10.0, 20, 30, 40]), torch.tensor([40.0, 20, 60, 40])
answers = torch.stack([(1 - t) * left + t * right for t in torch.linspace(0, 1, 101)])  # [101,4]
price = ((answers - left).square() + (answers - right).square()).mean(1) / 2
best = answers[price.argmin()]
overlaps = boxes.iou(best[None], torch.stack([left, right]))
print("cheapest box:", best.tolist(), "  IoU with either object:", np.round(overlaps[0].numpy(), 2))
assert torch.equal(best, (left + right) / 2) and overlaps.max() < 0.2

# %% [markdown]
# The cheapest answer lies *between* the two and hits neither. No training mends that: it is what was asked.
#
# PSOL's **single-class regression** (SCR) is such a network. Features are averaged over the picture, two linear layers give $(x, y, w, h)$ as parts of its sides, and the loss is the squared error to the pseudo box. The recipe `scenes/scr` trains one, here on 1,000 pictures with two animals each. Its pseudo boxes are made by us, from true ones, so that we know how good they are: one a picture, that of the larger animal, and three in ten of them moved to a random place.

# %% tags=["nbval-ignore-output"]
folder = tempfile.TemporaryDirectory()
small = ["data.options.n=1000", "evaluate.options.n=300", "stages.detector.batch_size=32"]
runs = {"SCR": engine.run(engine.load_recipe("scenes/scr", small), folder.name, progress=False)}
scenes, rule = engine.evaluation_data(runs["SCR"].recipe)
shown = torch.stack([scenes[i]["image"] for i in range(4)])
one_box = runs["SCR"].localizer.localize(shown).boxes
print(f"GT-known of the one box: {runs['SCR'].evaluator.compute().gt_known:.1f}, n = {len(scenes)}")

# %% tags=["nbval-ignore-output"]
figures.gallery(
    shown, boxes=[scenes.boxes(i) for i in range(4)], predicted=one_box,
    alt="Four scenes with two animals each, and true boxes around both. The one dashed box of the regressor lies between the animals.",
)  # fmt: skip
plt.show()

# %%
assert runs["SCR"].evaluator.compute().gt_known < 40

# %% [markdown]
# Two things pull at this box. The larger animal of a pair is not always plain to see, so the box goes between the two. And three in ten boxes lie elsewhere: a squared error answers with their mean, which is dragged to the middle of the picture. The tables below take the two apart.
#
# Where do pseudo boxes come from, and who can learn from them?

# %% [markdown]
# ## Boxes from what a class has in common
#
# Before any detector there must be boxes to learn from. **DDT**, deep descriptor transforming, draws them without training. Its question: in which direction do the features of the pictures *of one class* vary most? A class shares its animal and changes its ground, so the strongest direction should be "animal or not". That direction is called the first *principal component*: the eigenvector of the covariance with the largest eigenvalue.
#
# First a trunk that knows something: the classifier of chapter 03, trained briefly. Then the descriptors of one species, a vector of $C$ channels at each place of each picture.

# %%
train = data.load("scenes", "train", size=64, n=1000)
recipe = engine.load_recipe("scenes/c2am", ["data.options.n=1000", "evaluate.options.n=300", "stages.cam.epochs=6",
                                            "stages.cam.batch_size=32", "stages.c2am.batch_size=32"])  # fmt: skip
trained = engine.run(recipe, folder.name, progress=False)
cam, contrast = trained.stages["cam"], trained.stages["c2am"]

# %% tags=["nbval-ignore-output"]
ones = (train.labels == 0).nonzero()[:, 0].tolist()  # the pictures of the first species
pictures = torch.stack([train[i]["image"] for i in ones])
with torch.no_grad():
    features = cam.network(pictures)["last"]  # [N,C,h,w]
x = features.permute(0, 2, 3, 1).flatten(0, 2).double()  # [Nhw,C]
mean = x.mean(0)
values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
v = vectors[:, -1]  # [C], of the largest eigenvalue
print(f"{len(ones)} pictures, {len(x)} descriptors; {100 * values[-1] / values.sum():.0f} % of the variance is along v")

# %% [markdown]
# An eigenvector has no sign: $v$ and $-v$ are equally good, and one of the two maps lights up the ground. Libraries flip it by some convention that knows nothing of animals. So the rule must be *said*. Ours: the loadings of $v$ add up to a positive number. After a ReLU a channel is near zero where it sees nothing of its own, so "more of everything" is more likely a thing than a meadow.

# %%
v = v * v.sum().sign()
by_hand = ((x - mean) @ v).view(len(ones), *features.shape[-2:]).float()  # [N,h,w]
assert torch.allclose(by_hand, pseudo.ddt_maps(features), atol=1e-3)
assert abs(by_hand.mean()) < 1e-4

# %% [markdown]
# The map is positive where a place has more of that direction than the average place. PSOL takes exactly that as threshold, zero, and boxes the largest piece.

# %%
drawn = pseudo.boxes_from_maps(by_hand[:8], train.image_sizes[ones[:8]], "zero")
figures.gallery(
    pictures[:8], maps=by_hand[:8], predicted=drawn,
    alt="Eight birds of one species with DDT's map, warm on head and crest, and the box of what lies above zero, which holds most of each bird and some ground.",
)  # fmt: skip
plt.show()

# %% [markdown]
# ## Boxes by contrast
#
# **C2AM** asks for even less: no label at all. A small head says of each place how much it is foreground, $P \in (0,1)$. (Elsewhere in this book $P$ counts places; here it is the authors' letter.) A picture has then two descriptors: its features summed with the weights $P$, and with $1-P$, both divided by $hw$. Over a batch three things are asked: foregrounds differ from backgrounds, foregrounds are alike, backgrounds are alike. The first:

# %%
torch.manual_seed(0)
some, P = torch.rand(4, 6, 5, 5) ** 6, torch.rand(4, 5, 5)  # [B,C,h,w], [B,h,w]
f = (some * P[:, None]).sum((2, 3)) / 25  # [B,C], divided by h w, not by the sum of P
b = (some * (1 - P)[:, None]).sum((2, 3)) / 25
s = F.cosine_similarity(b[:, None], f[None], dim=2).clamp(0.0005, 0.9995)  # [B,B]
negative = -(1 - s).log().mean()
terms = c2am.contrast(some, P)
assert torch.isclose(terms["negative"], negative, atol=1e-5)
print(f"foregrounds differ from backgrounds: {negative:.3f}")

# %% [markdown]
# The other two look within the foregrounds and within the backgrounds. There alike pictures should count more, for two birds may well have different grounds: a pair weighs $e^{-\alpha r}$, where $r$ is its rank by likeness, the nearest 0. And what if we exchange foreground and background?


# %%
def alike(descriptors, alpha=0.25):
    """How unlike the descriptors Float[B,C] are, the nearest pairs first."""
    s = F.cosine_similarity(descriptors[:, None], descriptors[None], dim=2).clamp(0.0005, 0.9995)  # [B,B]
    rank = s.argsort(1, descending=True).argsort(1) - 1  # [B,B], each with itself -1
    return -(s.log() * torch.exp(-alpha * rank)).mean()


assert torch.isclose(alike(f), terms["foreground"], atol=1e-5)
assert torch.isclose(alike(b), terms["background"], atol=1e-5)
swapped = c2am.contrast(some, 1 - P)
print({name: round(term.item(), 3) for name, term in terms.items()})
print({name: round(term.item(), 3) for name, term in swapped.items()})

# %% [markdown]
# The second line is the same loss with foreground and background exchanged: the sum is the same. **Nothing in the loss tells animal from ground.** It needs a rule again, and the authors look at the border: what is mostly foreground at the border of the picture is taken to be background. Their code asks the first picture of the last batch. Ours lets every training picture vote.

# %%
assert torch.isclose(sum(terms.values()), sum(swapped.values()), atol=1e-5)
total, count = contrast.border.tolist()
print(f"foreground on the border, over {count:.0f} looks: {total / count:.2f}   turned over: {total > count / 2}")

# %% [markdown]
# How good are the maps, on 300 test pictures with one animal? Beside CAM, whose network both use, here is C2AM on a frozen network with random weights: then no label has been used *at all*. (WEND's table 7 starts from self-supervised networks. We have none.)

# %% tags=["nbval-ignore-output"]
blank = engine.load_recipe("scenes/c2am", ["data.options.n=1000", "evaluate.options.n=300", "stages.cam.epochs=0",
                                           "stages.c2am.batch_size=32"])  # fmt: skip
unlabelled = engine.run(blank, folder.name, progress=False)
single, frame = engine.evaluation_data(recipe)
ddt_method = ddt.DDT.from_data(train, classifier=cam)
on_test = {"CAM": engine.evaluate(cam, single, frame, progress=False),
           "DDT": engine.evaluate(ddt_method, single, frame, progress=False),
           "C2AM": trained.evaluator, "C2AM, no label": unlabelled.evaluator}  # fmt: skip
for title, judge in on_test.items():
    low, high = judge.interval("gt_known")
    print(f"{title:16} GT-known {judge.compute().gt_known:5.1f} [{low:.1f}, {high:.1f}]")
floor = trained.results["floors"]["best centred box"]["gt_known"]
print(f"{'best centred box':16} GT-known {floor:5.1f}")

# %%
known = {title: judge.compute().gt_known for title, judge in on_test.items()}
assert known["C2AM"] > floor and known["DDT"] > floor and known["C2AM, no label"] < floor

# %% [markdown]
# C2AM and DDT are at least as good as the CAM they grew from, as far as 300 pictures tell. (All thresholds here are cross-fitted.) Without any label C2AM's head is lost: it sorts features, and random features say nothing of animals.

# %% [markdown]
# ## What a threshold may know
#
# A map becomes a box at a threshold. The authors of C2AM try twenty and take the one whose boxes hit most on the *test* pictures; with it they draw the training boxes. So true boxes get into a method that is said to use none. What is that worth? We open the true boxes, to look and for nothing else: CorLoc, the share of training pictures whose box is right, on birds (CUB-50) at each threshold. Two stored runs, DDT and C2AM on a frozen EfficientNet-Lite0:
#
# ```
# python -m tools.pseudo_boxes cub/c2am-lite0 --beside cub/ddt-lite0 --to results/entropy_pseudo_cub.json
# python -m tools.pseudo_boxes cub/ddt-lite0 --to results/entropy_pseudo_cub.json
# ```

# %%
looked = {c["name"].split("/")[1]: c["scores"] for c in grid.read("entropy_pseudo_cub")["cells"].values()}
levels = [f"{step / 20:g}" for step in range(2, 19)]
for name, rates in looked.items():
    leak = max(levels, key=lambda level: rates[f"test {level}"])
    rules = {"Otsu": "otsu", f"best on test, {leak}": leak}
    if f"agreement {leak}" in rates:
        agreed = max(levels, key=lambda level: rates[f"agreement {level}"])
        rules[f"agrees most with DDT, {agreed}"] = agreed
    else:
        rules["above zero"] = "zero"
    for title, level in rules.items():
        print(f"{name:11} {title:26} train {rates[f'train {level}']:5.1f}   test {rates[f'test {level}']:5.1f}")

# %%
c2am_looked, ddt_looked = looked["c2am-lite0"], looked["ddt-lite0"]
leak, agreed = (max(levels, key=lambda level: c2am_looked[f"{what} {level}"]) for what in ("test", "agreement"))
assert c2am_looked[f"train {leak}"] > c2am_looked["train otsu"] + 20
assert c2am_looked[f"train {agreed}"] > c2am_looked[f"train {leak}"] - 2
assert ddt_looked["train zero"] > 75

# %% [markdown]
# - For C2AM the test boxes are worth a great deal: 26 points of right boxes above **Otsu's** threshold, which looks at no box. (Its head keeps half of all places foreground. Half a picture is more than a bird, so Otsu's boxes are too large.)
# - One can do without here. Take the threshold at which C2AM's boxes *agree most with DDT's* on the training pictures. No box is asked, and as many boxes are right. This works because DDT's boxes are good on birds; a bad partner would choose badly.
# - DDT brings its own threshold, zero, which serves birds well.
#
# So we draw C2AM's boxes at 0.7, as in the recipe. One thing must be said: five settings of C2AM (stages, rates) were tried on these birds with their test scores in sight. So its score there is a little too good, and we cannot say by how much.

# %% [markdown]
# ## Ask every place instead
#
# A **detector** asks at each place of the feature map: *does an object lie here, and how far away are its edges?* So it may answer as often as there are objects. A usual detector also asks *which* class, 200 times over for birds. WEND leaves that to a classifier and asks one thing,
# object or not: a **binary-class detector** (BCD). Ours stands on the map of the trunk as it is, 8 by 8 places for 64 pixels, and has the form of FCOS.
#
# What is a place told? Look at the boxes first that we trained the regressor with. To know which are wrong we made them from true ones. The view `DisturbedBoxes` does that, and only for a data set that was loaded with `supervision="oracle"`.

# %%
two = data.load("scenes", "train", size=64, n=1000, instances=2, supervision="oracle")
noisy = views.DisturbedBoxes(two, noise=0.3)
items = [noisy[i] for i in range(16)]
figures.gallery(
    [item["image"] for item in items[:8]],
    boxes=[two.boxes(i) for i in range(8)],
    predicted=[item["pseudo_boxes"] for item in items[:8]],
    alt="Eight scenes with two animals each. Solid boxes are around both; a dashed box is around the larger animal or, in some, at a place with no animal.",
)  # fmt: skip
plt.show()

# %% [markdown]
# Dashed boxes are what is taught. Some lie on nothing, and the second animal has none at all. (A box at a random place may still hit an animal, so a little less than three in ten are wrong.)

# %%
hits = [boxes.iou(noisy.pseudo_boxes[i], two.boxes(i)).max() >= 0.5 for i in range(len(two))]
print(f"{100 * np.mean(hits):.1f} % of the {len(two)} boxes hit one of the two animals")
assert 0.68 < np.mean(hits) < 0.78

# %% [markdown]
# A place is foreground if it lies in the pseudo box and near its middle, within 1.5 strides. All others are background, those on the second animal too.

# %%
batch = data.collate(items)
centre = (torch.arange(8) + 0.5) * 8
places = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).view(-1, 2)  # [64,2], x and y


def near_middle(objects):
    """Which of the 64 places lie in one of the boxes Float[N,4] and near its middle: Bool[64]."""
    box = objects[:, None]  # [N,1,4]
    inside = ((places > box[..., :2]) & (places < box[..., 2:])).all(-1)  # [N,64]
    near = ((places - (box[..., :2] + box[..., 2:]) / 2).abs() < 1.5 * 8).all(-1)
    return (inside & near).any(0)


wanted = torch.stack([near_middle(taught) for taught in batch["pseudo_boxes"]]).float()  # p*, [B,64]
print(f"of 64 places {wanted.sum(1).mean():.1f} are foreground")

# %% [markdown]
# ## Certainty as a teacher
#
# The detector says of each place with which probability $p$ it lies on an object. Where a pseudo box is wrong, the supervised loss teaches a wrong answer; where a second animal has no box, it teaches "background". The detector has seen many right boxes as well. So it will often *hesitate* there (answer near one half).
# WEND adds a loss that dislikes hesitation, the **entropy** of its own answer (equation 2):
#
# $$E(p) = -p \ln p - (1-p) \ln (1-p)$$

# %%
p = torch.tensor([0.95, 0.6, 0.4, 0.05], requires_grad=True)  # [N]
entropy = -p * p.log() - (1 - p) * (1 - p).log()  # eq. 2
(slope,) = torch.autograd.grad(entropy.sum(), p)
print("E(p)        ", np.round(entropy.detach().numpy(), 4), "  mean", round(entropy.mean().item(), 4))
print("dE/dp       ", np.round(slope.numpy(), 4))
assert torch.allclose(entropy, wend.binary_entropy(p), atol=1e-6) and abs(entropy.mean() - 0.435763) < 1e-6

# %% [markdown]
# Descent goes against the slope. Above one half it lifts $p$, below it lowers it: *the sure become surer*. No label is asked.
#
# Two things are wrong with that, says the paper. Most places are background, so the background has most of the say. And most samples are easy, sure already. So the entropy gets a **weight** (equation 3), with the powers of the focal loss, and two thresholds that say what counts as foreground and as background:
#
# $$w(p) = \begin{cases} \alpha (1-p)^\gamma & p \ge \tau_1 \text{ (foreground)} \\ (1-\alpha)\, p^\gamma & p \le \tau_2 \text{ (background)} \\ 0 & \text{between} \end{cases}$$
#
# That there are these two branches is nearly sure. That the background gets $1 - \alpha$ is likely. Whether the mean is over all samples or over those that count is open; we take all.


# %%
def weighted(p, alpha, gamma, tau1, tau2, detach=False):
    """Equations 2 and 3, one weight for each sample of p Float[N]."""
    weight = torch.zeros_like(p)
    weight = torch.where(p <= tau2, (1 - alpha) * p**gamma, weight)
    weight = torch.where(p >= tau1, alpha * (1 - p) ** gamma, weight)  # foreground first
    return (weight.detach() if detach else weight) * wend.binary_entropy(p)


these = {"alpha": 0.25, "gamma": 2.0, "tau1": 0.5, "tau2": 0.3}
print("w(p) E(p)   ", np.round(weighted(p, **these).detach().numpy(), 4))
for detach in (False, True):
    ours = wend.weighted_entropy(p, **these, detach=detach)
    assert torch.isclose(weighted(p, **these, detach=detach).mean(), ours, atol=1e-7)

# %% [markdown]
# The sample at .4 lies between the thresholds and is left alone. The sure ones (.95 and .05) hardly count any more.
#
# One thing the text does not say: does the gradient flow through the weight, too? It looks like a detail. Draw it. (For $\gamma = 2$ and $\alpha = .25$, where it shows better than at the weights for birds.)

# %%
grid_p = torch.linspace(0.005, 0.995, 991, requires_grad=True)
at = {"alpha": 0.25, "gamma": 2.0, "tau1": 0.3, "tau2": 0.3}
losses = {
    "plain entropy": wend.binary_entropy(grid_p),
    "weighted": weighted(grid_p, **at),
    "weighted, detached": weighted(grid_p, **at, detach=True),
}
slopes = {title: torch.autograd.grad(loss.sum(), grid_p)[0] for title, loss in losses.items()}

# %% mystnb={"image": {"alt": "Two panels over p from 0 to 1. Left: plain entropy is a hill with its top at one half; the weighted one is low everywhere, with a jump at the threshold of 0.3. Right: the slope. The plain entropy's crosses zero at one half. With a gradient through the weight it is positive up to 0.3 and negative from there to nearly 1. With the weight held constant it is positive up to one half, with a jump at 0.3."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for title, style in zip(losses, ("-", "-", "--"), strict=True):
    if title != "weighted, detached":
        axes[0].plot(grid_p.detach(), losses[title].detach(), style, label=title)
    axes[1].plot(grid_p.detach(), slopes[title], style, label=title)
axes[0].set(xlabel="p", ylabel="loss of a sample, nats")
axes[1].set(xlabel="p", ylabel="its slope", ylim=(-0.45, 0.45))
axes[1].axhline(0, color="black", lw=0.8)
axes[0].legend()
axes[1].legend(loc="upper right", fontsize=8, handlelength=1.4)
plt.show()

# %%
probes = torch.tensor([0.29, 0.35, 0.5, 0.7])
for title, slope in slopes.items():
    told = [slope[(grid_p - one).abs().argmin()].item() for one in probes]
    print(f"{title:18} slope at .29, .35, .5, .7: " + " ".join(f"{value:7.4f}" for value in told))

# %% [markdown]
# - **With the gradient through the weight** (the default here) the slope is negative from $\tau_1$ on: $p$ is pushed *up*, even at .35. For there the weight falls as $p$ grows. So **the threshold is the line between object and background** (as long as it is not too low; see exercise 1).
# - **With the weight held constant** only the entropy pushes: from .3 to .5 it pushes *down*, out of the foreground. The line stays at one half, and the threshold only decides how strongly.
#
# The usual code of the focal loss lets the gradient through. We do so too, and measure both.

# %% [markdown]
# ## One step, by hand
#
# Equation 1 of the paper has the cross-entropy of every place, and for foreground places a loss of the box: here the generalised IoU, and the place's *centrality* besides, as in FCOS. (FCOS itself has the focal loss for the first. We follow the paper's equation; so does our Faster R-CNN. Deformable DETR keeps its focal loss.)
#
# $$L_{sup} = \frac{\lambda_1}{N_{cls}} \sum_i BCE(p_i, p_i^*) + \frac{\lambda_2}{N_{reg}} \sum_i p_i^* L_{reg}(t_i, t_i^*)$$
#
# $$L = \eta L_{sup} + \frac 1 N \sum_i w(p_i) E(p_i)$$
#
# $p_i^*$ is 1 at foreground places, $t_i$ the box that a place gives, $t_i^*$ its pseudo box; $N_{cls}$ counts all places, $N_{reg}$ the foreground ones. The paper gives no $\lambda$; both are 1 here. $\eta$ is the price of the supervised part (equation 4). In the end a box has the *score* $\sqrt{p \cdot \text{centrality}}$, and boxes are ranked by it.

# %%
torch.manual_seed(0)
model = engine.build(engine.load_recipe("scenes/wend").stages[0], two).eval()
said = model.losses(batch)
p = model.detector.parts.head(model.maps(batch["image"]))["cls_logits"][..., 0].sigmoid()  # [B,64]
by_hand = {
    "classification": model.eta * F.binary_cross_entropy(p, wanted),
    "entropy": weighted(p, **model.weights).mean(),
}
for name, loss in by_hand.items():
    assert torch.isclose(said[name], loss, rtol=1e-3), (name, said[name], loss)
for name, loss in said.items():
    print(f"{name:15} {loss.item():.1e}")

# %% [markdown]
# ## Train it
#
# Two detectors on the same 1,000 pictures with the same wrong boxes, six epochs each: the plain one, and WEND with the paper's weights for birds. Beside them the regressor of the beginning. (Its recipe gives it more than twice as many epochs and a higher rate, for it learns slower.)

# %% tags=["nbval-ignore-output"]
runs["BCD"], runs["WEND"] = (
    engine.run(engine.load_recipe("scenes/wend", [*small, *more]), folder.name, progress=False)
    for more in (["stages.detector.args={entropy: null}"], [])
)
for title, run in runs.items():
    scores, (low, high) = run.evaluator.compute(), run.evaluator.interval("gt_known")
    print(f"{title:5} single {scores.gt_known:5.1f} [{low:.1f}, {high:.1f}]   any of five "
          f"{scores.gt_known_multi:5.1f}   recall {scores.recall:5.1f}")  # fmt: skip
for title, floor in runs["SCR"].results["floors"].items():
    print(f"{title:16} {floor['gt_known']:5.1f}")

# %%
reached = {title: run.evaluator.compute() for title, run in runs.items()}
assert all(reached[title].gt_known > reached["SCR"].gt_known + 30 for title in ("BCD", "WEND"))
assert reached["WEND"].recall > 50

# %% [markdown]
# *Single* is GT-known of the surest box; *any of five* asks whether one of the five best hits an animal; *recall* counts of all animals those that are hit. The centred floors are at zero, for with two animals neither stands in the middle. And five boxes hit something even blindly. So we need another floor: five *fixed* boxes, which never look at the picture. We take them from the true boxes of training pictures, one by one, each the one that hits most animals that are not hit yet.


# %%
def fixed_boxes(animals):
    """Five boxes Float[5,4] that hit as many animals as possible in 400 training pictures."""
    world = data.load("scenes", "train", size=64, n=400, instances=animals, supervision="oracle")
    true = torch.cat([world.boxes(i) for i in range(400)])
    hit = boxes.iou(true, true) >= 0.5
    chosen, left = [], torch.ones(len(true), dtype=torch.bool)
    for _ in range(5):
        chosen.append((hit & left).sum(1).argmax())
        left &= ~hit[chosen[-1]]
    return true[torch.stack(chosen)]


# %%
blind = {}
for animals in (1, 2, 4):
    world, fixed = data.load("scenes", "test", size=64, n=1000, instances=animals), fixed_boxes(animals)
    hit = [boxes.iou(world.boxes(i), fixed) >= 0.5 for i in range(len(world))]  # of [animals,5]
    blind[str(animals)] = {"single": 100 * np.mean([h[:, 0].any().item() for h in hit]),
                           "any of five": 100 * np.mean([h.any().item() for h in hit]),
                           "recall": 100 * torch.cat([h.any(1) for h in hit]).float().mean().item()}  # fmt: skip
    print(
        f"fixed boxes, {animals} animals: "
        + "   ".join(f"{what} {score:4.1f}" for what, score in blind[str(animals)].items())
    )
assert reached["WEND"].recall > blind["2"]["recall"] + 10

# %% [markdown]
# High floors, and yet the detectors are far above them. Here are the first pictures again, with WEND's boxes of at least half the score of the surest:

# %% tags=["nbval-ignore-output"]
found = runs["WEND"].localizer.localize(shown)
figures.gallery(
    shown, boxes=[scenes.boxes(i) for i in range(4)],
    predicted=[b[s >= s.max() / 2] for b, s in zip(found.boxes, found.scores, strict=True)],
    alt="The same four scenes. WEND has a dashed box around each of the two animals.",
)  # fmt: skip
plt.show()

# %% [markdown]
# The detector was told nothing of the second animal. Worse, it was told that background is there. It finds it all the same. To leave it out it would have to compare the two: a place sees mostly its own surroundings, and an animal that is the smaller one here is the larger one elsewhere.
#
# And what did the entropy do? Print each loss in the trained WEND, and how hard it pulls at the answers of the places: the sum of the sizes of its slopes. With them the plain entropy, had it been there.

# %% tags=["nbval-ignore-output"]
learner = runs["WEND"].localizer  # in eval mode: training mode would move its batch norms
with torch.no_grad():
    z = learner.detector.parts.head(learner.maps(batch["image"]))["cls_logits"][..., 0]  # [B,64]
places_p = z.requires_grad_().sigmoid()
parts = {"supervised": learner.eta * F.binary_cross_entropy_with_logits(z, wanted),
         "weighted entropy": wend.weighted_entropy(places_p, **learner.weights),
         "(plain entropy)": wend.binary_entropy(places_p).mean()}  # fmt: skip
pull = {}
for name, loss in parts.items():
    pull[name] = torch.autograd.grad(loss, z, retain_graph=True)[0].abs().sum().item()
    print(f"{name:17} value {loss.item():.5f}   pull on the places {pull[name]:.5f}")
assert pull["weighted entropy"] < 0.25 * pull["supervised"] < pull["(plain entropy)"]

# %% [markdown]
# The same WEND, which has never seen more than two animals, on a hundred pictures with four. A box counts if its score is at least four tenths of the best one's.

# %% tags=["nbval-ignore-output"]
four = data.load("scenes", "test", size=64, n=100, instances=4)
crowds, pairs = (torch.stack([world[i]["image"] for i in range(100)]) for world in (four, scenes))


def best_boxes(pictures, share=0.4):
    """Of WEND's best five boxes of each picture those with at least this share of the best score."""
    found = runs["WEND"].localizer.localize(pictures)
    return [b[:5][s[:5] >= share * s.max()] for b, s in zip(found.boxes, found.scores, strict=True)]


in_crowds, in_pairs = best_boxes(crowds), best_boxes(pairs)
hits = [(boxes.iou(four.boxes(i), b).amax(1) >= 0.5).sum().item() for i, b in enumerate(in_crowds)]
print("pictures by animals found:", {k: hits.count(k) for k in range(5)})
assert sum(h >= 2 for h in hits) > 25

# %% [markdown]
# Four of the pictures in which it finds most, and below them four pairs of which it misses one:

# %% tags=["nbval-ignore-output"]
chosen = sorted(range(100), key=lambda i: -hits[i])[:4]
missed = [i for i, b in enumerate(in_pairs) if boxes.iou(scenes.boxes(i), b).amax(1).min() < 0.5][:4]
figures.gallery(
    torch.cat([crowds[chosen], pairs[missed]]),
    boxes=[four.boxes(i) for i in chosen] + [scenes.boxes(i) for i in missed],
    predicted=[in_crowds[i] for i in chosen] + [in_pairs[i] for i in missed],
    titles=["four animals"] * 4 + ["missed"] * 4,
    alt="Above, four pictures with four animals each and a dashed box on nearly every one. Below, pairs: the smaller animal has "
    "no box or one that is much too large.",
)  # fmt: skip
plt.show()

# %% [markdown]
# What it misses in these four are small animals and pairs that stand close. It was taught the larger animal of each pair only, and its places are eight pixels apart.

# %% [markdown]
# ## Wrong boxes on purpose
#
# Now the question of this chapter, in a world where the answer can be counted. Two animals in a picture, one pseudo box. None of the boxes, three in ten, or six in ten lie at a random place. Five seeds, 2,000 training and 1,000 test pictures; true boxes disturbed, so this is an experiment about noise, and no weak supervision.
#
# *Single*: does the surest box hit an animal (GT-known, IoU .5)? *Recall*: how many of *all* animals does one of at most five boxes hit? The floor is that of the fixed boxes. The plain entropy has $\eta = 1$, the weighted one the paper's $1/8$. (Under Adam $\eta$ alone changes nothing, as the rows of the next section show; the plain entropy at $1/8$ comes there, too.)
#
# ```
# OPTIONS="--to results/entropy_scenes.json --seeds 0,1,2,3,4"; NOISE=stages.detector.views.DisturbedBoxes.args.noise
# LOSSES="stages.detector.args={detector: fcos, entropy: null},{detector: fcos, entropy: plain},\
# {detector: fcos, entropy: weighted, alpha: 0.1, gamma: 6, tau1: 0.3, tau2: 0.3, eta: 0.125}"
# wsol compare scenes/scr $OPTIONS --vary data.options.instances=2 --vary $NOISE=0,0.3,0.6
# wsol compare scenes/scr $OPTIONS --vary data.options.instances=1,4 --vary $NOISE=0.3
# wsol compare scenes/wend $OPTIONS --vary "$LOSSES" --vary data.options.instances=2 --vary $NOISE=0,0.3,0.6
# wsol compare scenes/wend $OPTIONS --vary "$LOSSES" --vary data.options.instances=1,4 --vary $NOISE=0.3
# ```

# %%
args, noise_key = "stages.detector.args", "stages.detector.views.DisturbedBoxes.args.noise"
paper = "alpha: 0.1, gamma: 6, tau1: 0.3, tau2: 0.3, eta: 0.125"
losses_of = {
    "SCR": {"recipe": "scenes/scr"},
    "BCD": {"recipe": "scenes/wend", args: "{detector: fcos, entropy: null}"},
    "+ entropy": {"recipe": "scenes/wend", args: "{detector: fcos, entropy: plain}"},
    "+ weighted": {"recipe": "scenes/wend", args: f"{{detector: fcos, entropy: weighted, {paper}}}"},
}


# %%
def table(axis, cases, scores=("gt_known", "recall")):
    """Print scores by loss and case; return them, and the floor's."""
    found = {(title, case): grid.over_seeds("entropy_scenes", {**losses_of[title], **where})
             for title in losses_of for case, where in cases.items()}  # fmt: skip
    for score in scores:
        print(f"{'single' if score == 'gt_known' else score:11} " + "".join(f"{axis} {case:9}" for case in cases))
        for title in losses_of:
            print(f"{title:11} " + "   ".join(grid.told(found[title, case][score]) for case in cases))
        floors = [blind[where["data.options.instances"]] for where in cases.values()]
        what = "single" if score == "gt_known" else score
        print(f"{'fixed boxes':11} " + "".join(f"{floor[what]:5.1f}{'':10}" for floor in floors))
    return found


by_noise = table("noise", {n: {"data.options.instances": "2", noise_key: n} for n in ("0", "0.3", "0.6")})

# %%
detectors = ("BCD", "+ entropy", "+ weighted")
for noise in ("0", "0.3", "0.6"):
    gain = {t: by_noise[t, noise]["gt_known"] - by_noise["BCD", noise]["gt_known"] for t in detectors[1:]}
    found = {t: by_noise[t, noise]["recall"] - by_noise["BCD", noise]["recall"] for t in detectors[1:]}
    for title in gain:
        print(
            f"noise {noise:4} {title:10} minus BCD: single {grid.told(gain[title])}   recall {grid.told(found[title])}"
        )

# %%
for noise in ("0", "0.3", "0.6"):
    assert by_noise["BCD", noise]["gt_known"].min() > by_noise["SCR", noise]["gt_known"].max() + 25
    for score in ("gt_known", "recall"):
        gain = by_noise["+ weighted", noise][score] - by_noise["BCD", noise][score]
        assert abs(gain.mean()) < grid.half_width(gain)
assert all((by_noise["+ entropy", n]["recall"] - by_noise["BCD", n]["recall"]).mean() < -1 for n in ("0", "0.3"))

# %% [markdown]
# - **The detector is what helps.** With three in ten boxes wrong its surest box loses two points, the recall nine; the regressor loses thirty-one. Random boxes spread thin. With six in ten moved, a place on the larger animal is called foreground in about half of the pictures, a place elsewhere in six of a hundred. So $p$ falls, but the *order* of the places stays, and the surest box needs no more.
# - **The weighted entropy does nothing** that we can measure with two animals, at any noise, for the single box or for the recall. We saw how softly it pulls.
# - **The plain entropy costs recall**: two points at noise 0 and three at .3, for it makes the detector surer that the animal without a box is background. At noise 0 it costs a point of the single box as well. At .6 no difference can be seen.

# %%
by_count = table("animals", {n: {"data.options.instances": n, noise_key: "0.3"} for n in ("1", "2", "4")})

# %%
assert by_count["SCR", "4"]["gt_known"].max() < 20 < 60 < by_count["SCR", "1"]["gt_known"].min()
assert all(by_count["BCD", n]["gt_known"].min() > 85 for n in ("1", "2", "4"))
recalls = [by_count["BCD", n]["recall"].mean() for n in ("1", "2", "4")]
assert recalls == sorted(recalls, reverse=True)

# %% [markdown]
# With one animal the regressor has a fair chance, and is still far behind. With four its box lies in the middle of them, and hits less than one fixed box. The detector's surest box does not care how many there are. But of four animals it finds half. Probably because each training picture called three of them background, because five boxes are hardly enough for four, and because small ones fall between its places. The plain entropy finds fewer of them still.

# %% [markdown]
# ## Which part does what?
#
# The tables of the paper in small: two animals, three in ten boxes wrong, three seeds. Table 3 ($\gamma$ and $\alpha$), Table 4 ($\eta$), Table 9 ($\tau$), and the gap $\tau_2 < \tau_1$, for which the text argues and which no table measures.
#
# ```
# wsol compare scenes/wend --to results/entropy_settings.json --seeds 0,1,2 --vary "stages.detector.args=\
# {detector: fcos, entropy: weighted, alpha: 0.5, gamma: 2, tau1: 0.3, tau2: 0.3, eta: 0.125},..."    # one for each row
# ```


# %%
def setting(alpha=".1", gamma=6, tau1=".3", tau2=".3", eta=".125", more=""):
    """A row of the weighted entropy, as it was typed."""
    weights = f"alpha: {alpha}, gamma: {gamma}, tau1: {tau1}, tau2: {tau2}, eta: {eta}{more}"
    return {"recipe": "scenes/wend", args: f"{{detector: fcos, entropy: weighted, {weights}}}"}


rows = {f"gamma {g} alpha {a}": setting(a, g) for g, a in ((2, ".5"), (2, ".25"), (4, ".25"), (4, ".1"), (6, ".05"))}
rows |= {f"eta {e}": setting(eta=e) for e in ("1", ".5", ".25", ".0625")}
rows |= {f"tau {t}": setting(tau1=t, tau2=t) for t in (".1", ".2", ".4", ".5")}
rows |= {f"gap {t2} to {t1}": setting(tau1=t1, tau2=t2) for t1, t2 in ((".3", ".1"), (".5", ".3"), (".5", ".1"))}

# %%
plain = {"BCD": "entropy: null", "BCD, eta .125": "entropy: null, eta: 0.125", "entropy": "entropy: plain",
         "entropy, eta .125": "entropy: plain, eta: 0.125"}  # fmt: skip
plain |= {
    "weighted, as paper": f"entropy: weighted, {paper}",
    "weighted, detached": f"entropy: weighted, {paper}, detach: true",
}
rows = {title: {"recipe": "scenes/wend", args: f"{{detector: fcos, {how}}}"} for title, how in plain.items()} | rows
found = {title: grid.over_seeds("entropy_settings", row) for title, row in rows.items()}
for title, row in found.items():
    print(f"{title:20} single {grid.told(row['gt_known'])}   recall {grid.told(row['recall'])}")

# %%
singles = {title: row["gt_known"].mean() for title, row in found.items()}
assert max(singles.values()) - min(singles.values()) < 3

# %% [markdown]
# **No row stands out.** The single box lies within two points in all rows, which is what seeds differ by; only recall under the plain entropy is lower by more, and the five seeds above confirm it. At the paper's weights the entropy's slope is at most three tenths of the supervised one, just above $\tau$. At $\gamma = 2$ and $\alpha = .5$ it is larger than the supervised one, and still nothing moves: it shifts all $p$ but keeps their order, and boxes are ranked by order.
#
# One row more deserves a look: $\eta$. Without entropy $\eta$ scales the whole loss, and Adam, which divides each step by the size of the slope, does not notice it. With entropy $\eta$ also sets which of the two counts more. But the paper trains by plain gradient descent. There $\eta = 1/8$ is also **a rate eight times smaller**, and the paper has no row with $\eta$ and without entropy. Here are those rows, by SGD with momentum, three seeds:
#
# ```
# wsol compare scenes/wend --to results/entropy_sgd.json --seeds 0,1,2 --vary "stages.detector.optimizer={name: sgd, lr: 0.05, \
# momentum: 0.9, weight_decay: 1.0e-4}" --vary "stages.detector.args={detector: fcos, entropy: null},..."
# ```

# %%
sgd = {"stages.detector.optimizer": "{name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 1.0e-4}"}
cases = {title: rows[title] for title in ("BCD", "BCD, eta .125", "weighted, as paper", "entropy, eta .125")}
cases |= {"weighted, eta 1": setting(eta="1")}
by_sgd = {title: grid.over_seeds("entropy_sgd", {**row, **sgd}) for title, row in cases.items()}
for title, row in by_sgd.items():
    print(f"{title:20} single {grid.told(row['gt_known'])}   recall {grid.told(row['recall'])}")

# %%
rate = by_sgd["BCD, eta .125"]["gt_known"] - by_sgd["BCD"]["gt_known"]
entropy_alone = by_sgd["weighted, as paper"]["gt_known"] - by_sgd["BCD, eta .125"]["gt_known"]
print(f"eta alone {grid.told(rate)}, the weighted entropy beside it {grid.told(entropy_alone)}")
assert abs(rate.mean()) > 5 * abs(entropy_alone.mean())

# %% [markdown]
# Under gradient descent $\eta$ alone moves the score by many points, and the entropy beside it by a fraction of one. Here the smaller rate is a loss, for six short epochs need a larger one; in a long training that starts from ImageNet it may be a gain. Either way: **a row with $\eta$ and no entropy belongs in the table.**

# %% [markdown]
# ## Other detectors
#
# The entropy stands at the classifier of each detector: at every place (FCOS), at the sampled regions of the second stage (Faster R-CNN), at all queries of all layers (Deformable DETR). For Faster R-CNN the paper varies how many of the sampled regions are positive (Table 12). Faster R-CNN once, Deformable DETR with three seeds; the pictures as above. The transformer learns slowly: thirty epochs, a rate of $10^{-3}$, and clipped slopes.
#
# ```
# OPTIONS="--to results/entropy_detectors.json"
# wsol compare scenes/wend $OPTIONS --seeds 0 --vary "stages.detector.args={detector: faster-rcnn, options: {regions: 32, proposals: 100, \
# width: 256, positive_fraction: 0.5}, entropy: null},..."
# wsol compare scenes/wend $OPTIONS --seeds 0,1,2 --set stages.detector.epochs=30 --set stages.detector.optimizer.lr=1e-3 \
#     --set stages.detector.clip=0.1 --vary "stages.detector.args={detector: deformable-detr, options: {layers: 2, queries: 20, \
# levels: 2, width: 64}, entropy: null},..."
# ```

# %%
ratios = {"0.5": "1:1", "0.25": "1:3", "0.2": "1:4", "0.1667": "1:5"}
detr_runs = {}
for c in grid.read("entropy_detectors")["cells"].values():
    how, row = c["setting"][args], c["scores"]
    with_entropy = "BCD" if "entropy: null" in how else "+ weighted"
    if "faster" in how:
        share = next(text for part, text in ratios.items() if f"positive_fraction: {part}}}" in how)
        print(f"Faster R-CNN {share} {with_entropy:11} single {row['gt_known']:5.1f}   recall {row['recall']:5.1f}")
    else:
        detr_runs.setdefault(with_entropy, []).append((row["gt_known"], row["recall"]))

# %%
for title, pairs in detr_runs.items():
    for score, values in zip(("single", "recall"), np.array(pairs).T, strict=True):
        print(f"Deformable DETR {title:11} {score} by seed: " + " ".join(f"{value:5.1f}" for value in values))
gain = np.array(detr_runs["+ weighted"])[:, 0] - np.array(detr_runs["BCD"])[:, 0]
print(f"weighted minus BCD: {grid.told(gain)}")
assert gain[0] > 5 and abs(gain.mean()) < grid.half_width(gain)

# %% [markdown]
# Faster R-CNN finds the same with the entropy and without. The share of positives moves its score by one to two points, as far as one seed with intervals of four points can tell; the paper's own rows differ by less than one.
#
# Deformable DETR teaches another lesson. The first seed gains more than five points by the weighted entropy, far beyond the interval over pictures. The next two seeds gain nothing. **An interval over pictures says nothing of another training.** Over three seeds no gain can be told from zero.
#
# ## How many boxes may count?
#
# Recall grows with the number of boxes that one may show. For its multi-box GT-known the paper sets no cap. A detector with weak suppression of neighbours, or none, may then show hundreds, and one of them will hit. Here is our WEND (FCOS, three in ten wrong, two animals, three seeds) with its surest box, with five, and with all of them:
#
# ```
# wsol compare scenes/wend --to results/entropy_uncapped.json --seeds 0,1,2 --vary "evaluate.args={resize: 64, \
# tau: cross-fit, max_boxes: 1},{resize: 64, tau: cross-fit, max_boxes: 5},{resize: 64, tau: cross-fit, max_boxes: null}"
# ```

# %%
caps = {"one box": "1", "five": "5", "no cap": "null"}
shown_boxes = {title: grid.over_seeds("entropy_uncapped", {"recipe": "scenes/wend",
               "evaluate.args": f"{{resize: 64, tau: cross-fit, max_boxes: {cap}}}"}) for title, cap in caps.items()}  # fmt: skip
for title, row in shown_boxes.items():
    print(
        f"{title:8} single {grid.told(row['gt_known'])}   any {grid.told(row['gt_known_multi'])}   recall {grid.told(row['recall'])}"
    )

# %% [markdown]
# From one box to five the recall grows by nearly thirty points, as it must: one box cannot hit two animals. From five to all of them it grows by two. Our FCOS suppresses boxes that overlap, so it shows few. For this detector the cap of five is mild.

# %% [markdown]
# ## Sure, or right?
#
# Entropy asks for certainty. Is a surer detector a better one? Test it: take all places of all test pictures, sort them by $p$ into ten bins, and count in each bin how many really lie near the middle of an animal, by the true boxes. Where $p$ says .8, eight of ten should. Besides our two detectors here is one with the plain entropy, at the paper's $\eta$.

# %% tags=["nbval-ignore-output"]
strong = engine.load_recipe("scenes/wend", [*small, "stages.detector.args={entropy: plain, eta: 0.125}"])
runs["plain entropy"] = engine.run(strong, folder.name, progress=False)
images = torch.stack([scenes[i]["image"] for i in range(len(scenes))])
on_object = torch.stack([near_middle(scenes.boxes(i)) for i in range(len(scenes))])  # [N,64]
sure = {}
for title in ("BCD", "WEND", "plain entropy"):
    model = runs[title].localizer
    with torch.no_grad():
        sure[title] = model.detector.parts.head(model.maps(images))["cls_logits"][..., 0].sigmoid()  # [N,64]
    entropy = wend.binary_entropy(sure[title]).mean()
    on, off = sure[title][on_object].mean(), sure[title][~on_object].mean()
    print(f"{title:14} entropy {entropy:.3f}   mean p on animals {on:.2f}, elsewhere {off:.2f}")
assert sure["plain entropy"][on_object].mean() < 0.5 * sure["WEND"][on_object].mean()

# %% mystnb={"image": {"alt": "Share of places on an animal over p. The curves of BCD and WEND lie on each other and far above the diagonal: where p says one half, more than eight in ten places are on an animal. The plain entropy has a single point, at p of nearly zero."}}
figure, axis = plt.subplots(figsize=(5.4, 4))
axis.plot([0, 1], [0, 1], color="grey", ls=":", label="calibrated")
for (title, p), marker in zip(sure.items(), "osD", strict=True):
    place = (p * 10).long().clamp(max=9)
    said = [(p[place == k].mean(), on_object[place == k].float().mean()) for k in range(10) if (place == k).sum() > 20]
    axis.plot(*zip(*said, strict=True), marker=marker, label=title)
axis.set(xlabel="p of a place", ylabel="share that lies on an animal", xlim=(0, 1), ylim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# - The two detectors are **too modest**: where they say one half, more than eight in ten places lie on an animal. They were taught on pictures where the second animal is called background, so one half is what they saw. The network says what it was taught.
# - **WEND is no surer than BCD**, and its curve is nearly the same.
# - **The plain entropy at this $\eta$ ruins the probabilities**: all $p$ go to zero. With so little supervised loss each $p$ goes to that end on which side of one half its taught share lies. On animals that share is just below a half (the second animal is taught as background, and three in ten boxes are moved), so everything goes to zero. That is what the weights are good for. The *order* of the places survives, and with it the boxes (see the row *entropy, eta .125* under *Which part does what?*): a score need not be a probability to be useful.
#
# The same of the five seeds of the table above, where the plain entropy had the whole supervised loss beside it. The *calibration error* is the mean distance of $p$ from the share that is right, over all places.
#
# ```
# python -m tools.foreground scenes/wend --to results/entropy_foreground.json --seeds 0,1,2,3,4 --vary "$LOSSES" \
#     --vary data.options.instances=2 --vary $NOISE=0,0.3,0.6
# ```

# %%
judged = {(title, n): grid.over_seeds("entropy_foreground", {**losses_of[title], "data.options.instances": "2", noise_key: n})
          for title in detectors for n in ("0", "0.3", "0.6")}  # fmt: skip
for (title, n), row in judged.items():
    error = row["calibration_error"]
    print(f"noise {n:4}{title:11} entropy {row['entropy'].mean():.3f}   p on animals {row['p_on_objects'].mean():.2f}"
          f"   error {error.mean():4.1f} ± {grid.half_width(error):3.1f}")  # fmt: skip

# %%
for n in ("0", "0.3", "0.6"):
    gap = {t: judged[t, n]["calibration_error"] - judged["BCD", n]["calibration_error"] for t in detectors[1:]}
    print(f"noise {n:4} error minus BCD's: " + ", ".join(f"{t} {grid.told(g)}" for t, g in gap.items()))
    assert gap["+ entropy"].mean() > grid.half_width(gap["+ entropy"])
    assert -0.6 < gap["+ weighted"].mean() < -grid.half_width(gap["+ weighted"])

# %% [markdown]
# The plain entropy halves the entropy of the answers, and is *further* from the truth at each noise: surer, and not righter. The weighted one brings the probabilities a little nearer to the truth: by less than half a point, but at each noise by more than its interval. It is the only good of it that we can measure, and small in any case.
#
# ## Epoch by epoch
#
# The paper's figures 3 and 4 show GT-known over the epochs with and without entropy: with it the curve falls later. Does ours fall at all in twelve epochs, twice as many as above? Three seeds, 500 test pictures each epoch; to look, not to choose.
#
# ```
# python -m tools.mask_epochs scenes/wend --to results/entropy_epochs.json --seeds 0,1,2 --set stages.detector.epochs=12 \
#     --vary "$LOSSES" --vary $NOISE=0.3,0.6
# ```

# %% mystnb={"image": {"alt": "Two panels, noise 0.3 and 0.6: GT-known over twelve epochs for BCD, with the plain and with the weighted entropy. In both the three curves rise together, flatten after the eighth epoch, and none falls."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
ends = {}
for axis, noise in zip(axes, ("0.3", "0.6"), strict=True):
    for title, style in zip(detectors, ("-", "--", ":"), strict=True):
        alike = {**losses_of[title], noise_key: noise}
        cells = [c for c in grid.read("entropy_epochs")["cells"].values() if c["setting"] == alike]
        paths = np.array([[epoch["gt_known"] for epoch in c["epochs"]] for c in cells])  # [seeds,epochs]
        ends[title, noise] = paths
        axis.plot(range(1, 13), paths.mean(0), style, label=title)
    axis.set(title=f"noise {noise}", xlabel="epoch")
axes[0].set_ylabel("GT-known, per cent")
axes[0].legend()
plt.show()

# %%
for (title, noise), path in ends.items():
    print(
        f"noise {noise} {title:11} at the end {grid.told(path[:, -1])}   below its best {grid.told(path.max(1) - path[:, -1])}"
    )
    assert (path.max(1) - path[:, -1]).mean() < 2

# %% [markdown]
# No curve falls, with or without entropy, and the three end together. So here wrong boxes are not learned late, for they have nothing in common. The curves show another thing: after six epochs training was not finished. With twice as many the surest box is right in 96 pictures of 100 at noise .3, and in 92 at .6, three and six more than in the tables above. Part of what noise costs there is patience.
#
# ## Without any true box
#
# Back to weak supervision. `scenes/wend-ddt` has no true box anywhere: a classifier learns from labels, DDT draws boxes in its features, the detector learns from those, and the classifier names what it finds. Three seeds, 3,000 training pictures, one animal a picture. (The regressor has the detector's six epochs and low rate here; it is not the SCR of the tables above.)
#
# ```
# OPTIONS="--to results/entropy_pipeline.json --seeds 0,1,2"
# wsol compare scenes/wend-ddt $OPTIONS --vary "$LOSSES"
# wsol compare scenes/wend-ddt $OPTIONS --set stages.detector.method=scr --vary "stages.detector.args={}"
# wsol compare scenes/ddt $OPTIONS
# python -m tools.pseudo_boxes scenes/ddt --to results/entropy_pseudo_scenes.json
# ```

# %%
whole = {"DDT's own map": {"recipe": "scenes/ddt"}, "SCR": {"recipe": "scenes/wend-ddt", args: "{}"}}
whole |= {title: {**losses_of[title], "recipe": "scenes/wend-ddt"} for title in detectors}
piped = {title: grid.over_seeds("entropy_pipeline", row) for title, row in whole.items()}
for title, row in piped.items():
    five = "" if np.isnan(row["recall"]).any() else f"  of five {grid.told(row['gt_known_multi'])}"
    print(f"{title:13} single {grid.told(row['gt_known'])}  Top-1 Loc {grid.told(row['top1_loc'])}{five}")

# %%
blank = piped["SCR"]["best centred box gt_known"].mean()
print(f"{'blank box':13} single {blank:5.1f}")
print(f"{'fixed boxes':13} single {blind['1']['single']:5.1f}   of five {blind['1']['any of five']:5.1f}")
bcd = losses_of["BCD"] | {"recipe": "scenes/wend-ddt"}
first = next(c for c in grid.read("entropy_pipeline")["cells"].values() if c["setting"] == bcd and c["seed"] == 0)
print(f"BCD of the first seed: {first['scores']['gt_known']:.1f}")
drawn_by = {c["name"]: c["scores"] for c in grid.read("entropy_pseudo_scenes")["cells"].values()}["scenes/ddt"]
print(
    f"right at zero: {drawn_by['train zero']:.1f} % of the training boxes, {drawn_by['test zero']:.1f} % on test pictures"
)

# %%
drawn = pseudo.boxes_from_maps(engine.localize(ddt_method, single, progress=False).maps, single.image_sizes, "zero")
sides = torch.stack(
    [torch.stack([b[0, 2:] - b[0, :2] for b in (box, single.boxes(i))]) for i, box in enumerate(drawn) if len(box)]
)
ratio = sides.prod(2)[:, 0] / sides.prod(2)[:, 1]  # [N], area of DDT's box by that of the animal
print(
    f"DDT's box is {ratio.median():.1f} times as large as the animal (median); larger in {100 * (ratio > 1).float().mean():.0f} %"
)
assert ratio.median() > 1.1
assert all(
    (piped["DDT's own map"]["gt_known"] - piped[t]["gt_known"]).min() > 5 and piped[t]["gt_known"].mean() < 35
    for t in detectors
)

# %% [markdown]
# About as many boxes were wrong in the experiment with six in ten moved, though with two animals to hit, and there the detector was right in 86 of 100. Here it is right in 30, which is hardly more than a blank box, and *less* than the boxes it was taught (the first seed: 28.7 against 36.3 on test pictures). No entropy changes that. What differs is **how** the boxes are wrong: most of DDT's are too large, and what most boxes share is no noise; it is the lesson. (DDT's own row has an advantage besides: its threshold is cross-fitted, that is, chosen by boxes of other test pictures.)
#
# Among five boxes there is a right one in every second picture. That says nothing: five fixed boxes do as well.
#
# So on scenes the road from labels to boxes is not better than the maps it starts from. Better boxes are needed first. For birds we have them.

# %% [markdown]
# ## Real photographs
#
# `cub/wend-lite0` and `tiny-imagenet/wend-lite0` put all parts together: C2AM on a frozen EfficientNet-Lite0 draws the pseudo boxes, FCOS on a pyramid of two maps learns from them for four epochs on birds and two on Tiny-ImageNet, and a classifier names. Neither C2AM nor the detector is trained on a label. But the threshold .7 comes from DDT, which uses the class labels of the birds, and the network behind all of it has seen ImageNet's. Whole pictures, all test pictures, one seed; the interval is over pictures.
#
# ```
# F="detector: fcos, neck: fpn, width: 128"
# LOSSES="stages.detector.args={$F, entropy: null},{$F, entropy: plain},\
# {$F, entropy: weighted, eta: 0.125, alpha: 0.1, gamma: 6, tau1: 0.3, tau2: 0.3}"
# for data in cub tiny-imagenet; do
#     OPTIONS="--to results/entropy_$data.json --seeds 0"
#     wsol compare $data/c2am-lite0 $OPTIONS; wsol compare $data/scr-lite0 $OPTIONS
#     wsol compare $data/wend-lite0 $OPTIONS --vary "$LOSSES"; done
# wsol compare cub/wend-lite0 --to results/entropy_cub.json --seeds 0 --vary "stages.detector.args=\
# {$F, entropy: null, freeze_backbone: true},..."    # and cub/scr-lite0
# wsol compare cub/wend-lite0 --to results/entropy_cub_threshold.json --seeds 0 --set "stages.detector.args={$F, entropy: null}" \
#     --vary stages.detector.views.PseudoBoxes.args.threshold=otsu
# ```
#
# What was trained on Tiny-ImageNet is also asked on ILSVRC-mini, 1,300 large pictures with all kinds of classes: the rows once more with `--set evaluate.data=ilsvrc-mini --set evaluate.split=test --set evaluate.options={}`. And on Tiny-ImageNet there is one row more: boxes by CAM, with the class label of each training picture, at the threshold where they agree most with DDT's.
#
# ```
# python -m tools.pseudo_boxes tiny-imagenet/cam-lite0 --beside tiny-imagenet/ddt-lite0 --to results/entropy_pseudo_tiny.json \
#     --set data.options.per_class=15    # and c2am-lite0
# wsol compare tiny-imagenet/wend-lite0 --to results/entropy_tiny_cam.json --seeds 0 --set "stages.detector.args={$F, entropy: null}" \
#     --vary "stages.detector.views.PseudoBoxes.needs={maps: classifier.maps}" --set stages.detector.views.PseudoBoxes.args.threshold=0.3
# ```
#
# The last line once more with more training: `--vary data.options.per_class=50 --set stages.detector.epochs=3` and a frozen trunk (`freeze_backbone: true`).


# %%
def photographs(name):
    """Print the floors and all methods on one data set; return GT-known of each."""
    loss = {"entropy: null": "BCD", "entropy: plain": "+ entropy", "entropy: weighted": "+ weighted"}
    found = {}
    for c in grid.read(f"entropy_{name}")["cells"].values():
        method, how = c["setting"]["recipe"].partition("/")[2].removesuffix("-lite0"), c["setting"].get(args, "")
        kind = next((title for part, title in loss.items() if part in how), method.upper())
        found[kind + (", frozen" if "freeze" in how else "")] = c
    print(grid.score_table(found))
    print("any of five")
    for title, c in found.items():
        if c["scores"]["recall"]:
            print(f"{title:19} {c['scores']['gt_known_multi']:5.2f}")
    return {title: row["scores"] for title, row in grid.with_floors(found).items()}


# %%
on_cub = photographs("cub")

# %%
(by_otsu,) = grid.read("entropy_cub_threshold")["cells"].values()
(low, high), otsu = by_otsu["intervals"]["gt_known"], by_otsu["scores"]["gt_known"]
print(f"BCD from Otsu's boxes: GT-known {otsu:.1f} [{low:.1f}, {high:.1f}], n = {by_otsu['n']}")

# %%
on_tiny = photographs("tiny-imagenet")

# %%
on_mini = photographs("ilsvrc-mini")

# %%
from_cam = {"10,000" if "data.options.per_class" in c["setting"] else "3,000": c
            for c in grid.read("entropy_tiny_cam")["cells"].values()}  # fmt: skip
for pictures_seen, c in from_cam.items():
    (low, high), score = c["intervals"]["gt_known"], c["scores"]["gt_known"]
    print(f"BCD from CAM's boxes of {pictures_seen:6} pictures: GT-known {score:.1f} [{low:.1f}, {high:.1f}]")
family = grid.read("cam_family_tiny-imagenet")["cells"].values()
cam_alone = next(c["scores"]["gt_known"] for c in family if c["setting"]["stages.cam.args.variant"] == "cam")
print(f"CAM's own maps, cross-fitted threshold: GT-known {cam_alone:.1f}")
for c in grid.read("entropy_pseudo_tiny")["cells"].values():
    name, rates = c["name"].split("/")[1], c["scores"]
    agreed = max(levels, key=lambda level: rates[f"agreement {level}"])
    print(f"{name:11} agrees most with DDT at {agreed}: train {rates[f'train {agreed}']:.1f}")
    print(f"{'':11} at 0.7: train {rates['train 0.7']:.1f}")

# %%
entropies = [on_cub[title]["gt_known"] for title in ("BCD", "+ entropy", "+ weighted")]
assert min(entropies) > 84 and max(entropies) - min(entropies) < 2
assert (
    abs(on_cub["C2AM"]["gt_known"] - on_cub["BCD"]["gt_known"]) < 2
    and on_cub["SCR"]["gt_known"] < on_cub["BCD"]["gt_known"] - 10
)
assert all(scores["gt_known"] < on_tiny["best centred box"]["gt_known"] + 1 for scores in on_tiny.values())
assert (
    abs(from_cam["10,000"]["scores"]["gt_known"] - cam_alone) < 1 < cam_alone - from_cam["3,000"]["scores"]["gt_known"]
)

# %% [markdown]
# On birds:
#
# - **The pseudo boxes decide.** C2AM's own maps are 28 points above the best centred box, and 18 above the best trained method of the chapters before (the weight map, 68.5). (Of C2AM's settings five were tried on these birds, see above.)
# - **The detector is about as good as its teacher** with one box: 86.2, against 85.4 for C2AM's maps at the same fixed threshold and 86.5 at one cross-fitted on test boxes. Any of five boxes gives 3.5 to 5 points more; a map has but one.
# - **It does not mend boxes that are wrong alike.** Taught with Otsu's boxes it falls to 45, below the 55 of those boxes on the same test pictures.
# - **No entropy can be told from none.** The three lie within a point, their intervals are four points wide, and this is one seed.
# - **A frozen trunk does as well** (the paper's Table 6; one seed, and the pyramid and the heads still learn).
# - **The regressor lags** by fifteen points after the same four epochs. PSOL trains for a hundred (cited: its released scripts), so this is a word on speed, not on what regression can reach.
#
# On Tiny-ImageNet and ILSVRC-mini:
#
# - **Nothing beats a blank box.** C2AM's maps and all detectors taught by them lie within two points of it, or below. The plain CAM of the same network has more (chapter 03). Nor was the threshold of the birds good here: at 0.7 fewer than half of the training boxes are right; at the one where they agree most with DDT's it is 55 in 100. C2AM's contrast finds what all pictures of a set have in common against their grounds. Fifty birds share more than two hundred kinds of things; that is our guess at the cause.
# - **Better boxes alone do not help.** CAM's are right in six of ten training pictures, and the detector taught by them is not better than that taught by C2AM's. Taught by those of 10,000 pictures instead of 3,000, for three epochs instead of two, on a frozen trunk, it is as good as CAM's own maps (61.6 in chapter 03, with a cross-fitted threshold), and no threshold was picked by boxes. These three changes were made at once, and once, so we cannot say which of them did it.
# - **The regressor is below the full box** on either set, after two epochs.
#
# ## What it costs
#
# Table 1 of the paper says that the binary-class detector is no slower than the regressor. `python benchmarks/detectors.py` counts parameters and measures training steps side by side. The parameters can be counted here and now:

# %%
trunk = backbones.create("resnet50", weights="random", stages=["last"])
counts = {"SCR": wend.SCR(trunk, 200), "BCD, FCOS": wend.WEND(trunk, 200, entropy=None)}
millions = {title: sum(p.numel() for p in model.parameters()) / 1e6 for title, model in counts.items()}
print({title: round(value, 2) for title, value in millions.items()})
assert abs(millions["SCR"] - 24.55) < 0.01 and abs(millions["BCD, FCOS"] - 99.12) < 0.01

# %% [markdown]
# Those are the paper's 24.55 and 99.12 million (cited: table 1), which tells us what its heads look like: one tower convolution a branch on the 2,048 channels of the last map. The claim about time we cannot reproduce: on one thread of a CPU, with a batch of four, a step of the detector takes twice as long as the regressor's, Faster R-CNN and Deformable DETR nearly five times.
#
# ## Published, and ours

# %%
published = [  # WEND paper, CUB, ResNet-50, GT-known of the surest box under the crop of 256 to 224; table 2 unless said
    ("C2AM, as they ran it", 92.48), ("Faster R-CNN", 93.63), ("Faster R-CNN + weighted", 95.47),
    ("Faster R-CNN + weighted, eta 1, table 4", 93.79), ("Faster R-CNN + entropy, table 10", 94.28), ("Faster R-CNN + weighted, table 10", 94.87),
    ("FCOS", 94.24), ("FCOS + weighted", 94.60), ("CLN + weighted", 95.91),
    ("Deformable DETR", 92.81), ("Deformable DETR + weighted", 93.69),
]  # fmt: skip
for title, gt_known in published:
    print(f"{title:40} GT-known {gt_known:5.2f}")

# %%
known = dict(published)
by_eta = known["Faster R-CNN + weighted, table 10"] - known["Faster R-CNN + weighted, eta 1, table 4"]
print(f"from eta 1 to eta 1/8: {by_eta:+.2f}")

# %% [markdown]
# From $\eta = 1$ to $1/8$ the paper gains a point. Two things change there at once: the rate, and the weight of the entropy beside the supervised loss. Its table 10 puts the plain entropy between Faster R-CNN and the weighted one. Which part is the rate only a row without entropy could say. (Its tables 2 and 4 differ by more than half a point at one setting, so smaller differences between tables mean nothing.)
#
# | | paper | here |
# |---|---|---|
# | pseudo boxes | C2AM, threshold by test boxes | scenes: true ones, disturbed; photographs: C2AM, threshold by agreement with DDT |
# | detector | Faster R-CNN, FCOS, CLN, Deformable DETR | FCOS; the others once; CLN is not described well enough to be built |
# | trunk | ResNet-50, DenseNet-161 | a narrow ResNet from nothing; EfficientNet-Lite0 |
# | training | 50 epochs by SGD, crops of 256 to 224 | 6 epochs by AdamW; photographs 4 and 2 |
# | boxes that count | one; five for Top-5; no cap for GT-known of several | one; at most five |
# | frame | 256 to 224 | whole picture |
#
# The paper's recipes are `cub/wend-resnet50-faster-rcnn`, `cub/wend-resnet50-fcos`, `cub/wend-resnet50-deformable-detr` and their likes for ILSVRC. They need a GPU, and we have not run them.
#
# ## Where it breaks
#
# - **A detector is as good as its boxes.** On birds it does not beat the maps that it learned from, as long as one box counts.
# - **Errors that agree are learned.** Random wrong boxes spread thin. A maker that boxes every head teaches heads.
# - **Certainty can be had cheaply**, by sending every $p$ to the nearer end. The plain entropy does so as soon as the supervised loss is weak. The boxes survive it, the probabilities do not.
# - **Small objects fall through.** A box smaller than a stride may hold no place, and then its picture teaches background only. At stride 32 that is a bird of 30 pixels.
# - **What has no box is background.** The detector forgives that for the second animal of each pair, but it is less sure of all animals.
#
# ## Exercises
#
# ### Exercise 1: predict
#
# The ILSVRC setting of the paper is $\gamma = 4$ and $\tau = 0.1$, without a detached weight. A sample has $p = 0.12$. It counts as foreground. Is it pushed up or down? And from which $p$ on is a foreground sample pushed up, for $\gamma$ of 1, 2, 4 and 6? Predict, then find the zero of the slope.
#
# <details><summary>Solution</summary>
#
# Down. The slope of $(1-p)^\gamma E(p)$ is $(1-p)^\gamma E'(p) - \gamma (1-p)^{\gamma-1} E(p)$. For small $p$ the entropy grows so steeply that its first term wins. The zero lies lower for larger $\gamma$, for the weight then falls faster. So a threshold below that zero pushes its first samples back to the background: $\tau$ is no longer the line.
#
# ```python
# p = torch.linspace(0.001, 0.999, 9981, dtype=torch.float64).requires_grad_()
# for gamma in (1, 2, 4, 6):
#     loss = (1 - p) ** gamma * wend.binary_entropy(p)
#     (slope,) = torch.autograd.grad(loss.sum(), p)
#     print(gamma, round(p[slope < 0].min().item(), 3))
# ```
#
# </details>
#
# ### Exercise 2: implement
#
# The mean of the weighted entropy is over *all* samples here. Write the other reading, over those that count, and show what it changes: the size of the loss, and its share of the gradient in one step of our detector.
#
# <details><summary>Solution</summary>
#
# With $\tau_1 = \tau_2$ every sample counts and nothing changes. With a gap the loss grows by the inverse of the share that counts. Either way the weights are tiny: at $\gamma = 6$ a background sample at $p = 0.1$ weighs a millionth.
#
# ```python
# def over_those_that_count(p, alpha, gamma, tau1, tau2):
#     counts = (p >= tau1) | (p <= tau2)
#     return wend.weighted_entropy(p, alpha, gamma, tau1, tau2) * p.numel() / counts.sum().clamp(min=1)
#
#
# learner = runs["WEND"].localizer
# p = learner.detector.parts.head(learner.maps(batch["image"]))["cls_logits"].sigmoid()
# weight = learner.detector.parts.head.classification_head.cls_logits.weight
# for gap in ((0.3, 0.3), (0.5, 0.1)):
#     for title, mean in (("all", wend.weighted_entropy), ("those that count", over_those_that_count)):
#         loss = mean(p, 0.1, 6, *gap)
#         (slope,) = torch.autograd.grad(loss, weight, retain_graph=True)
#         print(gap, title, loss.item(), slope.norm().item())
# ```
#
# </details>
#
# ### Exercise 3: investigate
#
# Our noise puts boxes at random places, so wrong boxes agree with nothing. Real makers of boxes are wrong *in the same way* each time: they box the head, or animal and shadow. Write a view that cuts every wrong box to its upper left quarter, and repeat the experiment with one animal. Does the detector still get rid of the wrong ones?
#
# <details><summary>Solution</summary>
#
# Longer than one would think. A quarter has its middle elsewhere than the animal, so it teaches *other* places. With six in ten quarters the places in the middle of the animal are still the surest, and answer with the whole animal. With eight in ten the places of the quarters are surer, and the score falls by half. Boxes like DDT's, too large around the same middle, leave no such way out. No entropy can help, since it makes sure what is already likely.
#
# ```python
# class Quarters(views.DisturbedBoxes):
#     def __init__(self, dataset, *, noise, seed=0):
#         super().__init__(dataset, noise=0.0, seed=seed)
#         wrong = torch.rand(len(dataset), generator=torch.Generator().manual_seed(seed)) < noise
#         for i in wrong.nonzero()[:, 0].tolist():
#             box = self.pseudo_boxes[i]
#             self.pseudo_boxes[i] = torch.cat([box[:, :2], (box[:, :2] + box[:, 2:]) / 2], 1)
#
#
# views.Quarters = Quarters
# crop = "{name: Augmented, args: {resize: 72, crop: 64}}"
# for noise in (0.2, 0.4, 0.6, 0.8):
#     more = ["data.options.instances=1", "stages.detector.args={entropy: null}",
#             f"stages.detector.views=[{{name: Quarters, args: {{noise: {noise}}}}}, {crop}]"]
#     run = engine.run(engine.load_recipe("scenes/wend", [*small, *more]), folder.name, progress=False)
#     print(noise, run.evaluator.compute().gt_known)
# ```
#
# </details>
#
# ## Summary
#
# 1. **Make pseudo boxes.** DDT takes the first principal component of what the pictures of a class have in common; C2AM sorts features by contrast, without a label. Neither knows animal from ground by itself: a sign, a polarity and a threshold have to be *decided*. A threshold picked by test boxes is worth 26 points of right boxes over Otsu's on birds, and the agreement of two methods gives as much without any box.
# 2. **Build the detector.** One regressed box that is asked for either of two objects answers with their mean, and wrong boxes drag it to the middle of the picture. A binary-class detector asks each place instead. The weighted entropy asks it to be certain; with a gradient through its weight the threshold is the line between object and background, if it is not too low; without it the line stays at one half. At the published settings it is small beside the supervised loss.
# 3. **Judge the gain.** The detector bears random wrong boxes that ruin the regressor, and finds animals that nobody marked. Boxes that are wrong alike it learns. The entropy adds nothing that can be told from zero, but perhaps slightly truer probabilities; the plain one costs recall. On photographs the pseudo boxes decide: on birds C2AM's are good, and the detector is as good as they are; on Tiny-ImageNet C2AM's are no better than a blank box, and CAM's make a detector as good as CAM. And $\eta$ under gradient descent is a rate, which belongs in the table by itself.
