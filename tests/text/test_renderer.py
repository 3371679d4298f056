"""The render process: what templates may take, and that a hostile one harms nobody else."""

import threading

import pytest

from corral.text import renderer as renderer_module
from corral.text.render_frames import TemplateFailed
from corral.text.renderer import Renderer

DOUBLING = """
{%- set box = namespace(text='x' * 1000) -%}
{%- for _ in range(40) -%}{%- set box.text = box.text ~ box.text -%}{%- endfor -%}
{{- box.text | length -}}
"""
PADDED = "{{ '%900000000s' | format('x') | length }}"
ENDLESS = "{% for a in range(9000) %}{% for b in range(9000) %}{{ a }}{% endfor %}{% endfor %}"


@pytest.fixture
def renderer():
    renderer = Renderer()
    yield renderer
    renderer.close()


def test_a_template_is_rendered(renderer):
    source = "{{ greeting }}, {{ messages[0].content | upper }}!"
    context = {"greeting": "hello", "messages": [{"content": "world"}]}
    assert renderer.render(source, context) == "hello, WORLD!"


def test_failures_have_their_kind(renderer):
    with pytest.raises(TemplateFailed) as syntax:
        renderer.render("{% if", {})
    with pytest.raises(TemplateFailed) as raised:
        renderer.render("{{ raise_exception('no system role') }}", {})
    with pytest.raises(TemplateFailed) as failed:
        renderer.render("{{ 1 / nothing }}", {})
    kinds = [error.value.kind for error in (syntax, raised, failed)]
    assert kinds == ["syntax", "raised", "failed"]
    assert raised.value.message == "no system role"


@pytest.mark.parametrize("source", [DOUBLING, PADDED, ENDLESS], ids=["doubling", "padding", "steps"])
def test_a_hostile_template_costs_its_own_rendering_only(renderer, source):
    with pytest.raises(TemplateFailed):
        renderer.render(source, {})
    assert renderer.render("{{ x }}", {"x": "fine"}) == "fine"


def test_a_rendering_that_does_not_end_is_ended(renderer, monkeypatch):
    monkeypatch.setattr(renderer_module, "TIME_LIMIT", 0.0)
    with pytest.raises(TemplateFailed, match="memory or time"):
        renderer.render("{{ x }}", {"x": "late"})
    monkeypatch.undo()
    assert renderer.render("{{ x }}", {"x": "again"}) == "again"


def test_what_cannot_be_sent_leaves_the_process_usable(renderer):
    with pytest.raises(TypeError):
        renderer.render("{{ x }}", {"x": object()})
    assert renderer.render("{{ x }}", {"x": 1}) == "1"


def test_many_threads_share_one_process(renderer):
    said = {}

    def ask(number):
        said[number] = renderer.render("{{ x }}" * 50, {"x": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: str(number) * 50 for number in range(16)}
