"""Language models that rank, as torch modules: ids of pairs to scores, read off the last position and nowhere else.

Owns their loading and the reading of the score: of all words only those of yes and no are computed. Texts are written
in `pair_tokenizer`. Imports torch at the top, so only modules that are imported late may import it.
"""

import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GraniteConfig, GraniteModel
from transformers.masking_utils import create_causal_mask
from transformers.models.granite.modeling_granite import GranitePreTrainedModel

from tasks.errors import ConfigError
from workers.models.folders.folder import read_json
from workers.models.folders.recognise import Recipe

__all__ = ["LayerwiseScorer", "LogitScorer", "load_layerwise", "load_logit_scorer"]

# How far our logits may be from those of the whole head, in the precision of the weights.
_CLOSE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.5}


class LogitScorer(torch.nn.Module):
    """A transformer and some rows of its head: ids of pairs, shape (n, length), to float32 scores in [0, 1], (n,).

    Attributes:
        transformer: the model of transformers without its head.
        rows: of the head, shape (1 or 2, d); the second is subtracted.
        softcap: bound of the logits, where the model has one.
    """

    def __init__(self, transformer: Any, rows: torch.Tensor, softcap: float | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.rows = torch.nn.Parameter(rows, requires_grad=False)
        self.softcap = softcap

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        _token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map the logit of yes, less that of no where there is one, to [0, 1] by a sigmoid."""
        logits = self.logits(input_ids, attention_mask)
        return torch.sigmoid(logits[:, 0] - logits[:, 1] if logits.shape[1] == 2 else logits[:, 0])

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of the rows at the last token, float32, shape (n, rows)."""
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        logits = _at_last(output.last_hidden_state, attention_mask) @ self.rows.float().T
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class _Head(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_head = torch.nn.Linear(size, 1, bias=False)


class _LayerwiseModel(GranitePreTrainedModel):  # type: ignore[misc]  # transformers' classes are Any to mypy
    """The weights of a LayerWiseMiniCPMForCausalLM under their own names."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = GraniteModel(config)
        self.lm_head = torch.nn.ModuleList([_Head(config.hidden_size) for _ in range(config.heads)])
        self.post_init()


class LayerwiseScorer(torch.nn.Module):
    """MiniCPM with a head after each of its upper layers: each row is scored after the layer that it names.

    Attributes:
        first: the first layer that has a head.
    """

    takes_layers = True

    def __init__(self, whole: Any, first: int) -> None:
        super().__init__()
        self.transformer = whole.model
        self.heads = whole.lm_head
        self.first = first

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        _token_type_ids: torch.Tensor | None = None,
        layers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute as many layers as the rows need; `layers` is int64, shape (n,), 0 for the last.

        This is the loop of `GraniteModel.forward` with an end of its own.
        """
        model = self.transformer
        last = len(model.layers)
        wanted = [one or last for one in ([0] * len(input_ids) if layers is None else layers.tolist())]
        states = model.embed_tokens(input_ids) * model.embedding_multiplier
        positions = torch.arange(states.shape[1], device=states.device).unsqueeze(0)
        mask = create_causal_mask(
            config=model.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=positions,
        )
        angles = model.rotary_emb(states, position_ids=positions)
        scores = torch.zeros(len(wanted), device=states.device)
        for at, layer in enumerate(model.layers[: max(wanted)], start=1):
            states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=angles)
            if rows := [row for row, one in enumerate(wanted) if one == at]:
                final = _at_last(model.norm(states[rows]), attention_mask[rows])
                scores[rows] = (final @ self.heads[at - self.first].linear_head.weight.float().T).view(-1)
        return torch.sigmoid(scores)


def _at_last(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the states of each row's last token, float32, shape (n, d)."""
    last = attention_mask.sum(dim=1) - 1
    return states[torch.arange(states.shape[0], device=states.device), last].float()


def load_logit_scorer(recipe: Recipe, load: Any, dtype: str, token_ids: list[int]) -> tuple[LogitScorer, Any]:
    """Return a reranker that reads logits of tokens or the one label of a classifier, and its configuration.

    Args:
        recipe: how it is computed.
        load: loads a class of transformers with its weights proved.
        dtype: of the weights.
        token_ids: of yes and, where it is subtracted, no; not read for a classifier.

    Raises:
        ConfigError: its logits are something else than its states times its head.
    """
    if recipe.pairs is not None and recipe.pairs.head == "label":
        model = load(AutoModelForSequenceClassification)
        head, softcap = model.score, None
        scorer = LogitScorer(model.base_model, head.weight.detach().clone())
    else:
        model = load(AutoModelForCausalLM)
        head, softcap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
        scorer = LogitScorer(model.base_model, head.weight[token_ids].detach().clone(), softcap)
    if getattr(head, "bias", None) is not None:
        raise ConfigError(f"model {recipe.card.name}: its head has a bias, which is not supported")
    _hold_against_head(recipe.card.name, model, scorer, dtype, token_ids)
    return scorer, model.config


def _hold_against_head(name: str, model: Any, scorer: LogitScorer, dtype: str, token_ids: list[int]) -> None:
    """Check that the rows give what the whole head gives: some models scale or shift their logits."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        found = scorer.logits(ids, torch.ones_like(ids))
        logits = model(input_ids=ids).logits.float()
    expected = logits[:, -1, token_ids] if logits.dim() == 3 else logits
    if not torch.allclose(found, expected, rtol=_CLOSE[dtype], atol=_CLOSE[dtype]):
        raise ConfigError(f"model {name}: {type(model).__name__} changes its logits in a way that is not known here")


def load_layerwise(recipe: Recipe, load: Any) -> tuple[LayerwiseScorer, Any]:
    """Return a layerwise reranker and its configuration.

    MiniCPM's layers are Llama's with three constants, as Granite's are: the constants go by other names.

    Args:
        recipe: how it is computed.
        load: loads a class of transformers with its weights proved.
    """
    stated = read_json(recipe.card.name, recipe.transformer / "config.json")
    layers, first = stated["num_hidden_layers"], stated["start_layer"]
    named = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "attention_bias",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    )
    config = GraniteConfig(
        **{key: stated[key] for key in named if key in stated},
        rope_parameters={"rope_type": "default", "rope_theta": stated.get("rope_theta", 10_000.0)},
        embedding_multiplier=stated.get("scale_emb", 1),
        residual_multiplier=stated.get("scale_depth", 1) / math.sqrt(layers),
        attention_multiplier=(stated["hidden_size"] // stated["num_attention_heads"]) ** -0.5,
        heads=layers + 1 - first,
    )
    return LayerwiseScorer(load(_LayerwiseModel, config=config), first), config
