"""Keys of what is uploaded to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """The finished folder on the Hugging Face hub. The token comes from HF_TOKEN or `hf auth login`."""

    push_to_hub: bool = option(False, help="`posttrain train`: upload the model when the run has come to its end.")
    hub_model_id: str | None = option(
        None,
        help="Repository it goes to, such as `me/my-model`; null is your own, called like `output_dir`.",
    )
    export_hub_model_id: str | None = option(
        None, help="`posttrain export`: upload the exported folder to this repository."
    )
    hub_private_repo: bool | None = option(
        None, help="Whether a repository that is made for it is private; null leaves that to the hub."
    )
    hub_revision: str | None = option(None, help="Branch to upload to; null is the main one.")
