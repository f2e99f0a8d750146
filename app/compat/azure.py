"""Azure OpenAI: a deployment in the path is a model. The key comes as `api-key`, which `app.access.auth` reads.

Owns the address; body and answer are those of `/v1/embeddings`. `api-version` in the query string is ignored.
"""

from flask import Response
from pydantic import BaseModel

from app.compat.adapters import Adapter, UnnamedEmbeddingsRequest
from app.http.errors import documented
from app.inference.embeddings import create_embeddings
from app.inference.schemas import EmbeddingsResponse
from app.jobs.schemas import JobObject

__all__ = ["adapter"]

adapter = Adapter("azure", "Azure OpenAI's embeddings route, for its client libraries")


class _DeploymentPath(BaseModel):
    model: str


@adapter.post(
    "/openai/deployments/<path:model>/embeddings",
    responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True),
)
def embed_deployment(path: _DeploymentPath, body: UnnamedEmbeddingsRequest) -> Response:
    """Embed as `/v1/embeddings` does, with the model of the path."""
    answer: Response = create_embeddings(body.model_copy(update={"model": path.model}))
    return answer
