"""What lm-evaluation-harness asks of a model, answered by a wardrobe; the harness's own class is joined to it later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.batches import collate
from posttrain.data.template import EncodedRow, pad_token_id
from posttrain.errors import UserError
from posttrain.evaluate.wardrobe import Wardrobe
from posttrain.models.forward import is_packed
from posttrain.rollout import Prompt, SamplingParams, SlotSampler

Progress = Callable[[str, int, int], None]

_MAX_NEW_TOKENS = 256


class HarnessAnswers:
    """One outfit of a wardrobe, asked for log-likelihoods and completions of plain text.

    Names are those of lm-evaluation-harness's ``TemplateLM``, whose subclass this becomes.
    """

    def __init__(self, wardrobe: Wardrobe, wears: tuple[str, ...], config: RunConfig, progress: Progress) -> None:
        """Take the models and the configuration, which says how long a text may be and how many are asked at once."""
        super().__init__()
        self.tokenizer = wardrobe.tokenizer
        self._wardrobe, self._wears, self._progress = wardrobe, wears, progress
        self._size = config.train.per_device_eval_batch_size
        self._seed = config.train.seed
        longest = getattr(wardrobe.backbone.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(config.data.cutoff_len, longest or config.data.cutoff_len)

    @property
    def eot_token_id(self) -> int:
        """What stands before a text without a context."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that begins texts, where there is one; else that which ends them."""
        begins = self.tokenizer.bos_token_id
        return int(begins) if begins is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, without special tokens unless they are asked for, as the harness's own models encode."""
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the tokenizer's template renders it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, is it what greedy decoding says) of each continuation; contexts are cut on their left."""
        rows = []
        for _, context, continuation in requests:
            if not continuation or len(continuation) >= self.max_length:
                raise UserError(
                    f"lm_eval: a text of {len(continuation)} tokens cannot be scored within {self.max_length}; raise "
                    "cutoff_len"
                )
            ids = [*context, *continuation][-self.max_length :]
            counted = [False] * (len(ids) - len(continuation)) + [True] * len(continuation)
            rows.append(EncodedRow(input_ids=ids, loss_mask=counted))
        found: list[tuple[float, bool]] = []
        pad = pad_token_id(self.tokenizer)
        for start in range(0, len(rows), self._size):
            batch = collate(rows[start : start + self._size], pad)
            logprobs, hits = self._wardrobe.likelihood(self._wears, batch)
            sums = logprobs.double().sum(dim=1).tolist()
            greedy = (hits | ~batch.loss_mask).all(dim=1).tolist()
            found += list(zip(sums, greedy, strict=True))
            self._progress("lm_eval: score continuations", len(found), len(rows))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows of ``max_length`` that do not overlap."""
        room = self.max_length - 1
        windows = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for start in range(0, len(ids), room):
                before = ids[start - 1] if start else self.prefix_token_id
                windows.append((number, ("", [before], ids[start : start + room])))
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens([window for _, window in windows])
        for (number, _), (logprob, _) in zip(windows, scored, strict=True):
            totals[number] += logprob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions of contexts, cut before the first of the texts that should end them."""
        backbone = self._wardrobe.backbone
        if not is_packed(backbone):
            raise UserError(
                f"{type(backbone).__name__} cannot run with packed attention, which sampling needs; choose tasks that "
                "score continuations instead of generating them"
            )
        found = [""] * len(requests)
        settings: dict[SamplingParams, list[int]] = {}
        for place, request in enumerate(requests):
            settings.setdefault(self._params(request.args[1]), []).append(place)
        sampler = SlotSampler(backbone, num_slots=self._size)
        for params, places in settings.items():
            room = max(self.max_length - params.max_new_tokens, 1)
            prompts = [
                Prompt(input_ids=tuple(self._context(requests[place].args[0])[-room:]), index=place) for place in places
            ]
            with self._wardrobe.wearing(self._wears):
                drawn = sampler.generate(
                    prompts, params, lambda done, total: self._progress("lm_eval: generate", done, total)
                )
            for place, completion in zip(places, drawn, strict=True):
                text = str(self.tokenizer.decode(completion.token_ids, skip_special_tokens=True))
                found[place] = _cut(text, requests[place].args[1])
        return found

    def _context(self, text: str) -> list[int]:
        return self.tok_encode(text) or [self.prefix_token_id]

    def _params(self, asked: Mapping[str, Any]) -> SamplingParams:
        """As a task's ``generation_kwargs`` say; greedy unless they sample."""
        temperature = float(asked.get("temperature") or 0.0)
        samples = bool(asked.get("do_sample", temperature > 0)) and temperature > 0
        return SamplingParams(
            max_new_tokens=int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or _MAX_NEW_TOKENS),
            stop_token_ids=(self.eot_token_id,),
            seed=self._seed,
            temperature=temperature if samples else 1.0,
            top_p=float(asked.get("top_p") or 1.0) if samples else 1.0,
            top_k=int(asked.get("top_k") or 0) if samples else 0,
            do_sample=samples,
        )


def _cut(text: str, asked: Mapping[str, Any]) -> str:
    until = asked.get("until") or []
    for end in [until] if isinstance(until, str) else until:
        text = text.partition(end)[0] if end else text
    return text
