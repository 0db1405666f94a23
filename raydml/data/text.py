"""A text in; whole token ids out, by hashed character n-grams or by a tokenizer that travels with the model."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from raydml.errors import DataError, SpecError
from raydml.spec import NgramsText, TextSpec

PADDING = -1  # in place of an id: no token


@dataclass(frozen=True)
class Ngrams:
    """Every run of `shortest` to `longest` characters, as the CRC-32 of its UTF-8 bytes: ids in [0, 2^32).

    The text is normalised (NFKC), case-folded, its white space made single spaces, and one space put at either end.
    Runs follow one another by where they begin, shorter ones first.
    """

    shortest: int
    longest: int
    kind: Literal["ngrams"] = "ngrams"
    num_ids: int = 1 << 32

    def ids(self, text: str, length: int) -> list[int]:
        """The first `length` ids of the text."""
        words = unicodedata.normalize("NFKC", text).casefold().split()
        padded = f" {' '.join(words)} "
        found: list[int] = []
        for start in range(len(padded)):
            for size in range(self.shortest, min(self.longest, len(padded) - start) + 1):
                found.append(zlib.crc32(padded[start : start + size].encode()))
            if len(found) >= length:
                break
        return found[:length]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library; `content` is its tokenizer.json, special tokens included."""

    content: str
    num_ids: int
    kind: Literal["tokenizer"] = "tokenizer"

    def ids(self, text: str, length: int) -> list[int]:
        """At most `length` ids of the text; a longer one is cut before its closing special tokens."""
        encoded: list[int] = _loaded(self.content, length).encode(text).ids
        return encoded


TextRule = Ngrams | Tokenizer


def text_rule(spec: TextSpec) -> TextRule:
    """What the spec asks for. SpecError where the tokenizer's folder cannot be read."""
    if isinstance(spec, NgramsText):
        return Ngrams(spec.shortest, spec.longest)
    return _from_folder(Path(spec.path).expanduser())


def text_rule_from_dict(values: Mapping[str, Any]) -> TextRule:
    """The inverse of `dataclasses.asdict`."""
    kinds: dict[str, Callable[..., TextRule]] = {"ngrams": Ngrams, "tokenizer": Tokenizer}
    return kinds[values["kind"]](**values)


def token_ids(rule: TextRule, text: Any, length: int) -> list[int]:
    """Ids of a text, `PADDING` up to `length`; DataError for what is no text or holds nothing."""
    if not isinstance(text, str):
        raise DataError(f"this model takes texts, not a {type(text).__name__}")
    if not text.strip():
        raise DataError("the text is empty")
    ids = rule.ids(text, length)
    return ids + [PADDING] * (length - len(ids))


def _from_folder(folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise SpecError(f"data.text.path: {folder} is no folder: name one with a saved tokenizer (tokenizer.json)")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        content = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise SpecError(f"data.text.path: {folder} cannot be read as a tokenizer: {error}") from error
    return Tokenizer(content, len(tokenizer))


@lru_cache(maxsize=4)
def _loaded(content: str, length: int) -> Any:
    from tokenizers import Tokenizer as Library

    loaded = Library.from_str(content)
    loaded.no_padding()
    loaded.enable_truncation(length)
    return loaded
