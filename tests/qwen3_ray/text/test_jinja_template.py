"""What templates may do, and what keeps their accidents small."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from qwen3_ray.errors import CheckpointError, RequestError
from qwen3_ray.text.jinja_template import MAX_LOOP_TURNS, MAX_TEXT_LENGTH, JinjaTemplate


def render(source: str, **variables: object) -> str:
    return JinjaTemplate(source, file=Path("template")).render(variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}", "x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for i in x %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
            "1/2False 2/2True ",
        ),
        ("{% for i in x if i > 1 %}{{ i }}{% else %}none{% endfor %}", "2"),
        ("{% for i in nothing %}{{ i }}{% else %}none{% endfor %}", "none"),
        ("{% for i in tree recursive %}{{ i.n }}{{ loop(i.t) }}{% endfor %}", "12"),
        ("{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", "a1b2"),
        ("{{ d | tojson }}", '{"a": 1, "b": 2}'),
        ("{{ '<é>' | tojson }}{{ '<é>' | tojson(ensure_ascii=true) }}", '"<é>""<\\u00e9>"'),
        ("{{ d | tojson(indent=1) }}", '{\n "a": 1,\n "b": 2\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{% generation %}own{% set y = 1 %}{% endgeneration %}{{ y is defined }}", "ownFalse"),
        (
            "{% set ns = namespace(n=0) %}{% for i in x %}{% set ns.n = i %}{% endfor %}{{ ns.n }}",
            "2",
        ),
    ],
)
def test_templates_have_what_hugging_face_gives_them(source: str, text: str) -> None:
    tree = [{"n": 1, "t": [{"n": 2, "t": []}]}]
    assert render(source, x=[1, 2], d={"a": 1, "b": 2}, tree=tree) == text


def test_templates_know_the_time() -> None:
    before = datetime.now().strftime("%d %b %Y")
    text = render("{{ strftime_now('%d %b %Y') }}")
    assert text in (before, datetime.now().strftime("%d %b %Y"))


def test_a_template_s_own_refusal_reaches_the_client() -> None:
    with pytest.raises(RequestError, match="refuses them: Roles must alternate") as info:
        render("{{ raise_exception('Roles must alternate') }}")
    assert info.value.param == "messages"


@pytest.mark.parametrize("source", ["{{ x + 'text' }}", "{{ x.no.way }}", "{{ x / 0 }}"])
def test_what_cannot_be_rendered_is_the_messages_fault(source: str) -> None:
    with pytest.raises(RequestError) as info:
        render(source, x=1)
    assert info.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ x.append(1) }}",
        "{{ d.update({'a': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format(x) }}",
        "{{ range(1000000000) | length }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    x, d = [1], {"b": 2}
    with suppress(CheckpointError, RequestError):
        assert render(source, x=x, d=d) == ""  # an attribute that is not there for it
    assert (x, d) == ([1], {"b": 2})


def test_loops_without_end_are_ended() -> None:
    with pytest.raises(RequestError, match=f"more than {MAX_LOOP_TURNS} turns"):
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(RequestError, match="turns"):
        render(
            "{% macro f() %}{% for b in range(9999) %}{% endfor %}{% endmacro %}"
            "{% for a in range(9999) %}{{ f() }}{% endfor %}"
        )
    with pytest.raises(RequestError, match="RecursionError"):
        render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


def test_a_text_without_end_is_ended() -> None:
    with pytest.raises(RequestError, match=f"more than {MAX_TEXT_LENGTH} characters"):
        render("{% for a in range(99999) %}{{ x }}{% endfor %}", x="x" * 1000)
    assert len(render("{% for a in range(9999) %}{{ x }}{% endfor %}", x="x" * 1000)) == 9_999_000


def test_the_limits_hold_for_each_rendering() -> None:
    template = JinjaTemplate("{% for a in range(90000) %}{% endfor %}done", file=Path("template"))
    for _ in range(12):
        assert template.render({}) == "done"
