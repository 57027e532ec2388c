"""The command line answers at once: nothing heavy is loaded to print a help text."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "numpy", "matplotlib", "accelerate", "huggingface_hub", "safetensors")

PROBE = """
import json, sys
sys.argv = ["posttrain", *json.loads(sys.argv[1])]
status = 0
try:
    from posttrain.cli import main
    status = main()
except SystemExit as stop:
    status = stop.code
print()
print(json.dumps([status or 0, sorted(set(HEAVY) & set(sys.modules))]))
""".replace("HEAVY", repr(HEAVY))


def probe(code, *arguments):
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [[], ["train"], ["run"], ["export"], ["chat"], ["generate"], ["eval"], ["compare"]])
def test_help_loads_nothing_heavy(command):
    output = probe(PROBE, *command, "--help")
    status, loaded = json.loads(output.splitlines()[-1])
    assert status == 0
    assert loaded == []
    assert "posttrain" in output


@pytest.mark.parametrize("module", ["posttrain", "posttrain.config", "posttrain.errors", "posttrain.types"])
def test_the_light_modules_load_nothing_heavy(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    assert json.loads(probe(code)) == []
