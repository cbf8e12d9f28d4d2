"""``lwptv push``."""

import argparse
import sys

from lwptv_lightning.cli.results import Result
from lwptv_lightning.registry import printable

EXAMPLE = "lwptv push merged owner/model --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "path", metavar="DIR", help="what lwptv merge wrote: a folder, a file or the index of its shards"
    )
    parser.add_argument(
        "repo", metavar="REPO", help="owner/model on the Hugging Face hub; made where it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch; made where it does not exist")
    parser.add_argument(
        "--overwrite", "--yes", action="store_true", help="replace the model that is there, without a question"
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit")


def run(options: argparse.Namespace) -> Result:
    """Upload a merged model to the Hugging Face hub, with its card."""
    from lwptv_lightning.sharing import Push

    push = Push.prepare(options.path, options.repo, private=options.private, revision=options.revision)
    print(push.text, flush=True)
    if push.overwrites and not options.overwrite:
        _require_consent(push.repo, push.model_there)
    url = push.run(options.message)
    return Result({"url": url, "repo": push.repo, "revision": push.revision}, [printable(f"Uploaded to {url}")])


def _require_consent(repo: str, files: tuple[str, ...]) -> None:
    has = f"{repo} has a model already ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})"
    if not sys.stdin.isatty():
        raise ValueError(f"{has}; --overwrite replaces it.")
    try:
        answer = input(printable(f"{has}. Replace it? [y/N] "))
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError(f"{has}; nothing was uploaded.")
