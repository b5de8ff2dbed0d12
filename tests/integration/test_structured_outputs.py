"""Forms of output on the demo model: what comes out has the form, bombs disturb nobody."""

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from qwen3_ray import LLM, SamplingParams
from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs
from tests.qwen3_ray.text.test_grammar_checker import BOMBS, HIDDEN_BOMBS, LIMIT_S

PROMPT = "It is a truth universally acknowledged, that"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
}
PERSONS = StructuredOutputs(
    json=PERSON, disable_any_whitespace=True, disable_additional_properties=True
)
DATE = StructuredOutputs(regex="[12][0-9]{3}-(0[1-9]|1[0-2])")
CHOICE = StructuredOutputs(choice=["tea", "teapot", "rain"])
NESTED = StructuredOutputs(grammar='root ::= "(" root ")" | [a-z]{3}')


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=256, max_num_seqs=8) as llm:
        yield llm


def params(form: StructuredOutputs, **settings: Any) -> SamplingParams:  # noqa: ANN401
    return SamplingParams(**{"max_tokens": 60, "structured_outputs": form} | settings)


def text_of(llm: LLM, form: StructuredOutputs, **settings: Any) -> str:  # noqa: ANN401
    (request,) = llm.generate([PROMPT], params(form, **settings))
    (output,) = request.outputs
    assert output.finish_reason == "stop"
    return output.text


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.5}])
def test_outputs_have_their_form(llm: LLM, settings: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(text_of(llm, PERSONS, **settings)), PERSON)
    assert re.fullmatch(DATE.regex or "", text_of(llm, DATE, **settings))
    assert text_of(llm, CHOICE, **settings) in (CHOICE.choice or ())
    settings = settings | {"logit_bias": {llm.tokenizer.encode("(")[0]: -3.0}}
    assert re.fullmatch(r"(\()*[a-z]{3}(\))*", text_of(llm, NESTED, **settings))


def test_a_form_is_kept_in_company_with_drafts_and_several_answers(llm: LLM) -> None:
    forms = [PERSONS, DATE, None, CHOICE, NESTED, PERSONS]
    together = [
        SamplingParams(seed=number, max_tokens=40, structured_outputs=form)
        for number, form in enumerate(forms)
    ]
    alone = [llm.generate([PROMPT], one)[0].outputs[0].token_ids for one in together]
    batched = llm.generate([PROMPT] * len(together), together)
    assert [request.outputs[0].token_ids for request in batched] == alone
    (several,) = llm.generate([PROMPT], params(CHOICE, n=4, seed=5))
    assert {output.text for output in several.outputs} <= set(CHOICE.choice or ())


def test_a_form_ends_even_where_the_end_of_text_is_ignored(llm: LLM) -> None:
    assert text_of(llm, CHOICE, ignore_eos=True, min_tokens=20) in (CHOICE.choice or ())


def test_bombs_are_refused_in_time_while_a_stream_keeps_its_pace(llm: LLM) -> None:
    gaps: list[float] = []
    is_bombed = threading.Event()
    bombed: list[float] = []

    def stream() -> None:
        last = time.perf_counter()
        for _ in llm.stream(PROMPT, SamplingParams(max_tokens=240, ignore_eos=True, seed=0)):
            now = time.perf_counter()
            (bombed if is_bombed.is_set() else gaps).append(now - last)
            last = now

    stream()  # undisturbed
    is_bombed.set()
    thread = threading.Thread(target=lambda: [stream() for _ in range(6)])
    thread.start()
    try:
        for form in [*BOMBS.values(), *HIDDEN_BOMBS.values()]:
            text_of(llm, StructuredOutputs(regex=f"[a-c]{{{len(str(form)) % 7 + 1}}}"))
            start = time.perf_counter()
            with pytest.raises(RequestError, match="structured_outputs: "):
                llm.generate([PROMPT], params(StructuredOutputs(**form)))
            assert time.perf_counter() - start < LIMIT_S
    finally:
        thread.join()
    assert statistics.median(bombed) < 3 * statistics.median(gaps)
