"""The AntSK-PyApi way: an async endpoint that calls FlagEmbedding's `encode` in the event loop.

Written after main.py of github.com/xuzeyu91/AntSK-PyApi: the same endpoint, models and call, without its error texts
and model download. Two things are given to it that it does not have: the model's correct pooling, and texts cut at
the 256 tokens where the others cut them too. `python -m benchmarks.peers.antsk_app FOLDER PORT DEVICE`.
"""

import sys
from typing import Any

import FlagEmbedding
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

__all__ = ["make_app"]


class EmbeddingRequest(BaseModel):
    """What is asked for."""

    model: str
    input: list[str]
    encoding_format: str = "float"


class EmbeddingData(BaseModel):
    """One vector."""

    object: str = "embedding"
    index: int
    embedding: Any


class EmbeddingResponse(BaseModel):
    """The answer in OpenAI's shape."""

    data: list[EmbeddingData]
    object: str = "list"
    model: str
    usage: dict[str, int]


def make_app(folder: str, device: str) -> FastAPI:
    """Load the model and return the application."""
    app = FastAPI()
    model = FlagEmbedding.FlagModel(
        folder,
        pooling_method="mean",
        use_fp16=device == "cuda",
        devices="cuda:0" if device == "cuda" else device,
        query_max_length=256,
        passage_max_length=256,
    )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/v1/embeddings", response_model=EmbeddingResponse)
    async def embed(request: EmbeddingRequest) -> EmbeddingResponse:
        vectors = model.encode(request.input)  # blocks the event loop: this is what is measured
        data = [EmbeddingData(index=index, embedding=vector.tolist()) for index, vector in enumerate(vectors)]
        tokens = sum(len(text) for text in request.input)
        return EmbeddingResponse(
            data=data, model=request.model, usage={"prompt_tokens": tokens, "total_tokens": tokens}
        )

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1], sys.argv[3]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
