"""What the threads of a compiled kernel do: read from Triton's own code for GPUs, `ttgir`."""

import re
from collections.abc import Iterator
from operator import mul

_LAYOUT = re.compile(r"^#(?!loc)(\w+) = (.*)$", re.MULTILINE)
_DERIVED = re.compile(
    r"(%\w+) = (?:tt\.(?:addptr|splat|broadcast|expand_dims)|ttg\.convert_layout) (%\w+)"
)
_POINTERS = re.compile(r"(%\w+): !tt\.ptr<")
_PLACE = re.compile(r" loc\((?:[^()]|\([^()]*\))*\)")
_LOAD, _STORE = re.compile(r"tt\.load (%\w+).*"), re.compile(r"tt\.store (%\w+)")
_TILE = re.compile(r"tensor<([\dx]+)x!tt\.ptr<\w+>, #(\w+)>$")
_BLOCKED = re.compile(
    r"blocked<\{"
    + ", ".join(
        rf"{field} = \[([\d, ]+)\]" for field in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
    )
)
_REDUCTION = re.compile(r'"tt\.reduce".*?axis = (\d).*?\}\) : \((.*?)\) ->', re.DOTALL)
_ROWS, _ONLY_COLUMNS = re.compile(r"tensor<\d+x(\d+x)"), r"tensor<\1"
_WARPS_OF_ROWS = re.compile(r"warpsPerCTA = \[\d+, 1\]")


def read_and_written_by_several(ttgir: str) -> list[str]:
    """Parameters to which a program stores, and of which threads of several warps load an element.

    One that is late may find what another thread has stored in its place.
    """
    layouts, code = _split(ttgir)
    origins = {name: name for name in _POINTERS.findall(code)}
    for result, source in _DERIVED.findall(code):
        if source in origins:
            origins[result] = origins[source]
    written = {origins.get(pointer) for pointer in _STORE.findall(code)}
    shared = {
        origins.get(match[1])
        for match in _LOAD.finditer(code)
        if _is_loaded_by_several(match[0], layouts)
    }
    return sorted(name.removeprefix("%") for name in written & shared if name)


def _is_loaded_by_several(load: str, layouts: dict[str, str]) -> bool:
    tile = _TILE.search(load)
    if tile is None:  # a number, which all threads load
        return True
    blocked = _BLOCKED.search(layouts[tile[2]])
    if blocked is None:
        return False
    shape = map(int, tile[1].split("x"))
    elements, threads, warps = (map(int, field.split(",")) for field in blocked.groups())
    return any(map(_is_less, shape, map(mul, elements, threads), warps))


def _is_less(size: int, of_warp: int, warps: int) -> bool:
    return size < of_warp * warps and warps > 1


def sums(ttgir: str) -> list[str]:
    """How floats are summed up, or compared, along rows of tiles: the order of it.

    That of all kernels is the same that have the same here, whatever the number of rows is.
    """
    layouts, code = _split(ttgir)
    return [
        f"axis {axis} of {_ROWS.sub(_ONLY_COLUMNS, _WARPS_OF_ROWS.sub('', operand))}"
        for axis, operand in _REDUCTION.findall(_named(code, layouts))
        if "xf" in operand
    ]


def _split(ttgir: str) -> tuple[dict[str, str], str]:
    """Its layouts by name, and the rest of it without places in the source."""
    code = "\n".join(_without_places(ttgir))
    return dict(_LAYOUT.findall(code)), code


def _without_places(ttgir: str) -> Iterator[str]:
    for line in ttgir.splitlines():
        if not line.startswith("#loc"):
            yield _PLACE.sub("", line)


def _named(text: str, layouts: dict[str, str]) -> str:
    return re.sub(r"#(\w+)\b", lambda match: layouts.get(match[1], match[0]), text)
