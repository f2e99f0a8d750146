"""The modules of a sentence-transformers folder: what follows the transformer, step by step.

Owns reading `modules.json` and the configuration of each module. A module that we do not compute is refused by its
name: leaving one out gives wrong vectors without any error. Imports no device library.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config.catalog import POOLINGS
from tasks.errors import ConfigError
from workers.models.folders.folder import read_json, read_json_list

__all__ = ["ModuleList", "Step", "read_modules", "read_pooling"]

# The booleans of older folders, in the order in which several are concatenated.
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last_token",
}
_POOLING_NAMES = {"lasttoken": "last_token", "mean_sqrt_len_tokens": "mean_sqrt_len"}
_TANH = "torch.nn.modules.activation.Tanh"
_INPUT = "sentence_embedding"
_KNOWN = frozenset(
    [
        "Transformer",
        "Pooling",
        "Dense",
        "LayerNorm",
        "Normalize",
        "Dropout",
        "LogitScore",
        "MLMTransformer",
        "SpladePooling",
        "MultiVectorMask",
    ]
)
# Its modules are those of sentence-transformers under another name.
_PYLATE = "pylate.models."
_WAY_OUT = "serve it with sentence-transformers, or export a folder of Transformer, Pooling, Dense and Normalize"


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to a pooled vector: `dense` and `layer_norm` have weights in `path`."""

    kind: Literal["dense", "layer_norm", "normalize"]
    path: str = ""
    # Of a dense step, as its config.json says them.
    in_features: int = 0
    out_features: int = 0
    bias: bool = True
    activation: str = _TANH
    residual: bool = False


@dataclass(frozen=True, slots=True)
class ModuleList:
    """The modules of a folder.

    Attributes:
        stated: whether the folder has a modules.json.
        transformer: where the transformer lies, relative to the folder.
        pooling: one of `config.catalog.POOLINGS`, several joined by `+`; empty: nobody says.
        steps: what follows the pooling.
        tokens: whether the steps are taken for each token.
        token_mask: folder of the module that says which tokens have vectors; None: there is none.
        splade: folder of the module that pools the logits of words; None: there is none.
        logit_score: folder of the module that reads yes and no off a language model's logits; None: there is none.
    """

    stated: bool = False
    transformer: str = ""
    pooling: str = ""
    steps: tuple[Step, ...] = ()
    tokens: bool = False
    token_mask: str | None = None
    splade: str | None = None
    logit_score: str | None = None


def read_modules(name: str, folder: Path) -> ModuleList:
    """Read what the folder says; without a modules.json, the pooling alone.

    Raises:
        ConfigError: a module is unknown, or stands where it cannot be computed.
    """
    entries = [_entry(name, folder, raw) for raw in read_json_list(name, folder / "modules.json")]
    if not entries:
        return ModuleList(pooling=read_pooling(name, folder / "1_Pooling"))
    kinds = [kind for kind, _ in entries]
    if "MultiVectorMask" in kinds or any(path.startswith(_PYLATE) for path in _types(name, folder)):
        return _read_token_modules(name, folder, entries)
    if kinds in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"]):
        return ModuleList(stated=True, transformer=entries[0][1], splade=entries[1][1])
    if kinds[0] != "Transformer" or kinds.count("Transformer") > 1:
        raise ConfigError(f"model {name}: modules.json begins with {kinds[0]}, not with one Transformer; {_WAY_OUT}")
    transformer = entries[0][1]
    if kinds[1:] == ["LogitScore"]:
        return ModuleList(stated=True, transformer=transformer, logit_score=entries[1][1])
    if len(kinds) == 1:
        return ModuleList(stated=True, transformer=transformer)
    if kinds[1] != "Pooling" or not set(kinds[2:]) <= {"Dense", "LayerNorm", "Normalize", "Dropout"}:
        raise ConfigError(f"model {name}: the modules {', '.join(kinds)} in this order are not supported; {_WAY_OUT}")
    pooling = read_pooling(name, folder / entries[1][1])
    steps = tuple(_step(name, folder, kind, path) for kind, path in entries[2:] if kind != "Dropout")
    return ModuleList(stated=True, transformer=transformer, pooling=pooling or "mean", steps=steps)


def read_pooling(name: str, folder: Path) -> str:
    """Return what a Pooling module's folder says, in either spelling; empty: it says nothing.

    Raises:
        ConfigError: it is a pooling that we do not compute.
    """
    if not (folder / "config.json").is_file():
        return ""
    config = read_json(name, folder / "config.json")
    if config.get("include_prompt") is False:
        message = f"model {name}: its pooling leaves the prompt out (include_prompt false), which is not supported"
        raise ConfigError(f"{message}; {_WAY_OUT}")
    stated = config.get("pooling_mode")
    if stated is None:
        # None of them set means mean to sentence-transformers.
        modes = [mode for key, mode in _POOLING_KEYS.items() if config.get(key)] or ["mean"]
    else:
        modes = [_POOLING_NAMES.get(mode, mode) for mode in ([stated] if isinstance(stated, str) else stated)]
    if unknown := [str(mode) for mode in modes if mode not in POOLINGS]:
        raise ConfigError(f"model {name}: {folder} pools by {unknown[0]}; known are {', '.join(POOLINGS)}")
    return "+".join(modes)


def _entry(name: str, folder: Path, raw: dict[str, Any]) -> tuple[str, str]:
    """Return a module's class and path."""
    whole, path = str(raw.get("type", "")), str(raw.get("path", ""))
    package, _, kind = whole.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" and whole != f"{_PYLATE}Dense.Dense":
        message = f"model {name}: modules.json names {whole}, which is code of the folder's own and is never run here"
        raise ConfigError(f"{message}; {_WAY_OUT}")
    if kind not in _KNOWN:
        raise ConfigError(f"model {name}: modules.json names {whole}, a module that is not supported; {_WAY_OUT}")
    if path and not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"model {name}: modules.json leads out of the folder: {path}")
    return kind, path


def _types(name: str, folder: Path) -> list[str]:
    return [str(raw.get("type", "")) for raw in read_json_list(name, folder / "modules.json")]


def _read_token_modules(name: str, folder: Path, entries: list[tuple[str, str]]) -> ModuleList:
    """Return the modules of a model that gives a vector for each token; PyLate's normalize without a module for it."""
    kinds = [kind for kind, _ in entries]
    if kinds[0] != "Transformer" or not set(kinds[1:]) <= {"Dense", "Normalize", "MultiVectorMask"}:
        raise ConfigError(f"model {name}: the modules {', '.join(kinds)} in this order are not supported; {_WAY_OUT}")
    steps = tuple(
        _step(name, folder, kind, path, "token_embeddings") for kind, path in entries[1:] if kind != "MultiVectorMask"
    )
    mask = next((path for kind, path in entries if kind == "MultiVectorMask"), None)
    if mask is None:
        steps = (*steps, Step("normalize"))
    return ModuleList(stated=True, transformer=entries[0][1], steps=steps, tokens=True, token_mask=mask)


def _step(name: str, folder: Path, kind: str, path: str, reads: str = _INPUT) -> Step:
    config = read_json(name, folder / path / "config.json")
    if kind == "Normalize":
        if reads != _INPUT and config.get("module_input_name") != reads:
            raise ConfigError(f"model {name}: its Normalize does not read the vectors of tokens")
        return Step("normalize")
    if kind == "LayerNorm":
        size = _size(name, folder / path, config, "dimension")
        return Step("layer_norm", path, size, size)
    given, made = config.get("module_input_name", reads), config.get("module_output_name")
    if given != reads or made not in {None, reads}:
        raise ConfigError(f"model {name}: its Dense reads {given} and writes {made or given}, not {reads}")
    activation = str(config.get("activation_function", _TANH))
    if not activation.startswith("torch.nn.modules."):
        raise ConfigError(f"model {name}: its Dense applies {activation}, which is no module of torch and is never run")
    return Step(
        "dense",
        path,
        _size(name, folder / path, config, "in_features"),
        _size(name, folder / path, config, "out_features"),
        bool(config.get("bias", True)),
        activation,
        bool(config.get("use_residual", False)),
    )


def _size(name: str, folder: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"model {name}: {folder}/config.json says no {key}")
    return value
