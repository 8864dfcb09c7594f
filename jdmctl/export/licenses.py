"""Licences, as the card of a Hugging Face repository tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OTHER = "other"
# huggingface.co/docs/hub/repositories-licenses: a card that says another is refused, and is to say `other` and a name.
_OF_THE_HUB = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl
    gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    """.split()
)


def read_license(front_matter: Mapping[str, Any], repository: str = "") -> tuple[str, str]:
    """The licence that a model card tells, its name where it is `other`, and the address of its text; "" if not told.

    `repository` is the card's on the hub: a link may be a file in it.
    """
    license, link = (str(front_matter.get(key) or "") for key in ("license", "license_link"))
    if license != _OTHER:
        return license, ""
    if not link.startswith("https://"):
        link = f"https://huggingface.co/{repository}/blob/main/{link}" if link and repository else ""
    return str(front_matter.get("license_name") or license), link


def license_entries(license: str, link: str = "") -> dict[str, Any]:
    """What a card's front matter says of a licence by its name."""
    if not license:
        return {}
    if license.lower() in _OF_THE_HUB:
        return {"license": license.lower()}
    told = {"license": _OTHER, "license_name": license if license != _OTHER else "", "license_link": link}
    return {key: value for key, value in told.items() if value}
