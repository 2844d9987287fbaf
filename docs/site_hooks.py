"""What the documentation site takes from the repository beside its pages: the reports, made afresh at every build.

`benchmarks/reports.py --out FOLDER` writes them; they lie on the site under `results/`, and the list of them stands
where a page says `<!-- reports -->`.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "reports.py"
MARK = "<!-- reports -->"


def on_files(files: Files, config: Any) -> Files:
    """Add everything that the script writes, as it lies in its folder."""
    if not SCRIPT.is_file():
        return files
    folder = ROOT / "out" / "reports"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(folder)], cwd=ROOT, check=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = f"results/{path.relative_to(folder).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, files: Files, **rest: Any) -> str:
    """A link to every report where the page asks for them."""
    if MARK not in markdown:
        return markdown
    reports = [file.src_uri for file in files if file.src_uri.startswith("results/") and file.src_uri.endswith(".html")]
    lines = [f"- [{title(uri)}]({uri})" for uri in sorted(reports)]
    return markdown.replace(MARK, "\n".join(lines) or "`make reports` draws them beside the result files.")


def title(uri: str) -> str:
    """'compare tiny-flux' for results/compare/tiny-flux/report.html."""
    parts = Path(uri).with_suffix("").parts[1:]
    return " ".join(part for part in parts if part not in ("report", "index")) or "all reports"
