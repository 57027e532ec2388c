import importlib.util

import pytest


@pytest.fixture(scope="module")
def check_links(root):
    spec = importlib.util.spec_from_file_location("check_links", root / "scripts" / "check_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_the_project_leads_somewhere(check_links, root):
    problems = [problem for path in check_links.markdown_files(root) for problem in check_links.broken_links(path)]
    assert problems == []


def test_broken_links_are_found_with_their_line(check_links, tmp_path):
    (tmp_path / "there.md").write_text("# The `code` of it\n\n# 数据 格式\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[ok](there.md) [ok](there.md#the-code-of-it) [ok](#page) [ok](https://nowhere.example)\n"
        "[ok](there.md#数据-格式)\n[bad](gone.md)\n```\n[not a link](gone.md)\n```\n`[nor](this.md)`\n"
        '![bad](gone.png) [bad](there.md#gone)\n<img src="gone.svg">\n',
        encoding="utf-8",
    )
    found = [problem.removeprefix(f"{page}:") for problem in check_links.broken_links(page)]
    assert found == [
        "4: gone.md: no such file",
        "9: gone.png: no such file",
        "9: there.md#gone: no such heading",
        "10: gone.svg: no such file",
    ]


def test_repeated_headings_are_numbered(check_links):
    assert check_links.anchors("# A b\n## A b\n```\n# no\n```\n# [C](x.md)!\n") == {"a-b", "a-b-1", "c"}
