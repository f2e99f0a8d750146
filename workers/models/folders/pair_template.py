"""How a query and a document are written for a language model that ranks them, and where it says yes.

Owns the templates of known rerankers, as their authors' code writes them, and reading one from a folder's chat
template. Turns no text into ids (`pair_tokenizer`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.errors import ConfigError

__all__ = ["TEMPLATES", "PairTemplate", "read_chat_template"]


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """How a pair becomes one row. All texts but `default_instruction` and `yes` are format strings.

    Attributes:
        query: with `{query}`, and `{instruction}` if it stands there.
        document: with `{document}`.
        prefix: what comes first, read as a text of its own.
        separator: a text of its own between query and document; None: both are read as one text.
        suffix: texts that follow, each read by itself; one may hold `{instruction}`.
        begins: whether a row begins with the token of the beginning, where the tokenizer has one.
        yes: the token, or its id, whose logit is the score.
        no: likewise, what is subtracted; empty: nothing.
        default_instruction: what stands where nobody gives an instruction.
        without: the template where there is no instruction at all; None: there always is one.
    """

    query: str
    document: str
    prefix: str = ""
    separator: str | None = None
    suffix: tuple[str, ...] = ()
    begins: bool = False
    yes: str | int = "yes"
    no: str | int = ""
    default_instruction: str = ""
    without: "PairTemplate | None" = None


# The transformers code on the page of Qwen/Qwen3-Reranker-0.6B.
_QWEN3 = PairTemplate(
    query="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
    document="{document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    no="no",
    default_instruction="Given a web search query, retrieve relevant passages that answer the query",
)
# mxbai_rerank.mxbai_rerank_v2 of the package mxbai-rerank 0.1.6.
_MXBAI = PairTemplate(
    prefix="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n",
    query="query: {query}",
    separator="\n",
    document="document: {document}",
    suffix=(
        "\n",
        (
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
        ),
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    yes="1",
    no="0",
)
# FlagEmbedding's FlagLLMReranker and LayerWiseFlagLLMReranker.
_BGE = PairTemplate(
    query="A: {query}",
    separator="\n",
    document="B: {document}",
    suffix=("\n", "{instruction}"),
    begins=True,
    yes="Yes",
    default_instruction="Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'.",
)
TEMPLATES: Mapping[str, PairTemplate] = {
    "qwen3-reranker": _QWEN3,
    "mxbai-rerank-v2": replace(_MXBAI, query="instruction: {instruction}\nquery: {query}", without=_MXBAI),
    "bge-reranker-v2": _BGE,
}

# Characters that no template has, with spaces that would show that a template strips texts.
_MARKS = {"system": " \ue000 ", "query": " \ue001 ", "document": " \ue002 "}
_FIELDS = {"system": "{instruction}", "query": "{query}", "document": "{document}"}


def read_chat_template(name: str, tokenizer: Any, settings: Mapping[str, Any], tokens: tuple[int, int | None]) -> Any:
    """Return how a folder's chat template writes a pair, as sentence-transformers' CrossEncoder fills it.

    Args:
        name: of the model.
        tokenizer: of transformers.
        settings: arguments of `apply_chat_template` that the folder states.
        tokens: ids of yes and no.

    Raises:
        ConfigError: there is no chat template, or it changes the texts or has no place for them.
    """
    yes, no = tokens
    made = [
        _split(name, _render(name, tokenizer, roles, settings), roles)
        for roles in (("system", "query", "document"), ("query", "document"))
    ]
    instructed, plain = (replace(one, yes=yes, no="" if no is None else no) for one in made)
    return replace(instructed, without=plain)


def _render(name: str, tokenizer: Any, roles: Sequence[str], settings: Mapping[str, Any]) -> str:
    messages = [{"role": role, "content": _MARKS[role]} for role in roles]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
    except Exception as error:  # a template is a program, and may raise anything
        raise ConfigError(f"model {name}: its chat template cannot write a pair: {error}") from error


def _split(name: str, text: str, roles: Sequence[str]) -> PairTemplate:
    if any(text.count(_MARKS[role]) != 1 for role in roles) or text.index(_MARKS["document"]) < max(
        text.index(_MARKS[role]) for role in roles
    ):
        message = "its chat template does not write instruction, query and document once each and as they are"
        raise ConfigError(f"model {name}: {message}; say template in a card if it is one of {', '.join(TEMPLATES)}")
    form = text.replace("{", "{{").replace("}", "}}")
    for role in roles:
        form = form.replace(_MARKS[role], _FIELDS[role])
    before, field, after = form.partition(_FIELDS["document"])
    return PairTemplate(query=before, document=field + after)
