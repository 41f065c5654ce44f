"""Figures of studies: which there are, and how they print."""

import dataclasses
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import repro.study as studies
from metrics.files import InputError
from repro.drawing import STYLE, save
from repro.report import figures, gallery
from repro.report.gallery import curve_families, draw_figures, read_previews
from repro.verdicts import measures

ROOT = Path(__file__).parents[3]


def check_figure(name, figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) >= 7
    assert figure.get_figwidth() in (3.4, 7.0)
    for ax in figure.axes:
        if ax.get_visible() and ax.lines:
            assert ax.get_xlabel()
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert not any(box.overlaps(ax.get_window_extent(renderer)) for ax in figure.axes), name


def test_figures_print_at_seven_points_or_more_with_labelled_axes(default, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery, "save", lambda figure, stem: drawn.append((stem.name, figure)))
    summary = measures.summarise(default, measures.read(default))
    draw_figures(default, default.out / "report", summary, read_previews(default))
    assert len(drawn) == 7
    with matplotlib.rc_context(STYLE):
        for name, figure in drawn:
            check_figure(name, figure)


def test_a_figure_is_the_same_bytes_every_time(tmp_path):
    rows = pd.DataFrame({"configuration": ["a", "b"], "method": ["cfg", "x"], "metric": "fid", "mean": 1.0})
    for name in ("once", "again"):
        save(figures.draw_methods(rows.assign(min=0.9, max=[1.1, 1.2]), ["fid"]), tmp_path / name)
    for suffix in (".png", ".svg"):
        first, second = ((tmp_path / name).with_suffix(suffix).read_bytes() for name in ("once", "again"))
        assert first == second


def test_curves_that_name_no_figure_stand_in_that_of_their_axis(default):
    base = default.sweeps["digits-sweep-autoguidance"]
    ema = default.sweeps["digits-sweep-main-ema"]
    sweeps = {
        "a": base,
        "b": dataclasses.replace(base, method="cfg", figures={"training": "1 M images"}),
        "a2": base,
        "c": ema,
        "d": dataclasses.replace(ema, method="cfg"),
    }
    families = curve_families(dataclasses.replace(default, sweeps=sweeps, claims=[]))
    assert families == {
        ("guidance", ""): {"a": "autoguidance", "a2": "autoguidance (a2)"},
        ("training", ""): {"b": "1 M images"},
        ("ema", ""): {"c": "main network, autoguidance", "d": "main network, CFG"},
    }


def test_a_figure_that_cannot_show_a_curve_is_refused(default):
    with pytest.raises(InputError, match="over guidance"):
        dataclasses.replace(default.sweeps["digits-sweep-cfg"], figures={"ema": ""})


def test_curves_of_the_imagenet_studies_part_into_the_papers_figures():
    families = {}
    for name in ("sensitivity512", "corruptions512"):
        families |= curve_families(studies.load(ROOT / "studies" / f"{name}.yaml"))
    labels = {name: list(family.values()) for name, family in families.items()}
    methods = ["autoguidance", "cfg", "interval"]
    assert labels == {
        ("guidance", "fid"): methods,
        ("guidance", "fd_dinov2"): methods,
        ("training", ""): ["134.2 M images", "67.11 M images", "268.4 M images"],
        ("capacity", ""): ["edm2-img512-xs", "edm2-img512-s", "edm2-img512-xxs"],
        ("corruptions", ""): [
            "dropout 5% / dropout 10%",
            "input noise 10% / input noise 20%",
            "dropout 5% / input noise 20%",
            "input noise 10% / dropout 10%",
        ],
        ("ema", ""): ["main network", "guide"],
    }


def test_fid_and_fd_dinov2_of_a_configuration_make_a_point():
    rows = [("a", "cfg", "fid", 2.2), ("a", "cfg", "fd_dinov2", 52.0), ("b", "autoguidance", "fid", 1.3)]
    rows += [("b", "autoguidance", "fd_dinov2", 36.0), ("c", "cfg", "fid", 9.0)]
    with matplotlib.rc_context(STYLE):
        figure = figures.draw_scatter(
            pd.DataFrame(rows, columns=["configuration", "method", "metric", "min"]), "fid", "fd_dinov2"
        )
        check_figure("scatter", figure)
    points = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert points == [([2.2], [52.0]), ([1.3], [36.0])]


def test_no_two_of_many_methods_look_alike():
    styles = [figures.look(f"method {place}", place) for place in range(18)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 18
