"""A chat template comes with a model from elsewhere: none leaves Jinja's sandbox."""

import copy
import os
from pathlib import Path

import pytest

from spin.data.chat_templates import Message, Unrenderable, choose_template
from tests.data.tokenizer_kinds import tokenizer_of

MESSAGES: list[Message] = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}]

RUN = "popen('touch FLAG').read()"
HOSTILE = {
    "the classes of an object": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by a string": "{{ ''['__cl' + 'ass__'] }}",
    "a class by a filter": "{{ messages|attr('__class__') }}",
    "classes of all elements": "{{ messages|map(attribute='__class__')|list }}",
    "a class in a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a class in a format of keys": "{{ '{x.__class__.__mro__}'.format_map({'x': 0}) }}",
    "the globals of cycler": "{{ cycler.__init__.__globals__.os." + RUN + " }}",
    "the globals of joiner": "{{ joiner.__init__.__globals__['os']." + RUN + " }}",
    "the globals of namespace": "{{ namespace.__init__.__globals__.os." + RUN + " }}",
    "the globals of lipsum": "{{ lipsum.__globals__['os']." + RUN + " }}",
    "the globals of raise_exception": "{{ raise_exception.__globals__['__builtins__']['__import__']('os')."
    + RUN
    + " }}",
    "the globals of strftime_now": "{{ strftime_now.__globals__['sys'].modules['os']." + RUN + " }}",
    "the context": "{{ self._TemplateReference__context.eval(\"__import__('os')." + RUN + '") }}',
    "the frame of a generator": "{{ (messages|map('upper')).gi_frame.f_back.f_builtins }}",
    "the code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os." + RUN + " }}",
    "a change of the row": "{{ messages.append(messages[0]) }}",
    "a change of a turn": "{{ messages[0].update({'content': 'other'}) }}",
    "a range without end": "{% for i in range(1000000000) %}x{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_or_writes_nothing_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    template = tmp_path / "own.jinja"
    template.write_text(HOSTILE[name])
    messages = copy.deepcopy(MESSAGES)
    tokenizer = tokenizer_of("byte_level")
    try:
        text = choose_template(tokenizer, str(template), {}).render(tokenizer, messages)
    except Unrenderable:
        text = ""
    assert text.replace("Undefined", "").strip(" [],") == ""
    assert messages == MESSAGES
    assert os.listdir(tmp_path) == ["own.jinja"]
