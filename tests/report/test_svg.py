import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piip.presets import get_config
from piip.report.sections import bar, percent, table
from piip.report.svg import Series, line_chart, nice_ticks, pyramid_figure

SPACE = "{http://www.w3.org/2000/svg}"


@given(low=st.floats(0, 5), span=st.floats(1e-3, 1e4))
def test_ticks_are_round_and_span_the_data(low, span):
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-6 * span
    assert ticks[-1] >= low + span - 1e-6 * span
    assert 2 <= len(ticks) <= 7


def test_a_chart_is_valid_and_labels_do_not_overlap():
    lines = [Series(f"a<{k}", [(0, 1.0), (10, 0.1 + 0.001 * k)]) for k in range(5)]
    drawing = ET.fromstring(line_chart(lines, "step"))
    assert len(drawing.findall(f"{SPACE}polyline")) == 5
    labels = [text for text in drawing.findall(f"{SPACE}text") if text.text.startswith("a<")]
    heights = sorted(float(text.get("y")) for text in labels)
    assert all(b - a >= 12.9 for a, b in itertools.pairwise(heights))
    height = float(drawing.get("viewBox").split()[3])
    assert all(0 < y < height for y in heights)


def test_a_chart_of_nothing_and_of_one_point():
    assert line_chart([Series("empty", [])], "step") == ""
    one = line_chart([Series("one", [(3.0, 0.5)])], "step")
    assert "NaN" not in one
    drawing = ET.fromstring(one)
    assert len(drawing.findall(f"{SPACE}circle")) == 1, "a line of one point would not be seen"
    assert [text.text for text in drawing.findall(f"{SPACE}text")].count("3") == 1


@pytest.mark.parametrize("name", ["piip_nano", "piip_tsbl_1792_1568_1120_448", "vit_b_1024"])
def test_the_pyramid_shows_every_branch(name):
    config = get_config(name)
    count = config.num_branches
    drawing = ET.fromstring(pyramid_figure(config, [10.0 / k for k in range(1, count + 1)], [64] * count))
    texts = [text.text for text in drawing.iter(f"{SPACE}text")]
    assert {str(branch.image_size) for branch in config.branches} <= set(texts)


def test_tables():
    html = table(["a", "b"], [["<x>", bar(0.5)], ["y", "1"]], total=True)
    assert "&lt;x&gt;" in html
    assert 'style="width:3.50em"' in html
    assert html.count('class="total"') == 1
    assert percent(None) == "-"
    assert percent(0.1234) == "12.3"
