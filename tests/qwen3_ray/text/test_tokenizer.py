"""The tokenizer against the `tokenizers` library's own decode, on the demo model's files."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError, RequestError
from qwen3_ray.text.output_processor import OutputProcessor
from qwen3_ray.text.tokenizer import Tokenizer, find_tokenizer

DEMO = Tokenizer.load(DEMO_MODEL_DIR)
LIBRARY = tokenizers.Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json"))
ENDOFTEXT, THINK = 4070, 4094
# Half of the ids from the single bytes, so that broken and rejoined characters are common.
IDS = st.lists(
    st.one_of(st.integers(0, 255), st.integers(0, 4_095), st.integers(4_060, 4_100)), max_size=40
)


@settings(max_examples=300, deadline=None)
@given(token_ids=IDS, skip=st.booleans())
def test_decode_equals_the_librarys(token_ids: list[int], skip: bool) -> None:
    expected = LIBRARY.decode(token_ids, skip_special_tokens=skip)
    assert DEMO.decode(token_ids, skip_special_tokens=skip) == expected
    bytes_of = DEMO.output_bytes if skip else DEMO.token_bytes
    assert b"".join(map(bytes_of, token_ids)).decode(errors="replace") == expected


def test_every_token_has_the_librarys_text() -> None:
    assert DEMO.num_tokens == LIBRARY.get_vocab_size() == 4_096
    for token_id in range(DEMO.num_tokens):
        expected = LIBRARY.decode([token_id], skip_special_tokens=False)
        assert DEMO.token_bytes(token_id).decode(errors="replace") == expected


def test_the_tokens_hold_every_byte() -> None:
    assert {DEMO.token_bytes(token_id) for token_id in range(256)} == {
        bytes([byte]) for byte in range(256)
    }


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
@example(text="Hello, 世界 🎉 e\u0301 <|im_end|><think>\n\n\tI'm  1234")
def test_encoded_text_comes_back_normalised_and_streams_to_the_same(text: str) -> None:
    token_ids = DEMO.encode(text)
    assert token_ids == LIBRARY.encode(text, add_special_tokens=False).ids
    processor = OutputProcessor(DEMO.token_bytes)
    pieces = [processor.push([token_id]).text for token_id in token_ids]
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    assert "".join(pieces) == LIBRARY.decode(token_ids, skip_special_tokens=False)


def test_control_tokens_are_left_out_of_texts_but_think_tags_are_not() -> None:
    token_ids = DEMO.encode("<think>Hi</think><|im_end|><|endoftext|>")
    assert token_ids[-1] == ENDOFTEXT
    assert DEMO.decode(token_ids) == "<think>Hi</think>"
    assert DEMO.decode(token_ids, skip_special_tokens=False).endswith("<|im_end|><|endoftext|>")
    assert DEMO.output_bytes(ENDOFTEXT) == b""
    assert DEMO.output_bytes(THINK) == DEMO.token_bytes(THINK) != b""
    assert DEMO.output_bytes(0) == DEMO.token_bytes(0) != b""


def test_encode_adds_nothing_even_if_the_file_says_so(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json"))
    library.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", ENDOFTEXT)]
    )
    write(tmp_path, library.to_str())
    assert library.encode("a").ids == [ENDOFTEXT, *DEMO.encode("a")]
    assert Tokenizer.load(tmp_path).encode("a") == DEMO.encode("a")
    assert DEMO.encode("") == []


@pytest.mark.parametrize("token_id", [-1, 4_096, 151_935])
def test_an_id_without_a_token_has_no_text(token_id: int) -> None:
    assert DEMO.token_bytes(token_id) == b""
    assert DEMO.output_bytes(token_id) == b""
    assert DEMO.decode([token_id]) == ""


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="surrogate pair at character 2") as info:
        DEMO.encode("ab\ud83c")
    assert info.value.param == "prompt"


def write(model_dir: Path, text: str) -> Path:
    path = model_dir / "tokenizer.json"
    path.write_text(text)
    return path


def demo_json() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEMO_MODEL_DIR / "tokenizer.json").read_text())
    return document


def test_a_directory_without_a_tokenizer_is_told_from_one_with(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    found = find_tokenizer(DEMO_MODEL_DIR)
    assert found is not None
    assert found.num_tokens == 4_096
    with pytest.raises(CheckpointError, match="does not exist") as info:
        Tokenizer.load(tmp_path)
    assert info.value.file == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("cut", [0, 2, 5_000], ids="{} characters".format)
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    whole = (DEMO_MODEL_DIR / "tokenizer.json").read_text()
    path = write(tmp_path, whole[:cut])
    for load in (Tokenizer.load, find_tokenizer):
        with pytest.raises(CheckpointError, match="is not a tokenizer: ") as info:
            load(tmp_path)
        assert info.value.file == str(path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(demo_json() | {"decoder": {"type": "Fuse"}}))
    with pytest.raises(CheckpointError, match="not a byte-level tokenizer"):
        Tokenizer.load(tmp_path)


def test_gaps_between_ids_are_refused(tmp_path: Path) -> None:
    document = demo_json()
    vocab = document["model"]["vocab"]
    vocab[max(vocab, key=vocab.__getitem__)] = 5_000
    write(tmp_path, json.dumps(document))
    with pytest.raises(CheckpointError, match="none with id 4069"):
        Tokenizer.load(tmp_path)


def test_padding_and_truncation_in_the_file_are_switched_off(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json"))
    library.enable_truncation(max_length=3)
    library.enable_padding(length=8, pad_id=ENDOFTEXT)
    write(tmp_path, library.to_str())
    tokenizer = Tokenizer.load(tmp_path)
    for text in ("a", "one two three four five six seven"):
        assert tokenizer.encode(text) == DEMO.encode(text)


def test_added_tokens_read_as_in_the_library(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json"))
    library.add_tokens(["two words", "<工具>", "caf\u00e9", "\u0120x"])
    library.add_special_tokens(["<|特别|>"])
    write(tmp_path, library.to_str())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.num_tokens == 4_101
    for skip in (False, True):
        for token_id in range(4_090, 4_101):
            expected = library.decode([token_id], skip_special_tokens=skip)
            assert tokenizer.decode([token_id], skip_special_tokens=skip) == expected
    assert tokenizer.token_bytes(4_096) == b"two words"
    assert tokenizer.token_bytes(4_097) == "<工具>".encode()
    assert tokenizer.output_bytes(4_100) == b""
