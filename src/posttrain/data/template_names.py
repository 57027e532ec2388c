"""What ``template`` and ``prompt_template`` name: the tokenizer's own, a known format, or one of the user's."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.chat_formats import prompt_format, shipped_formats
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Families of which no format is shipped: the tokenizer's own template is the authority.
_OWN_ONLY = (
    "aeva bailing bailing_v2 breeze chatglm2 chatglm3 codegeex4 dbrx deepseekcoder deepseekr1 dots_ocr ernie_nothink "
    "ernie_vl falcon fewshot gemma3n gemma4 gemma4n glm4_5v glm4_7 glm4_moe glm4v glm_ocr glmz1 gpt_oss "
    "granite3_vision hunyuan_small hy3 index intern intern_s1 intern_vl keye_vl kimi_vl lfm2_vl llava llava_next "
    "llava_next_llama3 llava_next_mistral llava_next_qwen llava_next_video llava_next_video_mistral "
    "llava_next_video_yi llava_next_yi mimo mimo_v2 mimo_vl minicpm_o minicpm_v minicpm_v_4_6 minimax1 minimax2 "
    "ministral3 mllama openchat-3.6 orion paligemma paligemma_chat phi_small pixtral qwen2_audio qwen2_omni qwen3 "
    "qwen3_5 qwen3_5_nothink qwen3_6 qwen3_omni qwen3_omni_nothink qwen3_vl qwen3_vl_nothink seed_coder seed_oss "
    "solar telechat telechat2 video_llava xuanyuan xverse yayi yi_vl youtu youtu_vl yuan "
)
PLAIN = tuple(name for name, known in shipped_formats().items() if known.is_plain)
"""Formats of plain text, which belong to no model: whoever names one means it, whatever the tokenizer brings."""
FAMILIES = (*(name for name in shipped_formats() if name not in PLAIN), *_OWN_ONLY.split())
"""Model families: the tokenizer's own template is the authority, a shipped one serves tokenizers without one."""

_FILES = (".jinja", ".jinja2", ".j2")


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, name: str | None, prompt_template: str | None = None
) -> str:
    """The jinja text that ``name`` stands for with this tokenizer.

    The name of a plain text format is taken literally. That of a model family means the tokenizer's own template where
    it has one, else the shipped one of that name; no name means the tokenizer's own. Jinja text, and the path of a
    file that holds some, stand for themselves, and so does ``prompt_template``.

    Raises:
        UserError: unknown name, or no template to be had.
    """
    if prompt_template is not None:
        if name is not None:
            raise UserError("template and prompt_template are both set: leave one of them out")
        return prompt_format(prompt_template).jinja()
    own = own_template(tokenizer)
    if name is None:
        if own:
            return own
        raise UserError(
            f"the tokenizer has no chat template: set `template` to one of {', '.join(shipped_templates())} "
            '(`empty` joins the texts as they are), or `prompt_template`, such as "问:{prompt}\\n\\n答:"'
        )
    if _is_jinja(name):
        return name
    if _is_path(name):
        return _read(Path(name).expanduser())
    known = (*PLAIN, *FAMILIES)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}."
        raise UserError(
            f"unknown template {name!r}: {hint} Without `template` the tokenizer's own is used; one of your own is a "
            "path that ends in .jinja, or `prompt_template`."
        )
    if own and name not in PLAIN:
        return own
    if name not in shipped_templates():
        raise UserError(
            f"template {name!r} is the tokenizer's own, but this tokenizer has none: set `template` to one of "
            f"{', '.join(shipped_templates())}, or to a file that ends in .jinja"
        )
    return shipped_formats()[name].jinja()


def other_rendering(
    tokenizer: PreTrainedTokenizerBase, name: str | None, rendered: Callable[[str], str]
) -> tuple[str, str] | None:
    """Where the tokenizer's own template, which ``name`` resolves to, writes a chat otherwise than the format ``name``.

    Args:
        tokenizer: the tokenizer. name: of a template. rendered: a jinja text -> what it makes of an example chat.

    Returns:
        (with the tokenizer's own, with the shipped one); None where they agree or there is nothing to compare.
    """
    own = own_template(tokenizer)
    if not own or name is None or name in PLAIN or name not in shipped_formats():
        return None
    try:
        found = rendered(own), rendered(shipped_formats()[name].jinja())
    except UserError:
        return None
    return None if found[0] == found[1] else found


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template that the tokenizer brings."""
    own: Any = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    return str(own) if own else None


def shipped_templates() -> tuple[str, ...]:
    """Names of the templates that come with the package."""
    return tuple(sorted(shipped_formats()))


def is_named(name: str | None) -> bool:
    """Whether ``template`` holds one of LLaMA-Factory's names."""
    return name is not None and not _is_jinja(name) and not _is_path(name)


def _is_jinja(text: str) -> bool:
    return re.search(r"\{\{|\{%", text) is not None


def _is_path(text: str) -> bool:
    return text.lower().endswith(_FILES) or "/" in text or os.sep in text or "\\" in text


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"template: {path} is not UTF-8 text; save the file in UTF-8") from None
    except OSError as error:
        folder = path.parent
        near = difflib.get_close_matches(path.name, os.listdir(folder) if folder.is_dir() else [], n=3, cutoff=0.5)
        hint = f"; near names there: {', '.join(near)}" if near else ""
        raise UserError(f"template: no file {path} ({error.strerror}){hint}") from None
    if not _is_jinja(text):
        raise UserError(f"template: {path} is not a jinja template: it has neither {{{{ ... }}}} nor {{% ... %}}")
    return text.rstrip("\n")
