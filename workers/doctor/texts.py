"""The texts of an examination: empty, one character, several scripts, code, rare tokens, over-long."""

import random
from collections.abc import Callable, Sequence

__all__ = ["make_texts"]

COUNT = 200
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "How do I reset the password of a locked account?",
    "Der Zug nach Köln fährt heute 25 Minuten später von Gleis 7 ab.",
    "La mémoire des modèles dépend surtout de la longueur des textes.",
    "El índice vectorial se reconstruye cada noche a las 02:30.",
    "向量检索把文本变成数字，然后比较它们之间的距离。",
    "ベクトル検索では、文書と質問を同じ空間に置いて比べます。",
    "벡터 검색은 문서와 질문을 같은 공간에서 비교합니다.",
    "Векторный поиск сравнивает смысл, а не отдельные слова.",
    "البحث المتجه يقارن المعاني لا الكلمات.",
    "חיפוש וקטורי משווה משמעות ולא מילים.",
    "वेक्टर खोज शब्दों की नहीं, अर्थ की तुलना करती है।",
    "การค้นหาแบบเวกเตอร์เปรียบเทียบความหมาย",
    "Η αναζήτηση διανυσμάτων συγκρίνει νοήματα.",
    "def cosine(a, b):\n    return (a @ b) / (norm(a) * norm(b))",
    'SELECT id, embedding <=> $1 AS distance FROM documents WHERE lang = "en" LIMIT 10;',
    '{"model": "all", "input": ["a", "b"], "dimensions": 256, "ok": true}',
    "https://example.org/a/b?c=d&e=%20f#g and someone@example.org",
    "1234567890 3.14159 1e-12 0xFF $1,299.00 25 % 12/31/2026",
)
_ODD = (
    "",
    "a",
    "é",
    "水",
    ".",
    " ",
    "\n\t ",
    "ﬁ ligature, ½, ①, Ａ full width",
    "e\u0301 decomposed and \u00e9 composed",
    "zero\u200bwidth, soft\u00adhyphen, no\u00a0break",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    "!!!???...",
    "UPPER lower MiXeD",
    "antidisestablishmentarianism" * 12,
    "<s> </s> [CLS] [SEP] <|endoftext|>",
    "a\x00b\x07c",
)


def make_texts(max_tokens: int, draw_own: Callable[[random.Random, int], str]) -> list[str]:
    """Return 200 texts, the same ones for the same model.

    Args:
        max_tokens: what the model reads; three texts are longer.
        draw_own: returns a text of so many tokens of the model's own vocabulary, most of which are rare.
    """
    draw = random.Random(0)  # noqa: S311 - no secret
    words = " ".join(_SENTENCES).split()
    long = [_mix(draw, words, max_tokens + 40), draw_own(draw, max_tokens + 40), _SENTENCES[5] * (max_tokens // 8 + 3)]
    texts = [*_ODD, *_SENTENCES, *long]
    while len(texts) < COUNT:
        length = min(draw.choice((1, 2, 3, 5, 8, 13, 21, 40, 70, 110)), max_tokens)
        texts.append(draw_own(draw, length) if len(texts) % 3 == 0 else _mix(draw, words, length))
    return texts


def _mix(draw: random.Random, words: Sequence[str], count: int) -> str:
    return " ".join(draw.choices(words, k=count))
