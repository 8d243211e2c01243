"""The report of a real run: what the steps write is what the page reads."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from fox.report.run_files import STEPS, read_run


def test_what_every_step_wrote_is_on_the_page(finished: Path) -> None:
    run = finished / "runs/micro"
    page = html.unescape((run / "report/index.html").read_text("utf-8"))
    manifests = {step: json.loads((run / f"manifests/{step}.json").read_text("utf-8")) for step in STEPS}
    trained = manifests["pretrain"]["facts"]
    assert re.search('<section id="data">', page)
    for source, facts in manifests["data"]["facts"]["sources"].items():
        assert f'<td class="words">{source}</td><td>{facts["documents"]:,}</td><td>{facts["duplicates"]:,}</td>' in page
    for told in (f"{trained['parameters']:,}", trained["cpu"], trained["torch"], trained["instruction set"]):
        assert told in page
    for digest in (*manifests["data"]["inputs"]["files"].values(), *manifests["pretrain"]["outputs"].values()):
        assert digest in page
    assert "base model, after stage last" in page
    assert "left out" not in page and 'id="notes"' not in page
    assert read_run(run).notes == []
