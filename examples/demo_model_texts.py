"""The public-domain texts that the demo model learns from, read out of Debian packages."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

ASKS = [
    "What does {w} mean?",
    "What is {a} {w}?",
    "Define the word {w}.",
    "Tell me what {a} {w} is.",
]


def kjv_chapters() -> list[str]:
    """One document a chapter, verse numbers dropped, from Debian's `bible` program."""
    command = ["bible", "-f", "gen1:1-rev22:21"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    chapters: dict[str, list[str]] = {}
    for line in out.stdout.splitlines():
        ref, _, verse = line.partition(" ")
        chapters.setdefault(ref.split(":")[0], []).append(verse.strip())
    return [" ".join(verses) for verses in chapters.values()]


def _rdb_strings(path: Path) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load file: length-prefixed zlib blocks of XDR data."""
    blob, at = path.read_bytes(), 0
    while at + 4 < len(blob):
        unzip = zlib.decompressobj()
        raw = unzip.decompress(blob[at + 4 :])
        at = len(blob) - len(unzip.unused_data)
        found, i = [], 0
        while (i := raw.find(b"\x09", i)) >= 0 and i + 5 <= len(raw):
            size = struct.unpack(">i", raw[i + 1 : i + 5])[0]
            if raw[i - 3 : i] in (b"\x00\x04\x00", b"\x00\x00\x00") and 0 <= size < 400:
                found.append(raw[i + 5 : i + 5 + size].decode("utf-8", "replace"))
                i += 5 + size
            else:
                i += 1
        yield found


def austen_chapters(path: Path) -> list[str]:
    """Chapters of the six novels in janeaustenr's `Rdata.rdb`."""
    docs = []
    for lines in _rdb_strings(path):
        if len(lines) < 2000:
            continue
        text = re.sub(r"[_*]", "", "\n".join(lines))
        for chapter in re.split(r"\n(?=(?:CHAPTER|Chapter)\s+[IVXLC\d]+)", text):
            paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", chapter)]
            body = "\n".join(p for p in paragraphs if len(p) > 20)
            if len(body) > 500:
                docs.append(body)
    return docs


def _wordnet_glosses(folder: Path) -> Iterator[tuple[str, str]]:
    for line in (folder / "data.noun").read_text("utf-8").splitlines():
        if line.startswith("  ") or "|" not in line:
            continue
        head, gloss = line.split("|", 1)
        word = head.split()[4].replace("_", " ")
        gloss = gloss.split(";")[0].strip()
        if word.isalpha() and word.islower() and 20 < len(gloss) < 160:
            yield word, gloss


def wordnet_chats(folder: Path, limit: int, rng: random.Random) -> list[str]:
    """Short question-and-answer turns in ChatML, made from WordNet's glosses."""
    rows = list(_wordnet_glosses(folder))
    rng.shuffle(rows)
    docs = []
    for word, gloss in rows[:limit]:
        art = "an" if word[0] in "aeiou" else "a"
        ask = rng.choice(ASKS).format(w=word, a=art)
        lead = rng.choice([f"{art.capitalize()} {word} is ", f"The word {word} means: ", ""])
        text = lead + gloss
        answer = text[0].upper() + text[1:] + "."
        docs.append(
            f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        )
    return docs
