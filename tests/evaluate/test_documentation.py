"""What the page about evaluation shows works as it is shown, and names what there is."""

import re

import pytest
import yaml

from posttrain.config import load_config
from posttrain.config.run import KEYS
from posttrain.evaluate.measured import measures_of
from posttrain.evaluate.tasks import TASKS


@pytest.fixture(scope="module")
def text(request):
    return (request.config.rootpath / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_its_files_load_without_a_warning(text):
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert load_config(yaml.safe_load(block), command="eval").warnings == ()


def test_every_task_has_its_section_and_every_figure_its_word(text):
    sections = dict(re.findall(r"\n### (.*?)\n(.*?)(?=\n##)", text, flags=re.DOTALL))
    for task in TASKS:
        if task == "sql":  # has its own page
            continue
        title = next(title for title in sections if f"`{task}`" in title)
        for measure in measures_of(task, ()):
            if task in ("generation", "match") and measure.name in ("response_length", "ended_share", "reward", "kl"):
                continue
            names = {"margin", "loss", "score_difference", "response_length", "ended_share"}
            assert measure.name in names or f"`{measure.name}`" in sections[title] or measure.title in sections[title]


def test_every_key_that_it_names_is_there(text):
    named = set(re.findall(r"`([a-z_]+): [^`]*`", text)) | set(re.findall(r"`(match_\w+|judge_\w+|lm_eval_\w+)`", text))
    assert named - set(KEYS) == set()
