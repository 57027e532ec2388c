"""Completions from a policy: one protocol, the local slot engine, and a scripted fake."""

from posttrain.rollout.protocol import Completion, Progress, Prompt, Sampler, SamplingParams
from posttrain.rollout.scripted import ScriptedSampler
from posttrain.rollout.slots import SlotSampler, learned_positions

__all__ = [
    "Completion",
    "Progress",
    "Prompt",
    "Sampler",
    "SamplingParams",
    "ScriptedSampler",
    "SlotSampler",
    "learned_positions",
]
