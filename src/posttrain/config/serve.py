"""Keys of the server."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`posttrain serve`: an OpenAI-compatible server, its address and its limits."""

    api_host: str = option(
        "127.0.0.1",
        help="Address that the server listens on; 0.0.0.0 is every network of the machine. The environment's API_HOST, "
        "unless the key is set.",
    )
    api_port: int = option(
        8000,
        help="Port that the server listens on; 0 is any free one. The environment's API_PORT, unless the key is set.",
        minimum=0,
        maximum=65535,
    )
    api_key: str | None = option(
        None,
        help="What clients must send as `Authorization: Bearer ...`; null asks for nothing. The environment's API_KEY, "
        "unless the key is set.",
    )
    api_model_name: str | None = option(
        None,
        help="Name of the model in requests where `variants` names none; null is the last part of the folder's name. "
        "The environment's API_MODEL_NAME, unless the key is set.",
    )
    api_allow_origins: tuple[str, ...] = option(
        (), help="Web pages that may ask from a browser (CORS), such as `http://localhost:3000`; `*` is all of them."
    )
    max_num_seqs: int = option(
        16, help="Completions that the server decodes side by side; changes no result.", minimum=1
    )
    max_model_len: int | None = option(
        None,
        help="Longest prompt and completion together, in tokens; null is what the model has positions for.",
        minimum=2,
    )
    api_max_queue: int = option(
        256, help="Requests that may wait for a slot; more are told to come again later (429).", minimum=1
    )
    api_max_body_mb: float = option(4.0, help="Largest request in megabytes; larger ones are refused (413).", above=0)
    api_time_limit: float = option(600.0, help="Seconds that a request may take, waiting included (504).", above=0)
    api_grace: float = option(
        10.0, help="Seconds that requests under way get to finish when the server is told to stop.", minimum=0
    )
