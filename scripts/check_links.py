"""Check that every relative link and picture in the Markdown files leads somewhere; exit status 1 if one does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HTML = re.compile(r"<(?:img|a)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")
_CODE = re.compile(r"^(```|~~~).*?^\1[`~]*\s*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1[`~]*\s*$", re.MULTILINE | re.DOTALL)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)


def broken_links(path: Path) -> list[str]:
    """``file:line: target: reason`` of each link in one Markdown file that leads nowhere."""
    text = path.read_text(encoding="utf-8")
    # Code is blanked out, not cut out, so that line numbers stay.
    prose = _CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    problems = []
    for match in sorted([*_LINK.finditer(prose), *_HTML.finditer(prose)], key=lambda found: found.start()):
        reason = _problem(path, match[1])
        if reason:
            line = prose.count("\n", 0, match.start()) + 1
            problems.append(f"{path}:{line}: {match[1]}: {reason}")
    return problems


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives the headings of a Markdown text; repeated ones are numbered."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        name, number = slug, 0
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


def markdown_files(root: Path) -> list[Path]:
    """The Markdown files that git knows or could know; all below ``root`` where there is no git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8").split("\0")
    except (OSError, subprocess.CalledProcessError):
        return sorted(path for path in root.rglob("*.md") if not any(p.startswith(".") for p in path.parts))
    return sorted({root / name for name in listed if name and (root / name).is_file()})


def _problem(source: Path, link: str) -> str | None:
    if _ELSEWHERE.match(link):
        return None
    name, _, fragment = unquote(link).partition("#")
    target = source.parent / name if name else source
    if not target.exists():
        return "no such file"
    if fragment and target.suffix == ".md" and fragment not in anchors(target.read_text(encoding="utf-8")):
        return "no such heading"
    return None


def main() -> int:
    """Print what is broken; 1 if anything is."""
    files = markdown_files(Path(__file__).resolve().parents[1])
    problems = [problem for path in files for problem in broken_links(path)]
    print("\n".join(problems) if problems else f"links: {len(files)} Markdown files, nothing broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
