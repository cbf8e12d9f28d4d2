"""`BaseCard`: what the model card beside a base says, as far as a card of what is merged from it needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwptv_lightning.checkpoints import hub_name
from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import printable

CARD = "README.md"
"""The file that the hub shows as a model's card."""
_MOST = 1 << 18
"""Bytes at the beginning of a card that are looked at; parsing more of a stranger's YAML would take long."""
_TEXT = 200
"""Characters of a value that is a name, a tag or an address."""
_TAG = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""What the hub calls licences and kinds of use."""
_LINK = re.compile(r"https?://[^\s<>\"'`]+")


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    r"""What is known of a base beside its weights; None of what its card does not say, or not as the hub has it.

    Attributes:
        name: ``owner/model`` on the hub, where the base came from there.
        license: The licence, as the hub calls it, such as ``"apache-2.0"`` or ``"other"``.
        license_name: The name of another one.
        license_link: Where that one stands.
        pipeline_tag: What the base is for, as the hub calls it, such as ``"image-classification"``.

    Example:
        >>> BaseCard.of_text("---\nlicense: mit\n---\n# Mine").license
        'mit'
    """

    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    pipeline_tag: str | None = None

    @classmethod
    def beside(cls, folder: Path | None) -> BaseCard:
        """Read the card in the folder of a base's weights; without one, or with a broken one, only its name is known.

        Args:
            folder: As `Checkpoint.folder` has it; None of weights in memory.
        """
        if folder is None:
            return cls()
        name = hub_name(folder)
        try:
            with InputFile.at(folder / CARD).open() as file:
                return cls.of_text(file.read(_MOST).decode("utf-8", "replace"), name)
        except (OSError, ValueError):  # a card is an extra, and no merge fails for it
            return cls(name=name)

    @classmethod
    def of_text(cls, text: str, name: str | None = None) -> BaseCard:
        """Read the text of a card of the hub."""
        about = _front_matter(text)
        link = _said(about, "license_link")
        if link is not None and not _LINK.fullmatch(link):  # a file beside the card
            link = None if name is None else f"https://huggingface.co/{name}/blob/main/{link.removeprefix('./')}"
        return cls(
            name=name,
            license=_said(about, "license", _TAG),
            license_name=_said(about, "license_name"),
            license_link=None if link is None or not _LINK.fullmatch(link) else link,
            pipeline_tag=_said(about, "pipeline_tag", _TAG),
        )


def _said(about: Mapping[str, Any], key: str, form: re.Pattern[str] | None = None) -> str | None:
    """Return a text that a card says, or the only one of a list; what is no such text, or of another form, is none."""
    value = about.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT or printable(value) != value:
        return None
    return value if form is None or form.fullmatch(value) else None


def _front_matter(text: str) -> dict[str, Any]:
    from huggingface_hub import RepoCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    found = REGEX_YAML_BLOCK.match(text)
    if found is None:
        return {}
    try:
        about: Any = RepoCard(found.group(), ignore_metadata_errors=True).data
        return dict(about.to_dict())
    except Exception:  # whatever a stranger's YAML leads to, it is prose that says nothing
        return {}
