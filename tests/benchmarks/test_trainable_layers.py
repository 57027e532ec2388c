"""The table of all layers against the last third is that of the kept curves."""

import json

from benchmarks.trainable_layers import RESULTS, SIDES, markdown


def test_the_page_holds_what_the_curves_give(request):
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    assert {side: sum(run["side"] == side for run in runs) for side in SIDES} == {"all layers": 3, "last third": 3}
    page = (request.config.rootpath / "docs" / "performance.md").read_text(encoding="utf-8")
    assert markdown(runs) in page
    runs[0]["reward"][-1] += 1
    assert markdown(runs) not in page


def test_means_stand_where_they_belong():
    one = {"reward": [0.0, 0.0, 0.3, 0.9, 0.9, 0.9], "seconds_generate": [1.0], "seconds_score": [2.0]}
    runs = [{"side": side, "seed": 1, **one, "seconds_train": [4.0, 6.0], "peak_gigabytes": 1.5} for side in SIDES]
    assert markdown(runs).splitlines()[2] == "| all layers | 0.100 | 0.900 | 1.00 | 2.00 | 5.00 | 1.50 |"
