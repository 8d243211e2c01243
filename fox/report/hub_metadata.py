"""The head of a model card: what the Hugging Face hub reads of it, as YAML between two lines of dashes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_BEYOND_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")

# Those of https://huggingface.co/docs/hub/repositories-licenses for a model, of one's own or converted. Others are `other`, by name.
_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa
gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
odbl odc-by ofl-1.1 openrail osl-3.0 pddl postgresql unlicense wtfpl zlib
"""


def front_matter(values: dict[str, Any]) -> str:
    """`values` as YAML, with the lines of dashes around it. What is None, or an empty text or list, is left out."""
    return "\n".join(["---", *_mapping(values, ""), "---"])


def license_values(stated: str) -> dict[str, str]:
    """The hub's keys for a licence: one of its own identifiers, else `other` and the name; nothing where none is stated."""
    known = stated.strip().lower()
    if not known:
        return {}
    if known in _LICENSES.split():
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", known).strip("-") or "other"}


def scores_index(name: str, scores: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The hub's model-index: for each source, the metrics on its held-out text by their names."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": "custom", "name": f"{source}, held out"},
            "metrics": [
                {"type": metric.lower().replace(" ", "_"), "name": metric, "value": value}
                for metric, value in metrics.items()
            ],
        }
        for source, metrics in scores.items()
    ]
    return [{"name": name, "results": results}] if results else []


def _mapping(values: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        if value is None or value in ("", [], {}):
            continue
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _mapping(value, f"{indent}  ")
        elif isinstance(value, list):
            yield f"{indent}{key}:"
            for item in value:
                first, *rest = _mapping(item, "") if isinstance(item, dict) else [_scalar(item)]
                yield f"{indent}- {first}"
                yield from (f"{indent}  {line}" for line in rest)
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _scalar(value: object) -> str:
    """JSON's spelling, which YAML reads as the same value; signs that JSON allows in a text and YAML does not are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, float) and "." not in text:
        return text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for a text
    plain = text[1:-1]
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_-]*([./][a-z0-9_-]+)*", plain) and plain not in _NOT_TEXT:
        return plain
    return _BEYOND_YAML.sub(lambda found: "?" if _is_half(found.group()) else f"\\u{ord(found.group()):04x}", text)


_NOT_TEXT = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def _is_half(sign: str) -> bool:
    return "\ud800" <= sign <= "\udfff"
