import base64
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from wsol_lib import figures

mpl.use("Agg")
GREY = torch.full((3, 8, 12), 0.5)


@pytest.fixture(autouse=True)
def clean_figures():
    with mpl.rc_context():
        yield
    plt.close("all")


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_overlay_is_bright_where_the_map_is_high():
    score_map = torch.zeros(4, 6)
    score_map[1, 4] = 3.0
    shown = figures.overlay(GREY, score_map)
    assert shown.shape == (3, 8, 12)
    assert shown.min() >= 0 and shown.max() <= 1
    row, column = divmod(int(shown.sum(0).argmax()), 12)
    assert (row // 2, column // 2) == (1, 4)


@pytest.mark.parametrize("constant", [0.0, -2.0, 7.0])
def test_overlay_draws_a_constant_map_as_zero(constant):
    shown = figures.overlay(GREY, torch.full((4, 6), constant))
    lowest = torch.tensor(mpl.colormaps[figures.MAP_COLOURS](0.0)[:3])
    expected = (1 - figures.MAP_WEIGHT) * 0.5 + figures.MAP_WEIGHT * lowest
    assert torch.allclose(shown, expected.float()[:, None, None].expand_as(shown), atol=1e-5)


def test_overlay_does_not_depend_on_the_range_of_the_map():
    score_map = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(figures.overlay(GREY, score_map), figures.overlay(GREY, 40 * score_map - 9), atol=1e-4)


def test_map_colours_grow_lighter_all_the_way():
    steps = [luminance(mpl.colormaps[figures.MAP_COLOURS](x)) for x in np.linspace(0, 1, 64)]
    assert np.all(np.diff(steps) > 0)


def test_gallery_draws_boxes_on_pixel_edges_with_two_line_styles():
    true, guess = torch.tensor([[1.0, 2, 5, 8], [0, 0, 12, 8]]), torch.tensor([[2.0, 3, 4, 5]])
    figure = figures.gallery([GREY], boxes=[true], predicted=[guess], alt="one grey picture")
    axes = figure.axes[0]
    patches = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert [p.get_bbox().extents.tolist() for p in patches] == [*true.tolist(), *guess.tolist()]
    assert axes.images[0].get_extent() == [0, 12, 8, 0]
    assert patches[0].get_linestyle() != patches[-1].get_linestyle()
    assert all(p.get_path_effects() for p in patches)


def test_gallery_takes_pictures_of_different_sizes_and_hides_empty_places():
    figure = figures.gallery([GREY, torch.zeros(3, 20, 10), GREY], columns=2, titles=["a", "b", "c"], alt="three")
    assert len(figure.axes) == 4
    assert not any(axes.axison for axes in figure.axes)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", ""]


@pytest.mark.parametrize("alt", ["", "   "])
def test_pictures_without_alt_text_are_refused(alt):
    with pytest.raises(ValueError, match="alt text"):
        figures.gallery([GREY], alt=alt)
    with pytest.raises(ValueError, match="alt text"):
        figures.slider([GREY], ["a"], alt=alt)
    with pytest.raises(ValueError, match="alt text"):
        figures.slider([GREY, GREY], ["a", "b"], alt=["first", alt])


def test_lists_that_differ_in_length_are_named():
    with pytest.raises(ValueError, match=r"2 images.*'titles': 1"):
        figures.gallery([GREY, GREY], titles=["one"], alt="two pictures")
    with pytest.raises(ValueError, match="at least one"):
        figures.gallery([], alt="nothing")
    with pytest.raises(ValueError, match="2 frames, 1 labels"):
        figures.slider([GREY, GREY], ["one"], alt="two frames")
    with pytest.raises(ValueError, match="0 frames"):
        figures.slider([], [], alt="nothing")


def frames_of(page: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


def test_slider_holds_every_frame_and_shows_only_the_first():
    red = np.zeros((8, 12, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    blue = Image.new("RGB", (12, 8), (0, 0, 255))
    page = figures.slider([red, GREY, blue], ["r", "g", "b"], alt="A colour.", title="colour")._repr_html_()
    colours = [np.asarray(frame.convert("RGB")).mean((0, 1)).round() for frame in frames_of(page)]
    assert np.allclose(colours, [[255, 0, 0], [128, 128, 128], [0, 0, 255]], atol=2)
    assert re.findall(r"display:(\w+)", page) == ["block", "none", "none"]
    assert re.findall(r' alt="([^"]*)"', page) == [f"A colour. colour: {c}." for c in "rgb"]


def test_slider_needs_no_network_and_no_script_tag():
    page = figures.slider([GREY, GREY], ["a", "b"], alt="grey")._repr_html_()
    assert "http" not in page and "<script" not in page and " id=" not in page
    assert 'max="1"' in page and 'aria-valuetext="a"' in page


def test_slider_escapes_what_it_is_told():
    page = figures.slider([GREY], ['<b>"x"</b>'], alt='a "b" <c>', title="<i>")._repr_html_()
    assert "<b>" not in page and "<i>" not in page and "<c>" not in page


def test_slider_closes_the_figures_it_takes():
    drawn = [figures.gallery([GREY], alt="x") for _ in range(2)]
    figures.slider(drawn, ["a", "b"], alt="grey")
    assert plt.get_fignums() == []


def test_a_photograph_is_stored_small():
    noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 15, 1, 7)
    assert len(figures.slider([smooth] * 10, list("abcdefghij"), alt="clouds").html) < 300_000


def test_style_is_legible_and_told_apart_without_colour():
    figures.style()
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    assert mpl.rcParams["font.size"] >= 11
    assert len({str(entry["linestyle"]) for entry in cycle}) == len(cycle)
