"""Templates: what they may say, what they may not, and that none of them can hold up the Manager."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from app.agents.templating import MASK, Facts, TemplateProblem, as_template, masked, render, secrets_named

FACTS: dict[str, Any] = {
    "hostname": "web-1",
    "tags": ["a", "b"],
    "memory_total": 4096,
    "labels": Facts("labels", {"env": "prod", "items": "x"}),
    "secret": Facts("secret", {"PW": "hunter22"}),
}


@pytest.fixture(autouse=True)
def words(sqlite_app: Flask) -> Iterator[None]:
    with sqlite_app.test_request_context():
        yield


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("{{ 'a' ~ 1 ~ tags }} {{ 'a' + 'b' }} {{ 1 + 2.5 }} {{ [1] + [2] }}", "a1['a', 'b'] ab 3.5 [1, 2]"),
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{{ {'k': a}.k }};{% endfor %}", "31;73;"),
        ("{{ hostname[1:] }} {{ (7 / 3)|round(2) }} {{ tags|tojson }}", 'eb-1 2.33 ["a", "b"]'),
        ("{{ hostname }} {{ labels.env }} {{ secret.PW }}\n", "web-1 prod hunter22\n"),
        ("{% for tag in tags %}{{ loop.index }}{{ tag }};{% endfor %}", "1a;2b;"),
        ("{% if 'a' in tags and labels.role is not defined %}yes{% endif %}", "yes"),
        ("{{ labels.role|default('none') }} {{ labels['env']|upper }}", "none PROD"),
        ("{% for key, value in labels.items() %}{{ key }}={{ value }} {% endfor %}", "env=prod items=x "),
        ("{{ memory_total // 4 }} {{ tags|join(',') }} {{ hostname|replace('web', 'db') }}", "1024 a,b db-1"),
        ("{% raw %}{{ untouched }}{% endraw %}", "{{ untouched }}"),
    ],
)
def test_what_a_template_may_say(text: str, made: str) -> None:
    assert render(text, FACTS) == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb {{ labels.role }}", "Line 2: labels.role is not set"),
        ("{{ nothing }}", "There is nothing called nothing"),
        ("{% if %}", "Line 1"),
        ("{{ ''.__class__ }}", "__class__"),
        ("{{ hostname.__class__.__mro__ }}", "__class__"),
        ("{{ hostname|attr('__class__') }}", "no filter attr"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "can be called"),
        ("{{ range(5) }}", "can be called"),
        ("{{ '{0.__class__}'.format(hostname) }}", "can be called"),
        ("{% set x = 1 %}", "Assign"),
        ("{% include '/etc/passwd' %}", "Include"),
        ("{% macro m() %}{% endmacro %}", "Macro"),
        ("{{ 2 ** 64 }}", "Pow"),
        ("{{ 'x' * 1000000000 }}", "numbers only"),
        ("{{ '%0999999999d' % 1 }}", "numbers only"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ secret[hostname] }}", "secret.NAME"),
        ("{% for a in tags recursive %}{% endfor %}", "recursive"),
        ("x" * 200_000, "characters"),
    ],
)
def test_what_it_may_not(text: str, words: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        render(text, FACTS)
    assert words in str(caught.value)


LONG = "x" * 30_000
ENDLESS = (
    f"{{% for a in '{LONG}' %}}{{% for b in '{LONG}' %}}{{% endfor %}}{{% endfor %}}",
    f"{{% for a in '{'y' * 15_000}' %}}{LONG}{{% endfor %}}",
    f"{{{{ '{LONG}'|join('{LONG}') }}}}",
    f"{{{{ '{LONG}'|replace('x', '{LONG}') }}}}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    f"{{% for a in ['{LONG}'] %}}{{% if {' ~ '.join(['a'] * 20_000)} %}}{{% endif %}}{{% endfor %}}",
    f"{{% for a in ['{LONG}'] %}}{{% if {' + '.join(['a'] * 60)} %}}{{% endif %}}{{% endfor %}}",
    "{% for a in [tags] %}"
    + "".join(f"{{% for {y} in [[{','.join([x] * 200)}]] %}}" for x, y in zip("abcdef", "bcdefg", strict=True))
    + "{% if g|string %}{% endif %}"
    + "{% endfor %}" * 7,
    f"{{% for a in '{'y' * 15_000}' %}}{'{% if 1 < 2 %}{% endif %}' * 5000}{{% endfor %}}",
    f"{{% for a in '{'y' * 15_000}' %}}{{{{ '{LONG}'|upper|length }}}}{{% endfor %}}",
    "{% for a in tags %}" * 9 + "{% endfor %}" * 9,
    "{% for a in tags %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "9" * 4000 + "*9" * 1000 + " }}",
    "{{ 1.5|round(1000000000, 'floor') }}",
    "{{ 1|round(1000000000, 'floor') }}",
    "{{ tags|tojson(indent=1000000000) }}",
    "{{ " + "9" * 5000 + " }}",
    "{% if true %}" * 120 + "{% endif %}" * 120,
    "{{ " + "not " * 900 + "x }}",
    "{{ labels.items.x.y() }}",
)


@pytest.mark.parametrize("text", ENDLESS)
def test_none_holds_up_the_manager(text: str) -> None:
    began = time.process_time()
    with pytest.raises(TemplateProblem):
        render(text, FACTS)
    assert time.process_time() - began < 2


def test_secrets_are_named_masked_and_found_again() -> None:
    assert secrets_named("{{ secret.B }} {% if secret['A'] %}{% endif %}") == ("A", "B")
    assert masked("password=hunter22;", ["hunter22"]) == f"password={MASK};"
    theirs = "a {{ b }} {% c %} {# d hunter22 %}\n"
    template = as_template(theirs, {"PW": "hunter22"})
    assert "hunter22" not in template
    assert render(template, FACTS) == theirs
