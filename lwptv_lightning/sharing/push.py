"""`Push`: a merged model to the Hugging Face hub, by the hub's own library."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.registry import printable, shown
from lwptv_lightning.sharing.parcel import Parcel, listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SCHEMES = ("hf-hub:", "hf://")
_WEIGHTS = re.compile(
    r"[^/]+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|distcp)|[^/]+\.index\.json|\.metadata"
    r"|(open_clip_|adapter_)?config\.json"
)
"""What of a repository is its model, and would be another's beside the new one."""
_BRANCH = re.compile(r"(?!.*(\.\.|//|/\.|\.lock$))[A-Za-z0-9_][\w./-]*(?<![/.])", re.ASCII)
"""What git takes for a branch's name, without characters that an address has to escape."""
_MEANINGS = {
    401: "the hub does not accept the token; log in again by `hf auth login`.",
    403: "the token has no right to write there.",
    404: "there is no such repository or branch, or the token has no right to see it.",
    409: "it was changed by somebody else meanwhile; try again.",
    412: "it was changed by somebody else meanwhile; try again.",
    413: "the hub finds a file too large.",
    429: "the hub takes no more requests for now; try again later.",
}
_MOST_TOLD = 300
"""Characters of what the hub itself says that are shown."""


class HubError(OSError):
    """The hub did not do what was asked, in a sentence."""


@dataclass(frozen=True)
class Push:
    """An upload that is ready to be done; nothing on the hub was changed for it.

    Attributes:
        parcel: The files.
        repo: ``owner/model``.
        revision: The branch; None for the repository's own.
        private: Whether a new repository is made private.
        exists: Whether the repository is there.
        branch_exists: Whether the branch is.
        there: The files that are there.
        parent: The commit that they were seen at.
        endpoint: The hub's address.
    """

    parcel: Parcel
    repo: str
    revision: str | None
    private: bool
    exists: bool
    branch_exists: bool
    there: tuple[str, ...]
    parent: str | None
    endpoint: str
    _token: str = field(repr=False)

    @classmethod
    def prepare(
        cls,
        path: str | Path,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        endpoint: str | None = None,
    ) -> Push:
        """Check the model and look at the repository.

        Args:
            path: The merged model; see `Parcel.of`.
            repo: ``owner/model``.
            private: Whether others may not see it, where it is new.
            revision: The branch; made where it does not exist.
            endpoint: The hub's address, by default that of huggingface_hub.

        Raises:
            ValueError: A name is none, there is no token, or a public repository should be private.
            CheckpointError: There is no merged model, or it is damaged.
            HubError: The hub did not answer, or refused.
        """
        repo = _required_name(repo)
        if revision is not None and _BRANCH.fullmatch(revision) is None:
            raise ValueError(f"revision: {shown(revision)} is no name of a branch.")
        token = _required_token()
        parcel = Parcel.of(path)
        api = _api(endpoint, token)
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        exists = branch_exists = True
        with _in_words(repo, token):
            try:
                about = api.model_info(repo, revision=revision)
            except RevisionNotFoundError:
                about, branch_exists = api.model_info(repo), False
            except RepositoryNotFoundError as error:
                if _status(error) == 401:  # of a token that is none, as the hub does not tell who may see what
                    raise
                about, exists, branch_exists = None, False, revision is None
        if about is not None and private and about.private is False:
            raise ValueError(f"{repo} exists and is public: private=True is for a new repository.")
        there = () if about is None else tuple(each.rfilename for each in about.siblings or ())
        parent = None if about is None else about.sha
        return cls(parcel, repo, revision, private, exists, branch_exists, there, parent, str(api.endpoint), token)

    @property
    def model_there(self) -> tuple[str, ...]:
        """The files of the model that is there."""
        return tuple(name for name in self.there if _WEIGHTS.fullmatch(name))

    @property
    def overwrites(self) -> bool:
        """Whether a model is there that this one would take the place of."""
        return self.branch_exists and bool(self.model_there)

    @property
    def url(self) -> str:
        """Where the model is seen afterwards."""
        return f"{self.endpoint}/{self.repo}" + (f"/tree/{self.revision}" if self.revision else "")

    @property
    def text(self) -> str:
        """What will be done, in lines of text."""
        where = "which exists" if self.exists else f"which is new and {'private' if self.private else 'not private'}"
        branch = f", branch {self.revision}{'' if self.branch_exists else ', which is new'}" if self.revision else ""
        lines = [f"To {self.repo}, {where}{branch}:", *listed(self.parcel).split("\n")]
        if replaced := [name for name in self.there if name in self.parcel.names]:
            lines.append(f"Replaced there: {', '.join(replaced)}")
        if self.removed:
            lines.append(f"Removed there, as it is another model's: {', '.join(self.removed)}")
        if self.parcel.left_out:
            lines.append(f"Left out: {', '.join(self.parcel.left_out)}")
        return "\n".join(map(printable, lines))

    @property
    def removed(self) -> tuple[str, ...]:
        """The files of the model that is there which would lie beside the new one."""
        return tuple(name for name in self.model_there if name not in self.parcel.names)

    def run(self, message: str | None = None) -> str:
        """Upload, and return where the model is seen.

        Raises:
            HubError: The hub did not take it.
        """
        api = _api(self.endpoint, self._token)
        with _in_words(self.repo, self._token), self.parcel.staged() as stage:
            if not self.exists:
                api.create_repo(self.repo, private=self.private or None)
            if self.revision is not None and not self.branch_exists:
                api.create_branch(self.repo, branch=self.revision, exist_ok=True)
            api.upload_folder(
                repo_id=self.repo,
                folder_path=stage,
                revision=self.revision,
                commit_message=message or "Upload a merged model",
                delete_patterns=[glob.escape(name) for name in self.removed] or None,
                parent_commit=self.parent if self.branch_exists else None,
            )
        return self.url


def _api(endpoint: str | None, token: str) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token, library_name="lwptv-lightning")


def _required_name(repo: str) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = repo
    for scheme in _SCHEMES:
        name = name.removeprefix(scheme)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{shown(repo)} is no name on the hub: {str(error).rstrip('.')}.") from None
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"{shown(repo)} is no name on the hub to write to; expected owner/model.")
    return name


def _required_token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise ValueError("there is no token for the hub: log in by `hf auth login`, or set HF_TOKEN.")
    return token


@contextmanager
def _in_words(repo: str, token: str) -> Iterator[None]:
    """Turn what the hub's library raises into a sentence, in which the token does not stand."""
    try:
        with warnings.catch_warnings():
            # What that library uses itself is nothing that a user could change.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except Exception as error:
        text = _told(error).replace(token, "***")
        # What led to it is shown by --debug, unless the token is in it.
        raise HubError(f"{repo}: {text}") from (None if _tells(error, token) else error)


def _tells(error: BaseException | None, token: str) -> bool:
    while error is not None:
        if token in f"{error} {error.args!r}":
            return True
        error = error.__cause__ or error.__context__
    return False


def _status(error: BaseException | None) -> int | None:
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _told(error: Exception) -> str:
    status = _status(error)
    said = _of(error, lambda each: getattr(each, "server_message", None))
    if status is not None and status >= 500:
        return f"the hub has a fault of its own (status {status}); try again later."
    if status is not None:
        meaning = _MEANINGS.get(status, f"the hub refused it (status {status}).")
        return f"{meaning} It says: {printable(said, _MOST_TOLD)}" if said else meaning
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set, so that the hub is not asked."
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    reason = (str(first).strip().splitlines() or [""])[0].rstrip(".")
    return f"the hub could not be asked: {printable(f'{type(first).__name__}: {reason}', _MOST_TOLD)}."


def _of(error: BaseException | None, get: Callable[[BaseException], Any]) -> Any:
    while error is not None:
        if found := get(error):
            return found
        error = error.__cause__
    return None
