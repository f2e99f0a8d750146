"""Every setting of the product: its name, default, limits and sentence.

Owns the fields; `.env.example` and docs/settings.md are generated from here. Where they are read from, and what is
refused together, is in `config.settings`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode

__all__ = ["SettingFields"]

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _also(name: str) -> AliasChoices:
    """Let a field be read under a name without our prefix too, as hosting platforms set it."""
    return AliasChoices(f"TWOLANE_{name}", name)


class SettingFields(BaseSettings):
    """The fields of `config.settings.Settings`."""

    # -- where things are --------------------------------------------------------------------------------
    redis_url: str = Field(
        "",
        validation_alias=_also("REDIS_URL"),
        description="Redis or Valkey server for queues, job state and results: redis://, rediss:// (TLS, verified) or "
        "unix://; empty: the stack starts a private one.",
    )
    data_dir: Path = Field(Path("data"), description="Folder for the embedded server's data and for models.")
    host: str = Field("127.0.0.1", description="Address that the web server binds.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose web pages may call (https://example.org), comma-separated; *: any. Empty: none."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names besides those of loopback under which a server without keys is called, comma-separated, as "
        "behind a proxy that passes its own on; .example.org: with all below it; *: any.",
    )
    keys_file: Path | None = Field(
        None,
        description="TOML file with the API keys and their limits; without it the server is open, on loopback only.",
    )
    port: Port = Field(8000, validation_alias=_also("PORT"), description="Port of the web server; 0 takes a free one.")
    websocket_port: Port = Field(
        0, description="Port of WebSocket, on the web server's address and in a process of its own; 0: off."
    )
    grpc_port: Port = Field(0, description="Port of gRPC, likewise; 0: off.")
    flower_port: Port = Field(0, description="Port of the Flower dashboard on 127.0.0.1; 0 takes a free one.")
    flower_url: str = Field(
        "",
        description="Where operators reach Flower, for the console's link; `make serve` fills it in. Empty: no link.",
    )
    flower_user: str = Field("twolane", description="User name for the Flower dashboard.")
    flower_password: SecretStr = Field(
        SecretStr(""),
        description="Password for the Flower dashboard; empty: the stack makes one and keeps it.",
    )

    # -- models ------------------------------------------------------------------------------------------
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("all-MiniLM-L6-v2",),
        description="Models that every worker loads, comma-separated: names of the catalogue, IDs (owner/model of "
        "ModelScope, or hf:owner/model), folders (/path). See docs/models.md.",
    )
    models_dir: Path | None = Field(
        None,
        description="Folder for downloaded and converted models, which several stacks may share; "
        "empty: `models` in the data folder.",
    )
    modelscope_endpoint: str = Field(
        "", description="Address of a ModelScope mirror to download models from; empty: ModelScope itself."
    )
    catalog_file: Path | None = Field(
        None, description="TOML file with your own model cards; they come before the built-in ones."
    )
    allow_pickle: bool = Field(
        default=False, description="Download weights that are pickles; false: only of cards that say `pickle = true`."
    )
    any_dimensions: bool = Field(
        default=False, description="Let callers cut vectors to lengths that the model was not trained for."
    )
    model_memory: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Memory in bytes that the models of one worker may take together, weights and working memory as "
        "measured; where it is short, the least recently used goes. 0: no limit.",
    )
    pinned_models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("all",),
        description="Models that are unloaded on an admin's order only, comma-separated; all: those of TWOLANE_MODELS; "
        "none: none.",
    )
    model_idle_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="A model that is not pinned is unloaded when no work came for this long; 0: never."
    )
    load_on_demand: bool = Field(
        default=False,
        description="Whether a call or a job loads a model that is set up and not loaded; set it for web and workers.",
    )

    # -- web tier ----------------------------------------------------------------------------------------
    web_workers: Count = Field(1, description="Web processes.")
    web_threads: Annotated[int, Field(ge=16)] = Field(
        768,
        description="Threads of one web process at most: half for small requests, an eighth each for large and waiting "
        "ones, a sixteenth for uploads, a thirty-second for readers of results, the rest for probes and cancels.",
    )
    min_client_bytes_s: Count = Field(
        4096,
        description="Slowest that a client may send a large body or read results, in bytes a second on average; one "
        "that falls behind by more than 20 s is cut off.",
    )
    stream_timeout_s: Seconds = Field(
        14_400.0, description="How long one answer of results or of a file may take to be read; then it is cut off."
    )
    max_body_bytes: Count = Field(64 * 2**20, description="Largest JSON body in bytes; above it: 413.")
    max_json_values: Count = Field(
        2_000_000, description="Most values (items, members, lists, objects) of one JSON body; above it: 413."
    )
    body_memory_bytes: Count = Field(
        96 * 2**20,
        description="Memory that the JSON bodies of one web process may take at a time; above it: 429 for all but one.",
    )
    max_upload_bytes: Count = Field(8 * 2**30, description="Largest NDJSON upload in bytes; above it: 413.")
    max_line_bytes: Count = Field(32 * 2**20, description="Longest NDJSON line in bytes.")
    max_inputs: Count = Field(2048, description="Most texts or documents of one synchronous call.")
    max_call_bytes: Count = Field(
        16 * 2**20, description="Most bytes of texts of one synchronous call; above it: 413, and a job takes it."
    )
    max_text_chars: Count = Field(1_000_000, description="Longest single text in characters.")
    max_job_items: Count = Field(10_000_000, description="Most items of one job.")

    # -- interactive lane --------------------------------------------------------------------------------
    interactive_max_items: Count = Field(64, description="Largest request, in items, that counts as small.")
    interactive_max_tokens: Count = Field(16_384, description="Largest request, in tokens, that counts as small.")
    interactive_timeout_s: Seconds = Field(30.0, description="How long a small call may wait; then 504.")
    large_call_timeout_s: Seconds = Field(
        300.0, description="How long a synchronous call that is not small may wait; then 504."
    )
    lane_max_tokens: Count = Field(
        1_000_000, description="Tokens that may wait in one model's interactive lane; above it: 429."
    )
    worker_ttl_s: Seconds = Field(
        5.0, description="A worker that was not heard of for this long does not count as ready."
    )

    # -- jobs --------------------------------------------------------------------------------------------
    chunk_items: Count = Field(1024, description="Most items in one chunk.")
    chunk_tokens: Count = Field(24_576, description="Most (estimated) tokens in one chunk.")
    chunk_bytes: Count = Field(2**20, description="Most text bytes in one chunk.")
    window: Count = Field(12, description="Chunk messages of one model that wait at a time, and chunks that are taken.")
    lease_s: Seconds = Field(15.0, description="How long a claim holds without a heartbeat.")
    ticket_timeout_s: Seconds = Field(
        20.0,
        description="A chunk that a worker was given and did not claim for this long waits again.",
    )
    max_attempts: Count = Field(3, description="Attempts per chunk before items are isolated and given up.")
    chunks_in_flight: Count = Field(
        2,
        description="Chunks that one worker holds at a time; with two, reading and storing overlap with computing. "
        "Unless it is set, a worker on a GPU holds as many as make 131,072 tokens.",
    )
    store_max_bytes: Annotated[int, Field(ge=0)] = Field(
        0, description="Memory that jobs may fill where Redis has no maxmemory (else 70% of that); 0: no limit."
    )
    results_url: str = Field(
        "",
        description="Folder or fsspec URL (as file:///srv/results or s3://bucket/path), of this stack alone, for "
        "results of large jobs; empty: all results are kept in Redis.",
    )
    results_inline_bytes: Annotated[int, Field(ge=0)] = Field(
        64 * 2**20, description="Results of a job above this size go to the results URL, if there is one."
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="How a bucket is named to object storage: in the path (as MinIO wants it) or as part of the host "
        "(virtual, as Alibaba Cloud's OSS wants it). Endpoint, region and credentials come from AWS' own variables.",
    )
    job_ttl_s: Seconds = Field(7 * 86_400.0, description="How long a job and its results are kept.")

    # -- files and batches -------------------------------------------------------------------------------
    files_url: str = Field(
        "",
        description="Folder or fsspec URL (as s3://bucket/path) of uploaded files; empty: `files` in the data folder.",
    )
    file_link_s: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="How long presigned links hold to which readers of files in object storage are sent; 0: none.",
    )
    max_file_bytes: Count = Field(200 * 2**20, description="Largest uploaded file in bytes; above it: 413.")
    file_ttl_s: Seconds = Field(
        30 * 86_400.0, description="How long files are kept that name no expiry, and batches with their output files."
    )
    batch_window_s: Seconds = Field(86_400.0, description="How long a batch may take; then it ends as expired.")
    batch_max_requests: Count = Field(50_000, description="Most lines of one batch.")
    batch_max_groups: Count = Field(
        32, description="Most different combinations of model and parameters in one batch: each becomes a job."
    )
    batch_max_metadata: Count = Field(16, description="Most metadata entries of one batch.")
    batch_max_metadata_key_chars: Count = Field(64, description="Longest key of a batch's metadata in characters.")
    batch_max_metadata_value_chars: Count = Field(512, description="Longest value of a batch's metadata in characters.")

    # -- reuse -------------------------------------------------------------------------------------------
    cache_max_bytes: Count = Field(
        256 * 2**20, description="Memory for kept values of each tenant, and of each job that asks for `dedupe`."
    )
    cache_ttl_s: Seconds = Field(86_400.0, description="How long a cached value is served.")

    # -- webhooks ----------------------------------------------------------------------------------------
    webhook_allow_private: bool = Field(
        default=False, description="Whether webhooks may lead to private addresses and loopback: for tests, intranets."
    )
    webhook_timeout_s: Seconds = Field(10.0, description="How long one attempt to tell a job's end may take.")
    webhook_retry_s: Seconds = Field(
        5.0, description="Delay before the second attempt; the last of eight comes some 32 hours after the first."
    )

    # -- worker and engine -------------------------------------------------------------------------------
    device: str = Field("auto", description="auto (every GPU, else the CPU), cpu, cuda, or a list as cuda:0,cuda:1.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the models; auto: on a CPU bfloat16 by OpenVINO where the CPU computes in it, else "
        "float32; on a GPU float16, for decoders bfloat16.",
    )
    packed: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute batches without padding, where the model is one that this is known for and gives the same "
        "values as with padding; auto: on GPUs; on: also on a CPU, which is slow and for tests.",
    )
    workers_expected: Annotated[int, Field(ge=0)] = Field(
        0, description="Workers that there should be on all machines, for the alert; 0: as many as launchers run."
    )
    workers_per_device: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="Workers on each device; several share a GPU that one does not fill."
    )
    device_memory_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of a GPU's memory that one worker may take; 0: all, and with several workers on a GPU an "
        "even part of 0.9.",
    )
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads of one worker; 0 chooses.")
    cpu_affinity: str = Field(
        "",
        description="CPU cores of the workers, as 0-3 or 0,2, shared out among them; empty: one worker is not pinned, "
        "several are to their shares of all cores but one.",
    )
    max_batch_tokens: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Padded tokens per forward pass; 0: on the CPU 1024 a thread and at least 2048; 32768 on a GPU.",
    )
    bulk_min_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of device time that bulk work keeps under constant interactive load."
    )
    p99_ms: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="What a small call should take inside a worker at the 99th percentile, beside a job; 0: 50 ms on "
        "the CPU, 20 ms on a GPU. Passes get as short as this asks for, but not so short that a job starves.",
    )
    worker_stop_s: Seconds = Field(
        8.0, description="How long a worker may finish what it holds when it is stopped; then it is killed."
    )
    web_stop_s: Count = Field(
        20,
        description="How long a web server may finish its calls when it is stopped; then it is killed.",
    )
    lanes: bool = Field(
        default=True,
        description="Interactive work goes ahead of bulk; false: one queue in the order of arrival, to compare with.",
    )
    worker_max_memory_bytes: Annotated[int, Field(ge=0)] = Field(
        0, description="A worker whose memory is above this finishes what it holds and starts afresh; 0: never."
    )
    worker_max_device_bytes: Annotated[int, Field(ge=0)] = Field(
        0, description="The same for the memory of its GPU, which counts all processes on it; 0: never."
    )
    pass_timeout_s: Seconds = Field(120.0, description="A forward pass longer than this ends the worker.")
    engine_max_tokens: Count = Field(
        400_000, description="Tokens that may wait inside one worker before it stops taking requests."
    )

    # -- logging -----------------------------------------------------------------------------------------
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level shown.")
    tracing: bool = Field(
        default=False,
        description="Send OpenTelemetry spans of calls and jobs by OTLP, as the variables OTEL_.. say; needs the extra "
        "`tracing`.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for machines.")
